/*
 * generation_embed - embeddings as the API writes them: numbers, or base64 of the same as
 * little-endian f32.
 */
#include "server/generation_embed.h"

#include "base/strbuf.h"
#include "engine/engine.h"
#include "server/generation.h"
#include "server/http_server.h"

#include <gnutls/gnutls.h>
#include <math.h>
#include <string.h>

/* What the numbers are multiplied with for a length of 1; NAN or infinite when they are no vector.
 */
static double unit_scale(const float *v, int dim)
{
    double sum = 0;

    for (int i = 0; i < dim; i++)
        sum += (double)v[i] * (double)v[i];
    return sum > 0 ? 1 / sqrt(sum) : sum + 1;
}

static void add_numbers(struct strbuf *out, const float *v, int dim, double scale)
{
    strbuf_addch(out, '[');
    for (int i = 0; i < dim; i++)
        strbuf_addf(out, i ? ",%.9g" : "%.9g", (double)(float)((double)v[i] * scale));
    strbuf_addch(out, ']');
}

static void add_base64(struct strbuf *out, const float *v, int dim, double scale)
{
    size_t n_bytes = (size_t)dim * sizeof(float);
    struct strbuf raw = STRBUF_INIT;
    gnutls_datum_t in, text = {0};

    for (int i = 0; i < dim; i++) {
        float x = (float)((double)v[i] * scale);

        strbuf_add(&raw, &x, sizeof(x));
    }
    in = (gnutls_datum_t){.data = (unsigned char *)raw.buf, .size = (unsigned)n_bytes};
    if (raw.failed || gnutls_base64_encode2(&in, &text) < 0) {
        out->failed = true;
    } else {
        strbuf_addch(out, '"');
        strbuf_add(out, text.data, text.size);
        strbuf_addch(out, '"');
    }
    gnutls_free(text.data);
    strbuf_release(&raw);
}

void generation_add_embedding(struct choice *c, const float *v, int dim)
{
    struct generation *g = c->generation;
    double unit = unit_scale(v, dim);
    double scale = g->params.normalize ? unit : 1;

    if (!isfinite(unit)) {
        api_error_set(&g->error, 500, NULL, NULL, "The model's hidden states are not finite.");
        return;
    }
    if (g->params.as_base64)
        add_base64(&c->text, v, dim, scale);
    else
        add_numbers(&c->text, v, dim, scale);
}

void generation_write_embeddings(const struct generation *g, struct strbuf *out)
{
    strbuf_addstr(out, "{\"object\":\"list\",\"data\":[");
    for (int i = 0; i < g->n_choices; i++) {
        strbuf_addf(out, "%s{\"object\":\"embedding\",\"index\":%d,\"embedding\":", i ? "," : "",
                    i);
        strbuf_add(out, g->choices[i].text.buf, g->choices[i].text.len);
        strbuf_addch(out, '}');
        out->failed |= g->choices[i].text.failed;
    }
    strbuf_addstr(out, "],\"model\":");
    strbuf_add_json(out, g->server->info->model_id, strlen(g->server->info->model_id));
    strbuf_addf(out, ",\"usage\":{\"prompt_tokens\":%lld,\"total_tokens\":%lld}}",
                (long long)g->usage.prompt_tokens, (long long)g->usage.prompt_tokens);
}

/*
 * calibration_prompt - prompts of a wanted length. See calibration_prompt.h.
 *
 * How many tokens a text has is known only once it is tokenized, so its size is corrected a few
 * times until the prompt comes near enough to the length from below.
 */
#include "engine/plan/search/calibration_prompt.h"

#include "base/err.h"
#include "base/rng.h"
#include "base/strbuf.h"
#include "engine/engine.h"
#include "engine/plan/search/calibration.h"
#include "engine/plan/search/item_text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TRIES   12
#define EXTRA       8 /* tokens left free beside the answer's, as the reference does */
#define N_POSITIONS 10

static const char summary_template[] =
    "Below are documents. Read them, then write a one-page summary of them.\n\n{text}\n\nNow write "
    "a one-page summary of the documents above.";

struct recipe {
    const struct engine *e;
    const struct search_options *o;
    enum item_kind kind; /* when made up */
    const struct calibration_input *in;
    int first_text; /* of the input */
    uint64_t seed;
    int idx;
    double position;
};

/* The first and the last half of a text at most max_bytes long, whole characters. */
static void add_cut(struct strbuf *out, const char *text, size_t len, size_t max_bytes)
{
    size_t head = max_bytes / 2, tail = max_bytes - head;

    if (len <= max_bytes) {
        strbuf_add(out, text, len);
        return;
    }
    while (head > 0 && ((unsigned char)text[head] & 0xc0) == 0x80)
        head--;
    while (tail > 0 && ((unsigned char)text[len - tail] & 0xc0) == 0x80)
        tail--;
    strbuf_add(out, text, head);
    strbuf_addstr(out, "\n...\n");
    strbuf_add(out, text + len - tail, tail);
}

/* Texts from first_text on, as many as max_bytes takes, the last one cut, in the template. */
static void add_documents(struct strbuf *out, const struct recipe *r, size_t max_bytes)
{
    const char *form = r->o->template_text ? r->o->template_text : summary_template;
    const char *at = strstr(form, "{text}");
    size_t used = 0;

    if (!at) /* checked where the flag is read */
        return;
    strbuf_add(out, form, (size_t)(at - form));
    for (int i = 0; i < r->in->n_texts && used < max_bytes; i++) {
        const struct calibration_text *t = &r->in->texts[(r->first_text + i) % r->in->n_texts];

        if (t->is_prompt)
            continue;
        if (used)
            strbuf_addstr(out, "\n\n");
        add_cut(out, t->text, t->len, max_bytes - used);
        used += t->len;
    }
    strbuf_addstr(out, at + 6);
}

/* The prompt's tokens for one size. */
static int build(const struct recipe *r, double size, struct strbuf *given, int32_t **ids,
                 int *n_ids, struct err *err)
{
    struct strbuf text = STRBUF_INIT;
    struct engine_message message = {.role = "user"};
    int rc;

    strbuf_reset(given);
    if (!r->in)
        item_text_make(&text, given, r->kind, r->seed, r->idx, size < 1 ? 1 : (int)size,
                       r->position);
    else if (r->in->texts[r->first_text].is_prompt)
        strbuf_addstr(&text, r->in->texts[r->first_text].text);
    else
        add_documents(&text, r, (size_t)size);
    if (r->in && r->in->texts[r->first_text].answer)
        strbuf_addstr(given, r->in->texts[r->first_text].answer);
    message.content = text.buf;
    message.content_len = text.len;
    if (text.failed)
        rc = err_set(err, ERR_NO_ROOM, "calibrate: out of memory");
    else if (engine_get_info(r->e)->has_chat_template && !r->o->raw_prompts)
        rc = engine_chat_tokenize(r->e, &message, 1, NULL, true, ids, n_ids, NULL, err);
    else
        rc = engine_tokenize(r->e, text.buf, text.len, true, false, ids, n_ids, err);
    strbuf_release(&text);
    return rc;
}

/* Tries sizes until the prompt has at most `most` and at least `least` tokens. */
static int fit(const struct recipe *r, int least, int most, struct strbuf *given, int32_t **ids,
               int *n_ids, struct err *err)
{
    double size = r->in ? most * 4.0 : most / 24.0, best = 0;
    int rc = 0, best_n = 0;

    for (int i = 0; i < MAX_TRIES && rc == 0; i++) {
        free(*ids);
        *ids = NULL;
        rc = build(r, size, given, ids, n_ids, err);
        if (rc == 0 && *n_ids <= most && *n_ids > best_n) {
            best = size;
            best_n = *n_ids;
        }
        if (rc < 0 || (*n_ids <= most && *n_ids >= least))
            return rc;
        size *= 0.5 * (least + most) / (*n_ids > 0 ? *n_ids : 1);
    }
    if (rc == 0 && best_n > 0) {
        free(*ids);
        *ids = NULL;
        rc = build(r, best, given, ids, n_ids, err);
    }
    return rc;
}

/* A prompt that is taken as it is: does it belong to this length? */
static int take_prompt(const struct recipe *r, int least, int most, struct strbuf *given,
                       int32_t **ids, int *n_ids, struct err *err)
{
    int rc = build(r, 0, given, ids, n_ids, err);

    if (rc == 0 && *n_ids + r->o->answer_tokens > r->o->model->max_seq_len)
        return err_set(err, ERR_CONTEXT,
                       "%s:%d: the prompt has %d tokens, with %d for the answer the context of %d "
                       "is too short",
                       r->o->input, r->in->texts[r->first_text].line, *n_ids, r->o->answer_tokens,
                       r->o->model->max_seq_len);
    if (rc == 0 && (*n_ids > most || *n_ids < least)) {
        free(*ids);
        *ids = NULL;
        *n_ids = 0;
    }
    return rc;
}

static enum item_kind kind_of(const struct search_options *o, int idx)
{
    if (o->source == SOURCE_BOTH)
        return idx % 2 ? ITEM_SUMMARY : ITEM_RETRIEVAL;
    return o->source == SOURCE_SUMMARY ? ITEM_SUMMARY : ITEM_RETRIEVAL;
}

/* Without a tokenizer there are no texts: random tokens, which serve to measure times. */
static bool make_random(struct calibration_item *out, const struct recipe *r, int length, int most,
                        struct err *err)
{
    int vocab_size = engine_get_info(r->e)->vocab_size;

    out->ids = most > 0 ? calloc((size_t)most, sizeof(*out->ids)) : NULL;
    if (!out->ids) {
        err_set(err, most > 0 ? ERR_NO_ROOM : ERR_INVALID, "no prompt can be made for %d tokens",
                length);
        return false;
    }
    for (int i = 0; i < most; i++)
        out->ids[i] =
            (int32_t)(rng_u64(r->seed, (uint32_t)r->idx, (uint64_t)i) % (uint64_t)vocab_size);
    out->length = length;
    out->n_prompt = most;
    snprintf(out->source, sizeof(out->source), "random");
    return true;
}

bool calibration_prompt_make(struct calibration_item *out, struct strbuf *given,
                             const struct engine *e, const struct search_options *o,
                             const struct calibration_input *in, int *next_text, int length,
                             int idx, struct err *err)
{
    int most = length - o->answer_tokens - EXTRA, n_ids = 0, rc = 0;
    struct recipe r = {.e = e,
                       .o = o,
                       .kind = kind_of(o, idx),
                       .in = in,
                       .seed = (uint64_t)o->seed * 1000003u + (uint64_t)length,
                       .idx = idx,
                       .position = (idx * 7 % N_POSITIONS + 0.5) / N_POSITIONS};
    int32_t *ids = NULL;

    if (!in && !engine_get_info(e)->has_tokenizer)
        return make_random(out, &r, length, most, err);
    if (!in) {
        rc = fit(&r, most - 48, most, given, &ids, &n_ids, err);
        snprintf(out->source, sizeof(out->source), "%s",
                 r.kind == ITEM_RETRIEVAL ? "retrieval" : "summary");
    }
    for (; in && *next_text < in->n_texts && n_ids == 0 && rc == 0; ++*next_text) {
        r.first_text = *next_text;
        if (in->texts[r.first_text].is_prompt)
            rc = take_prompt(&r, length * 3 / 4 - o->answer_tokens, most, given, &ids, &n_ids, err);
        else
            rc = fit(&r, most - most / 16, most, given, &ids, &n_ids, err);
        if (n_ids > most || n_ids < length / 2 - o->answer_tokens) {
            free(ids); /* all texts together do not fill the length */
            ids = NULL;
            n_ids = 0;
        }
        snprintf(out->source, sizeof(out->source), "line %d", in->texts[r.first_text].line);
    }
    if (rc == 0 && !in && (n_ids == 0 || n_ids > most))
        rc = err_set(err, ERR_INVALID,
                     "no text can be made for %d tokens with %d for the answer: choose longer "
                     "profile lengths",
                     length, o->answer_tokens);
    if (rc < 0 || n_ids == 0) {
        free(ids);
        return false;
    }
    out->length = length;
    out->ids = ids;
    out->n_prompt = n_ids;
    return true;
}

/*
 * cpu_fixture - see the header.
 */
#include "tests/engine/cpu/cpu_fixture.h"

#include "base/rng.h"
#include "engine/cpu/cpu_isa.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int fixture_n_isas(void)
{
    return (int)cpu_isa_detect() + 1;
}

struct backend *fixture_open(int isa, enum dtype dtype, int n_threads, int max_rows)
{
    struct backend_params p = {.device = "cpu",
                               .dtype = dtype,
                               .n_threads = n_threads,
                               .max_rows = max_rows,
                               .max_dim = 2048,
                               .max_vocab = 4096,
                               .max_logits = max_rows,
                               .max_positions = 8192};
    struct backend *be = NULL;
    struct err err = {0};

    setenv("SPAND_ISA", cpu_isa_name((enum cpu_isa)isa), 1);
    ck_assert_msg(backend_open(&be, &p, &err) == 0, "%s", err.msg);
    return be;
}

float *fixture_random(uint64_t seed, int64_t n, float scale)
{
    float *x = malloc(sizeof(float) * (size_t)(n > 0 ? n : 1));

    for (int64_t i = 0; i < n; i++)
        x[i] = (rng_f32(seed, 7, (uint64_t)i) * 2.0f - 1.0f) * scale;
    return x;
}

void fixture_round(float *x, int64_t n, enum dtype dt)
{
    for (int64_t i = 0; i < n; i++) {
        if (dt == DTYPE_BF16)
            x[i] = bf16_to_f32(f32_to_bf16(x[i]));
        else if (dt == DTYPE_F16)
            x[i] = f16_to_f32(f32_to_f16(x[i]));
    }
}

struct weight fixture_weight(struct backend *be, const float *x, int n_out, int n_in, enum dtype dt)
{
    struct weight_part part = {.host = x, .dtype = DTYPE_F32, .n_out = n_out, .n_in = n_in};
    struct weight w;
    struct err err = {0};
    int rc = be->ops->weight_load(be, &w, &part, 1, dt, n_in > 1, &err);

    ck_assert_msg(rc == 0, "%s", err.msg);
    return w;
}

void fixture_close_to(const float *a, const double *ref, int64_t n, double atol, double rtol,
                      const char *what)
{
    double worst = -1.0;
    int64_t at = -1;

    for (int64_t i = 0; i < n; i++) {
        double over = fabs((double)a[i] - ref[i]) - (atol + rtol * fabs(ref[i]));

        if (!(over <= 0.0) && (isnan(over) || over > worst)) {
            worst = over;
            at = i;
            if (isnan(over))
                break;
        }
    }
    ck_assert_msg(at < 0, "%s: element %lld is %.9g, want %.9g", what, (long long)at,
                  at < 0 ? 0.0 : (double)a[at], at < 0 ? 0.0 : ref[at]);
}

void kv_world_init(struct kv_world *w, const struct kv_shape *s)
{
    /* Room for any rule: sink and ring of every position, each rounded up to whole tiles. */
    int per_head = (s->max_tokens + 2 * KV_TILE) / s->page_entries + 2;
    int n_lists = s->n_slots * s->n_kv_heads;
    size_t page_bytes = 2 * (size_t)s->page_entries * (size_t)s->head_dim * dtype_bytes(s->dtype);

    memset(w, 0, sizeof(*w));
    w->n_pages = n_lists * per_head;
    w->max_tokens = s->max_tokens;
    w->pages = malloc((size_t)w->n_pages * page_bytes);
    memset(w->pages, 0xff, (size_t)w->n_pages * page_bytes);
    w->table = malloc(sizeof(int32_t) * (size_t)w->n_pages);
    for (int i = 0; i < w->n_pages; i++)
        w->table[i] = w->n_pages - 1 - i;
    w->head_base = malloc(sizeof(int32_t) * (size_t)n_lists);
    for (int i = 0; i < n_lists; i++)
        w->head_base[i] = i * per_head;
    w->geom = calloc((size_t)n_lists, sizeof(*w->geom));
    w->window = calloc((size_t)(s->n_slots * s->n_heads), sizeof(int32_t));
    w->kv = (struct kv_view){.pages = w->pages,
                             .page_bytes = page_bytes,
                             .page_entries = s->page_entries,
                             .head_dim = s->head_dim,
                             .n_layers = 1,
                             .n_heads = s->n_heads,
                             .n_kv_heads = s->n_kv_heads,
                             .dtype = s->dtype,
                             .page_table = w->table,
                             .head_base = w->head_base,
                             .geom = w->geom,
                             .window = w->window};
    for (int slot = 0; slot < s->n_slots; slot++) {
        for (int h = 0; h < s->n_kv_heads; h++)
            kv_world_rule(w, slot, h, (struct kv_geom){.ring = KV_RING_DENSE}, KV_WINDOW_ALL);
    }
}

void kv_world_release(struct kv_world *w)
{
    free(w->pages);
    free(w->table);
    free(w->head_base);
    free(w->geom);
    free(w->window);
}

void kv_world_rule(struct kv_world *w, int slot, int kv_head, struct kv_geom g, int32_t window)
{
    int group = w->kv.n_heads / w->kv.n_kv_heads;

    w->geom[slot * w->kv.n_kv_heads + kv_head] = g;
    for (int i = 0; i < group; i++)
        w->window[slot * w->kv.n_heads + kv_head * group + i] = window;
}

char *kv_world_at(const struct kv_world *w, int slot, int kv_head, int32_t pos, bool value)
{
    int list = slot * w->kv.n_kv_heads + kv_head;
    int index = kv_index_of(w->geom[list], pos);
    int page = w->table[w->head_base[list] + index / w->kv.page_entries];
    size_t entry = (size_t)w->kv.head_dim * dtype_bytes(w->kv.dtype);

    return w->pages + (size_t)page * w->kv.page_bytes +
           (size_t)(index % w->kv.page_entries + (value ? w->kv.page_entries : 0)) * entry;
}

/*
 * cpu_fixture - what the CPU backend's tests share: a backend per instruction set, seeded random
 * numbers, comparison with tolerances, and a small KV memory whose pages lie in disorder.
 */
#ifndef CPU_FIXTURE_H
#define CPU_FIXTURE_H

#include "engine/backend.h"
#include "tests/lib/test.h"

/* Instruction sets this machine has, for loop tests: _i is an enum cpu_isa. */
int fixture_n_isas(void);

/* A backend on one instruction set; max_dim 2048, vocabulary 4096. */
struct backend *fixture_open(int isa, enum dtype dtype, int n_threads, int max_rows);

/* n values uniform in [-scale, scale); each call of one seed gives the same. */
float *fixture_random(uint64_t seed, int64_t n, float scale);

/* x as type dt and back: what a weight holds. */
void fixture_round(float *x, int64_t n, enum dtype dt);

/* A weight that holds x [n_out, n_in] as dt. */
struct weight fixture_weight(struct backend *be, const float *x, int n_out, int n_in,
                             enum dtype dt);

/* Fails with the worst element unless |a - ref| <= atol + rtol |ref| everywhere. */
void fixture_close_to(const float *a, const double *ref, int64_t n, double atol, double rtol,
                      const char *what);

/* One layer's KV memory of n_slots slots, filled with NaN, its pages dealt out backwards. */
struct kv_world {
    struct kv_view kv;
    int n_pages, max_tokens;
    char *pages;
    int32_t *table, *head_base, *window;
    struct kv_geom *geom;
};
struct kv_shape {
    int n_slots, n_heads, n_kv_heads, head_dim, page_entries, max_tokens;
    enum dtype dtype;
};
void kv_world_init(struct kv_world *w, const struct kv_shape *s);
void kv_world_release(struct kv_world *w);

/* Sets the rule of one KV head of a slot; its query heads get `window` each. */
void kv_world_rule(struct kv_world *w, int slot, int kv_head, struct kv_geom g, int32_t window);

/* The bytes of position pos of one head, K or V. */
char *kv_world_at(const struct kv_world *w, int slot, int kv_head, int32_t pos, bool value);

#endif

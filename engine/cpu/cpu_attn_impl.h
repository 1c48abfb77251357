/*
 * cpu_attn_impl - attention's inner loops, included by cpu_kernels_impl.h.
 *
 * Decode goes by cache index, page by page: a row's state after a chunk is a function of that
 * chunk alone, and the caller merges chunks in ascending order. Prompt rows go by absolute
 * position in tiles of 64 keys. A tile that a row cannot see leaves its state as it was to the
 * bit (its factor is exp(0)), so skipping tiles, and cutting chunks elsewhere, changes nothing.
 * Keys that nobody in the tile may see are not read: a stale page may hold NaN.
 */

#define TILE KV_TILE

VEC_FN const char *kv_entry_page(const struct kv_head *kv, int index)
{
    return kv->pages + (size_t)kv->table[index / kv->page_entries] * kv->page_bytes;
}

/* ---- decode ---- */

/*
 * Queries, and the weighted sums of values, lie in the order of v_load_pair(), padded with zeros to
 * whole steps: an array of rows a step long each is [DECODE_HEADS, dim_pad].
 */
#define DECODE_HEADS 8 /* query heads that share a pass over the keys */

struct decode_work {
    float q[DECODE_HEADS * ATTN_MAX_HEAD_DIM]; /* scaled */
    float o[DECODE_HEADS * ATTN_MAX_HEAD_DIM];
    float score[DECODE_HEADS * TILE];
    float keep[DECODE_HEADS];
    int dim, dim_pad;
} __attribute__((aligned(64)));

/* score[g][key] of four keys and G heads: each key is widened once for all of them. */
VEC_FN void decode_scores_of(float *score, const char *const k[4], const float *q, int dim,
                             int dim_pad, const enum dtype dt, const int G)
{
    vf acc[4][4];
    int d = 0;

#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
#pragma GCC unroll 4
        for (int g = 0; g < G; g++)
            acc[i][g] = v_zero();
    }
    for (; d + DOT_STEP <= dim; d += DOT_STEP) {
        size_t at = (size_t)d * dtype_bytes(dt);
        const char *row[4] = {k[0] + at, k[1] + at, k[2] + at, k[3] + at};

        dot_step(acc, row, q + d, dim_pad, dt, G, 4);
    }
    if (d < dim) {
        char tail[4][DOT_STEP * 4] __attribute__((aligned(64)));
        const char *row[4] = {tail[0], tail[1], tail[2], tail[3]};

        for (int i = 0; i < 4; i++)
            step_tail(tail[i], k[i] + (size_t)d * dtype_bytes(dt), dim - d, dt);
        dot_step(acc, row, q + d, dim_pad, dt, G, 4);
    }
#pragma GCC unroll 4
    for (int g = 0; g < G; g++)
        v_store_sums(score + g * TILE, acc[0][g], acc[1][g], acc[2][g], acc[3][g]);
}

#define SCORE_HEADS (GEMM_OUTS >= 8 ? 4 : 2) /* times 4 keys: of 32 registers, of 16 */

/*
 * The keys or values of one run, and those of the next page, which are asked for row by row while
 * these are read: no hardware prefetcher looks beyond a page. They go to L2, since the few misses
 * that L1 can have under way allow no more than half of the memory's bandwidth.
 */
struct decode_rows {
    const char *at, *next;
    size_t row_bytes, next_bytes; /* next_bytes 0: there is no next page */
    int n;
};

/* score[g][key]; what stands behind key n - 1 up to the next multiple of 4 is overwritten. */
VEC_FN void decode_scores(struct decode_work *w, const struct decode_rows *k, int group,
                          const enum dtype dt)
{
    const char *next = k->next;

    for (int key = 0; key < k->n; key += 4) {
        const char *row[4];
        int g = 0;

        for (int i = 0; i < 4; i++)
            row[i] = k->at + (size_t)(key + i < k->n ? key + i : k->n - 1) * k->row_bytes;
        for (size_t at = 0; at < 4 * k->next_bytes; at += 64)
            __builtin_prefetch(next + at, 0, 2);
        next += 4 * k->next_bytes;
        for (; g + SCORE_HEADS <= group; g += SCORE_HEADS)
            decode_scores_of(w->score + g * TILE + key, row, w->q + g * w->dim_pad, w->dim,
                             w->dim_pad, dt, SCORE_HEADS);
        for (; g < group; g++)
            decode_scores_of(w->score + g * TILE + key, row, w->q + g * w->dim_pad, w->dim,
                             w->dim_pad, dt, 1);
    }
}

/* o[g] = o[g] * keep[g] + sum of weight[g][key] * v[key]: G heads, P steps of dims from d on. */
VEC_FN void decode_values_of(struct decode_work *w, int g0, int d, const struct decode_rows *r,
                             const enum dtype dt, const int G, const int P)
{
    const float *weight = w->score + g0 * TILE;
    const char *row = r->at + (size_t)d * dtype_bytes(dt), *next = r->next;
    int left = w->dim - d;
    vf acc[4][8];

#pragma GCC unroll 4
    for (int g = 0; g < G; g++) {
#pragma GCC unroll 8
        for (int i = 0; i < 2 * P; i++)
            acc[g][i] = v_zero();
    }
    for (int key = 0; key < r->n; key++) {
        char tail[DOT_STEP * 4] __attribute__((aligned(64)));
        vf value[8];

        for (size_t at = 0; at < r->next_bytes; at += 64)
            __builtin_prefetch(next + at, 0, 2);
        if (P == 1 && left < DOT_STEP) {
            step_tail(tail, row, left, dt);
            v_load_pair(tail, dt, &value[0], &value[1]);
        } else {
#pragma GCC unroll 4
            for (int p = 0; p < P; p++)
                v_load_pair(row + (size_t)(p * DOT_STEP) * dtype_bytes(dt), dt, &value[2 * p],
                            &value[2 * p + 1]);
        }
#pragma GCC unroll 4
        for (int g = 0; g < G; g++) {
            vf wv = v_set1(weight[g * TILE + key]);

#pragma GCC unroll 8
            for (int i = 0; i < 2 * P; i++)
                acc[g][i] = v_fma(wv, value[i], acc[g][i]);
        }
        row += r->row_bytes;
        next += r->next_bytes;
    }
#pragma GCC unroll 4
    for (int g = 0; g < G; g++) {
        float *at = w->o + (g0 + g) * w->dim_pad + d;
        vf keep = v_set1(w->keep[g0 + g]);

#pragma GCC unroll 8
        for (int i = 0; i < 2 * P; i++)
            v_store(at + i * VW, v_fma(v_load(at + i * VW), keep, acc[g][i]));
    }
}

/* Heads and steps at a time: 16 sums in 32 registers, 8 in 16. */
#define VALUE_STEPS_4 (GEMM_OUTS >= 8 ? 2 : 1) /* of 4 heads */
#define VALUE_STEPS_1 (GEMM_OUTS >= 8 ? 4 : 2)

VEC_FN void decode_values(struct decode_work *w, const struct decode_rows *v, int group,
                          const enum dtype dt)
{
    struct decode_rows r = *v; /* the first pass asks for the next page, the others do not */
    int g = 0;

    for (; g + 4 <= group; g += 4) {
        int d = 0;

        for (; d + VALUE_STEPS_4 * DOT_STEP <= w->dim; d += VALUE_STEPS_4 * DOT_STEP) {
            decode_values_of(w, g, d, &r, dt, 4, VALUE_STEPS_4);
            r.next_bytes = 0;
        }
        for (; d < w->dim; d += DOT_STEP)
            decode_values_of(w, g, d, &r, dt, 4, 1);
    }
    for (; g < group; g++) {
        int d = 0;

        for (; d + VALUE_STEPS_1 * DOT_STEP <= w->dim; d += VALUE_STEPS_1 * DOT_STEP) {
            decode_values_of(w, g, d, &r, dt, 1, VALUE_STEPS_1);
            r.next_bytes = 0;
        }
        for (; d < w->dim; d += DOT_STEP)
            decode_values_of(w, g, d, &r, dt, 1, 1);
    }
}

/* A run of keys in one page: cache indices index .. index + n - 1 hold positions pos .. */
struct decode_run {
    int index, n;
    int32_t pos;
};

/*
 * The next run from *index on, within end, one page and one direction of the ring; n 0 when it is
 * a hole. Advances *index.
 */
VEC_FN struct decode_run decode_next_run(const struct attn_decode_args *a, int *index, int end)
{
    struct kv_geom g = a->kv.geom;
    int base = (g.n_sink + KV_TILE - 1) / KV_TILE * KV_TILE;
    int at = *index, stop = (at / a->kv.page_entries + 1) * a->kv.page_entries;
    struct decode_run run = {.index = at};

    if (stop > end)
        stop = end;
    if (at < base) { /* the sink, and the hole behind it */
        int last = g.n_sink < a->pos + 1 ? g.n_sink : a->pos + 1;

        run.pos = at;
        run.n = (stop < last ? stop : last) - at;
    } else {
        int offset = at - base, newest = (a->pos - g.n_sink) % g.ring;

        run.pos = kv_position_at(g, offset, a->pos);
        if (offset <= newest && stop > base + newest + 1)
            stop = base + newest + 1; /* behind it the ring goes on with its oldest key */
        run.n = run.pos >= g.n_sink ? stop - at : 0;
    }
    if (run.n < 0)
        run.n = 0;
    *index = stop;
    return run;
}

/* Drops keys at both ends that no head of the group sees; those between stay. */
VEC_FN void decode_trim_run(const struct attn_decode_args *a, struct decode_run *run,
                            int max_window)
{
    if (run->pos >= a->kv.geom.n_sink) {
        int64_t skip = (int64_t)a->pos - max_window + 1 - run->pos;

        if (skip > 0) {
            int n = skip < run->n ? (int)skip : run->n;

            run->index += n;
            run->pos += n;
            run->n -= n;
        }
    }
}

/* Scores to weights of one head: masks, takes the new maximum, returns the old state's factor. */
VEC_FN float decode_softmax(float score[TILE], struct attn_state *s, int n)
{
    vf m = v_set1(s->max), sum = v_zero();
    float max, keep;

    for (int i = n; i < TILE && i % VW; i++)
        score[i] = -INFINITY;
    for (int i = 0; i < n; i += VW)
        m = v_max(v_load(score + i), m);
    max = v_max_lane(m);
    for (int i = 0; i < n; i += VW) {
        vf w = v_exp(v_load(score + i) - v_set1(max));

        v_store(score + i, w);
        sum = sum + w;
    }
    keep = exp_poly(s->max - max);
    s->sum = s->sum * keep + v_sum(sum);
    s->max = max;
    return keep;
}

VEC_FN void decode_begin(const struct attn_decode_args *a, struct decode_work *w)
{
    vf scale = v_set1(a->scale);

    w->dim = a->kv.head_dim;
    w->dim_pad = (w->dim + DOT_STEP - 1) / DOT_STEP * DOT_STEP;
    for (int g = 0; g < a->group; g++) {
        float *q = w->q + g * w->dim_pad, *o = w->o + g * w->dim_pad;

        a->state[g] = (struct attn_state){.max = -INFINITY, .sum = 0.0f};
        dot_prepare(q, a->q + (int64_t)g * w->dim, w->dim, a->kv.dtype);
        for (int d = 0; d < w->dim_pad; d += VW) {
            v_store(q + d, v_load(q + d) * scale);
            v_store(o + d, v_zero());
        }
    }
}

/* The sums in the order of the dims again. */
VEC_FN void decode_end(const struct attn_decode_args *a, const struct decode_work *w,
                       const enum dtype dt)
{
    for (int g = 0; g < a->group; g++) {
        const float *o = w->o + g * w->dim_pad;
        float *out = a->o + (int64_t)g * w->dim;

        for (int d = 0; d < w->dim; d += DOT_STEP) {
            float lane[DOT_STEP];
            int n = w->dim - d < DOT_STEP ? w->dim - d : DOT_STEP;
            vf lo = v_load(o + d), hi = v_load(o + d + VW);

            if (dt == DTYPE_BF16)
                v_zip(&lo, &hi);
            v_store(lane, lo);
            v_store(lane + VW, hi);
            memcpy(out + d, lane, sizeof(float) * (size_t)n);
        }
    }
}

VEC_FN void attn_decode_of(const struct attn_decode_args *a, const enum dtype dt)
{
    struct decode_work w;
    size_t row_bytes = (size_t)a->kv.head_dim * dtype_bytes(dt);
    int max_window = 0;

    for (int g = 0; g < a->group; g++)
        max_window = a->window[g] > max_window ? a->window[g] : max_window;
    decode_begin(a, &w);
    for (int index = a->begin; index < a->end;) {
        struct decode_run run = decode_next_run(a, &index, a->end);
        struct decode_rows k = {.row_bytes = row_bytes}, v;

        decode_trim_run(a, &run, max_window);
        if (run.n == 0)
            continue;
        k.n = run.n;
        k.at =
            kv_entry_page(&a->kv, run.index) + (size_t)(run.index % a->kv.page_entries) * row_bytes;
        k.next = k.at;
        if (index < a->stop) {
            k.next = kv_entry_page(&a->kv, index);
            k.next_bytes = row_bytes;
        }
        v = k;
        v.at += (size_t)a->kv.page_entries * row_bytes;
        v.next += (size_t)a->kv.page_entries * row_bytes;
        decode_scores(&w, &k, a->group, dt);
        for (int g = 0; g < a->group; g++) {
            float *s = w.score + g * TILE;

            /* Later keys of a run are seen if its first one is. */
            for (int i = 0; i < run.n; i++) {
                if (kv_sees_decode(a->kv.geom, a->window[g], a->pos, run.pos + i))
                    break;
                s[i] = -INFINITY;
            }
            w.keep[g] = decode_softmax(s, &a->state[g], run.n);
        }
        decode_values(&w, &v, a->group, dt);
    }
    decode_end(a, &w, dt);
}

static void attn_decode(const struct attn_decode_args *args)
{
    struct attn_decode_args a = *args;

    for (int left = args->group; left > 0; left -= a.group) {
        a.group = left < DECODE_HEADS ? left : DECODE_HEADS;
        if (a.kv.dtype == DTYPE_F32)
            attn_decode_of(&a, DTYPE_F32);
        else if (a.kv.dtype == DTYPE_BF16)
            attn_decode_of(&a, DTYPE_BF16);
        else
            attn_decode_of(&a, DTYPE_F16);
        a.q += (int64_t)a.group * a.kv.head_dim;
        a.o += (int64_t)a.group * a.kv.head_dim;
        a.window += a.group;
        a.state += a.group;
    }
}

/* ---- prompt ---- */

#define N_VECS (ATTN_LANES / VW)

/* Scratch of one item; vectors of lanes are contiguous, so a step of VW moves to the next one. */
struct prompt_work {
    float *k, *v;  /* [TILE, head_dim] f32, zero where nobody looks */
    float *q;      /* [head_dim, ATTN_LANES], scaled */
    float *o;      /* [head_dim, ATTN_LANES] */
    float *score;  /* [TILE, ATTN_LANES] */
    float *sum_pv; /* [head_dim, ATTN_LANES] of this tile */
    float max[ATTN_LANES], sum[ATTN_LANES], keep[ATTN_LANES];
    int32_t lo[ATTN_LANES], hi[ATTN_LANES]; /* lane sees lo <= j <= hi, and j < sink && j <= hi */
    int32_t sink;
};

static size_t attn_prompt_scratch(int head_dim)
{
    size_t n = (size_t)head_dim;

    return sizeof(float) * (2 * TILE * n + 3 * n * ATTN_LANES + TILE * ATTN_LANES);
}

VEC_FN void prompt_lanes(const struct attn_prompt_args *a, struct prompt_work *w)
{
    int dim = a->kv.head_dim;

    w->sink = a->kv.geom.mask == KV_MASK_TOKEN ? a->kv.geom.n_sink
                                               : a->kv.geom.n_sink / KV_TILE * KV_TILE;
    for (int i = 0; i < ATTN_LANES; i++) {
        int row = (a->lane0 + i) / a->group, head = (a->lane0 + i) % a->group;
        const float *q = a->q + row * a->ldq + (int64_t)head * dim;
        bool used = i < a->n_lanes;

        w->hi[i] = used ? a->pos0 + row : -1;
        w->lo[i] =
            used ? kv_window_start_prompt(a->kv.geom, a->window[head], a->pos0 + row) : INT32_MAX;
        w->max[i] = -INFINITY;
        w->sum[i] = 0.0f;
        for (int d = 0; d < dim; d++)
            w->q[(int64_t)d * ATTN_LANES + i] = used ? q[d] * a->scale : 0.0f;
    }
    memset(w->o, 0, sizeof(float) * (size_t)dim * ATTN_LANES);
}

VEC_FN void widen_row(float *out, const char *row, int dim, const enum dtype dt)
{
    int d = 0;

    for (; d + VW <= dim; d += VW)
        v_store(out + d, v_load_as(row + (size_t)d * dtype_bytes(dt), dt));
    if (d < dim) {
        float lane[VW];

        v_store(lane, v_load_tail(row + (size_t)d * dtype_bytes(dt), dt, dim - d));
        memcpy(out + d, lane, sizeof(float) * (size_t)(dim - d));
    }
}

/* Keys j0 .. j0 + 63 as f32; those in nobody's reach become zeros. */
VEC_FN void prompt_gather(const struct attn_prompt_args *a, struct prompt_work *w, int j0,
                          int32_t lo_min, int32_t hi_max, const enum dtype dt)
{
    int dim = a->kv.head_dim, pe = a->kv.page_entries;
    size_t row_bytes = (size_t)dim * dtype_bytes(dt);

    for (int t = 0; t < TILE; t++) {
        int32_t j = j0 + t;
        float *k = w->k + (int64_t)t * dim, *v = w->v + (int64_t)t * dim;

        if (j > hi_max || (j < lo_min && j >= w->sink)) {
            memset(k, 0, sizeof(float) * (size_t)dim);
            memset(v, 0, sizeof(float) * (size_t)dim);
        } else if (j >= a->pos0) {
            size_t at = (size_t)(j - a->pos0) * a->chunk_stride;

            widen_row(k, a->k_chunk + at, dim, dt);
            widen_row(v, a->v_chunk + at, dim, dt);
        } else {
            int index = kv_index_of(a->kv.geom, j);
            const char *page = kv_entry_page(&a->kv, index);
            const char *at = page + (size_t)(index % pe) * row_bytes;

            widen_row(k, at, dim, dt);
            widen_row(v, at + (size_t)pe * row_bytes, dim, dt);
        }
    }
}

/* Scores of a tile to weights, for the vector of lanes at c. */
VEC_FN void prompt_softmax(struct prompt_work *w, int j0, int c, bool masked)
{
    float *s = w->score + c;
    vf old = v_load(w->max + c), m = old, sum = v_zero(), keep;

    if (masked) {
        vi lo = vi_load(w->lo + c), hi = vi_load(w->hi + c), sink = vi_set1(w->sink);

        for (int t = 0; t < TILE; t++) {
            vf x = v_mask_span(v_load(s + t * ATTN_LANES), vi_set1(j0 + t), sink, lo, hi);

            v_store(s + t * ATTN_LANES, x);
            m = v_max(x, m);
        }
    } else {
        for (int t = 0; t < TILE; t++)
            m = v_max(v_load(s + t * ATTN_LANES), m);
    }
    for (int t = 0; t < TILE; t++) {
        vf x = v_exp(v_load(s + t * ATTN_LANES) - m); /* NaN - NaN of an unseen tile gives 0 */

        v_store(s + t * ATTN_LANES, x);
        sum = sum + x;
    }
    keep = v_exp(old - m);
    v_store(w->keep + c, keep);
    v_store(w->sum + c, v_fma(v_load(w->sum + c), keep, sum));
    v_store(w->max + c, m);
}

#define ATTN_OUTS (GEMM_OUTS >= 8 ? 8 : 4) /* divides the tile and every head_dim */

/* out[i][lanes at c] = sum over k of m[i * si + k * sk] * x[k][lanes at c], i < n_out. */
VEC_FN void prompt_product(float *out, const float *m, int64_t si, int64_t sk, const float *x,
                           int n_out, int n, int c, const int G)
{
    for (int i = 0; i < n_out; i += ATTN_OUTS)
        outer_sum(out + (int64_t)i * ATTN_LANES + c, ATTN_LANES, m + i * si, si, sk, x + c, VW,
                  ATTN_LANES, n, ATTN_OUTS, G);
}

VEC_FN void prompt_tile(struct prompt_work *w, int j0, int dim, int c, bool masked, const int G)
{
    prompt_product(w->score, w->k, dim, 1, w->q, TILE, dim, c, G);
    for (int g = 0; g < G; g++)
        prompt_softmax(w, j0, c + g * VW, masked);
    prompt_product(w->sum_pv, w->v, 1, dim, w->score, dim, TILE, c, G);
    for (int d = 0; d < dim; d++) {
        for (int g = 0; g < G; g++) {
            float *o = w->o + (int64_t)d * ATTN_LANES + c + g * VW;

            v_store(o, v_fma(v_load(o), v_load(w->keep + c + g * VW),
                             v_load(w->sum_pv + (int64_t)d * ATTN_LANES + c + g * VW)));
        }
    }
}

VEC_FN void prompt_write(const struct attn_prompt_args *a, struct prompt_work *w)
{
    int dim = a->kv.head_dim;

    for (int i = 0; i < a->n_lanes; i++) {
        int row = (a->lane0 + i) / a->group, head = (a->lane0 + i) % a->group;
        float *out = a->out + row * a->ldq + (int64_t)head * dim;
        float f = w->sum[i] > 0.0f ? 1.0f / w->sum[i] : 0.0f;

        for (int d = 0; d < dim; d++)
            out[d] = w->o[(int64_t)d * ATTN_LANES + i] * f;
    }
}

static void gather_any(const struct attn_prompt_args *a, struct prompt_work *w, int j0,
                       int32_t lo_min, int32_t hi_max)
{
    if (a->kv.dtype == DTYPE_F32)
        prompt_gather(a, w, j0, lo_min, hi_max, DTYPE_F32);
    else if (a->kv.dtype == DTYPE_BF16)
        prompt_gather(a, w, j0, lo_min, hi_max, DTYPE_BF16);
    else
        prompt_gather(a, w, j0, lo_min, hi_max, DTYPE_F16);
}

static void attn_prompt(const struct attn_prompt_args *a, float *scratch)
{
    int dim = a->kv.head_dim, n_vecs = (a->n_lanes + VW - 1) / VW;
    int32_t lo_min = INT32_MAX, lo_max = 0, hi_min = INT32_MAX, hi_max = 0;
    struct prompt_work w;

    w.k = scratch;
    w.v = w.k + TILE * dim;
    w.q = w.v + TILE * dim;
    w.o = w.q + dim * ATTN_LANES;
    w.sum_pv = w.o + dim * ATTN_LANES;
    w.score = w.sum_pv + dim * ATTN_LANES;
    prompt_lanes(a, &w);
    for (int i = 0; i < a->n_lanes; i++) {
        lo_min = w.lo[i] < lo_min ? w.lo[i] : lo_min;
        lo_max = w.lo[i] > lo_max ? w.lo[i] : lo_max;
        hi_min = w.hi[i] < hi_min ? w.hi[i] : hi_min;
        hi_max = w.hi[i] > hi_max ? w.hi[i] : hi_max;
    }
    for (int j0 = 0; j0 <= hi_max; j0 += TILE) {
        int last = j0 + TILE - 1;
        bool masked = last > hi_min || !(j0 >= lo_max || last < w.sink);
        int v = 0;

        if (last < lo_min && j0 >= w.sink) {
            j0 = lo_min / TILE * TILE - TILE; /* on to the window's first tile */
            continue;
        }
        gather_any(a, &w, j0, lo_min, hi_max);
        if (n_vecs % 2) {
            prompt_tile(&w, j0, dim, 0, masked || n_vecs * VW > a->n_lanes, 1);
            v = 1;
        }
        for (; v < n_vecs; v += 2)
            prompt_tile(&w, j0, dim, v * VW, masked || n_vecs * VW > a->n_lanes, 2);
    }
    prompt_write(a, &w);
}

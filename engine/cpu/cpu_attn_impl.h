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

/* score[g][key], one key's products with up to four heads at a time. */
VEC_FN void decode_scores_of(float *score, const char *row, const float *q, int dim,
                             const enum dtype dt, const int G)
{
    vf acc[4];
    int d = 0;

#pragma GCC unroll 4
    for (int i = 0; i < G; i++)
        acc[i] = v_zero();
    for (; d + VW <= dim; d += VW) {
        vf kv = v_load_as(row + (size_t)d * dtype_bytes(dt), dt);

#pragma GCC unroll 4
        for (int i = 0; i < G; i++)
            acc[i] = v_fma(kv, v_load(q + (int64_t)i * dim + d), acc[i]);
    }
    if (d < dim) {
        vf kv = v_load_tail(row + (size_t)d * dtype_bytes(dt), dt, dim - d);

        for (int i = 0; i < G; i++)
            acc[i] = v_fma(kv, v_load_tail(q + (int64_t)i * dim + d, DTYPE_F32, dim - d), acc[i]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < G; i++)
        score[i * TILE] = v_sum(acc[i]);
}

/* Also asks for each key's value, v_ahead bytes further on: it is wanted next. */
VEC_FN void decode_scores(float *score, const char *k, size_t v_ahead, const float *q, int group,
                          int n, int dim, const enum dtype dt)
{
    size_t row_bytes = (size_t)dim * dtype_bytes(dt);

    for (int key = 0; key < n; key++) {
        const char *row = k + (size_t)key * row_bytes;
        int g = 0;

        for (size_t at = 0; at < row_bytes; at += 64)
            __builtin_prefetch(row + v_ahead + at, 0, 3);
        for (; g + 4 <= group; g += 4)
            decode_scores_of(score + g * TILE + key, row, q + (int64_t)g * dim, dim, dt, 4);
        for (; g < group; g++)
            decode_scores_of(score + g * TILE + key, row, q + (int64_t)g * dim, dim, dt, 1);
    }
}

/* o[g] = o[g] * keep[g] + sum of weight[g][key] * v[key]: G heads, D vectors of dims from d on. */
VEC_FN void decode_values(float *o, const float *weight, const float *keep, const char *v, int n,
                          int dim, int d, const enum dtype dt, const int G, const int D)
{
    size_t esize = dtype_bytes(dt);
    int m = dim - d < VW ? dim - d : VW; /* below VW only where D is 1 */
    vf acc[4][4];

#pragma GCC unroll 4
    for (int g = 0; g < G; g++) {
#pragma GCC unroll 4
        for (int i = 0; i < D; i++)
            acc[g][i] = v_zero();
    }
    for (int key = 0; key < n; key++) {
        const char *row = v + ((size_t)key * (size_t)dim + (size_t)d) * esize;
        vf vv[4];

#pragma GCC unroll 4
        for (int i = 0; i < D; i++)
            vv[i] = D > 1 || m == VW ? v_load_as(row + (size_t)(i * VW) * esize, dt)
                                     : v_load_tail(row, dt, m);
#pragma GCC unroll 4
        for (int g = 0; g < G; g++) {
            vf w = v_set1(weight[g * TILE + key]);

#pragma GCC unroll 4
            for (int i = 0; i < D; i++)
                acc[g][i] = v_fma(w, vv[i], acc[g][i]);
        }
    }
#pragma GCC unroll 4
    for (int g = 0; g < G; g++) {
        float *at = o + (int64_t)g * dim + d;

        if (D > 1 || m == VW) {
#pragma GCC unroll 4
            for (int i = 0; i < D; i++)
                v_store(at + i * VW, v_fma(v_load(at + i * VW), v_set1(keep[g]), acc[g][i]));
        } else {
            float lane[VW];

            v_store(lane, v_fma(v_load_tail(at, DTYPE_F32, m), v_set1(keep[g]), acc[g][0]));
            memcpy(at, lane, sizeof(float) * (size_t)m);
        }
    }
}

#define VALUE_VECS (GEMM_OUTS >= 8 ? 4 : 2) /* 4 heads of 4 vectors in 32 registers, of 2 in 16 */

VEC_FN void decode_values_all(float *o, const float *weight, const float *keep, const char *v,
                              int n, int dim, int group, const enum dtype dt)
{
    for (int d = 0; d < dim;) {
        int wide = d + VALUE_VECS * VW <= dim, g = 0;

        for (; g + 4 <= group; g += 4) {
            if (wide)
                decode_values(o + (int64_t)g * dim, weight + g * TILE, keep + g, v, n, dim, d, dt,
                              4, VALUE_VECS);
            else
                decode_values(o + (int64_t)g * dim, weight + g * TILE, keep + g, v, n, dim, d, dt,
                              4, 1);
        }
        for (; g < group; g++) {
            if (wide)
                decode_values(o + (int64_t)g * dim, weight + g * TILE, keep + g, v, n, dim, d, dt,
                              1, VALUE_VECS);
            else
                decode_values(o + (int64_t)g * dim, weight + g * TILE, keep + g, v, n, dim, d, dt,
                              1, 1);
        }
        d += wide ? VALUE_VECS * VW : VW;
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

VEC_FN void attn_decode_of(const struct attn_decode_args *a, const enum dtype dt)
{
    float score[ATTN_MAX_GROUP * TILE] __attribute__((aligned(64)));
    float keep[ATTN_MAX_GROUP];
    int dim = a->kv.head_dim, max_window = 0;
    size_t esize = dtype_bytes(dt);

    for (int g = 0; g < a->group; g++) {
        a->state[g] = (struct attn_state){.max = -INFINITY, .sum = 0.0f};
        max_window = a->window[g] > max_window ? a->window[g] : max_window;
    }
    memset(a->o, 0, sizeof(float) * (size_t)a->group * (size_t)dim);
    for (int index = a->begin; index < a->end;) {
        struct decode_run run = decode_next_run(a, &index, a->end);
        const char *k, *v;

        decode_trim_run(a, &run, max_window);
        if (run.n == 0)
            continue;
        k = kv_entry_page(&a->kv, run.index) +
            (size_t)(run.index % a->kv.page_entries) * (size_t)dim * esize;
        v = k + (size_t)a->kv.page_entries * (size_t)dim * esize;
        decode_scores(score, k, (size_t)(v - k), a->q, a->group, run.n, dim, dt);
        for (int g = 0; g < a->group; g++) {
            float *s = score + g * TILE;

            for (int i = 0; i < run.n; i++)
                s[i] *= a->scale;
            /* Later keys of a run are seen if its first one is. */
            for (int i = 0; i < run.n; i++) {
                if (kv_sees_decode(a->kv.geom, a->window[g], a->pos, run.pos + i))
                    break;
                s[i] = -INFINITY;
            }
            keep[g] = decode_softmax(s, &a->state[g], run.n);
        }
        decode_values_all(a->o, score, keep, v, run.n, dim, a->group, dt);
    }
}

static void attn_decode(const struct attn_decode_args *a)
{
    if (a->kv.dtype == DTYPE_F32)
        attn_decode_of(a, DTYPE_F32);
    else if (a->kv.dtype == DTYPE_BF16)
        attn_decode_of(a, DTYPE_BF16);
    else
        attn_decode_of(a, DTYPE_F16);
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

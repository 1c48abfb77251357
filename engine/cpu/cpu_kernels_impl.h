/*
 * cpu_kernels_impl - the inner loops in terms of cpu_vec.h, compiled once per instruction set.
 *
 * The including file defines KERNELS_NAME, the table's symbol. Loops with constant bounds are
 * unrolled by pragma: their arrays then live in registers.
 */
#include "engine/cpu/cpu_gemm_impl.h"
#include "engine/cpu/cpu_kernels.h"
#include "engine/cpu/cpu_vec.h"

#if defined(__AVX512F__)
#define GEMM_OUTS 12 /* 12 x 2 sums leave 8 of the 32 registers for operands */
#else
#define GEMM_OUTS 6 /* 6 x 2 sums of 16 registers */
#endif
#define GEMM_GROUPS 2
#define GEMM_PANELS 4 /* panels of a work item: its packed rows are read once for all of them */

/* ---- products of decode rows ---- */

#define DOT_STEP (2 * VW)

/* n < DOT_STEP elements as a whole step, zeros behind them. */
VEC_FN void step_tail(char *out, const char *from, int n, const enum dtype dt)
{
    memset(out, 0, DOT_STEP * dtype_bytes(dt));
    memcpy(out, from, (size_t)n * dtype_bytes(dt));
}

/*
 * One step of k for R rows and O outputs: 2 VW elements, first one half of each weight's vector,
 * then the other, so that the sums and one operand are all that lives in registers.
 */
VEC_FN void dot_step(vf acc[4][4], const char *const w[4], const float *x, int64_t ldx,
                     const enum dtype dt, const int R, const int O)
{
    vf half[2][4];

#pragma GCC unroll 4
    for (int i = 0; i < O; i++)
        v_load_pair(w[i], dt, &half[0][i], &half[1][i]);
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            vf xv = v_load(x + r * ldx + h * VW);

#pragma GCC unroll 4
            for (int i = 0; i < O; i++)
                acc[i][r] = v_fma(half[h][i], xv, acc[i][r]);
        }
    }
}

/* R rows times O outputs: each weight is read once, each sum has one accumulator. */
VEC_FN void dot_block(const struct dot_args *a, int o, int row, const enum dtype dt, const int R,
                      const int O)
{
    vf acc[4][4];
    size_t esize = dtype_bytes(dt), w_stride = (size_t)a->n_in * esize;
    const char *base = (const char *)a->w + (size_t)o * w_stride;
    const float *x = a->x + row * a->ldx;
    int k = 0, n_full = a->n_in / DOT_STEP * DOT_STEP;

#pragma GCC unroll 4
    for (int i = 0; i < O; i++) {
#pragma GCC unroll 4
        for (int r = 0; r < R; r++)
            acc[i][r] = v_zero();
    }
    for (; k < n_full; k += DOT_STEP) {
        const char *w[4];

#pragma GCC unroll 4
        for (int i = 0; i < O; i++) {
            w[i] = base + (size_t)i * w_stride + (size_t)k * esize;
            /* The same place in the next block of outputs: one line a step of bf16. */
            __builtin_prefetch(w[i] + (size_t)O * w_stride, 0, 2);
        }
        dot_step(acc, w, x + k, a->ldx, dt, R, O);
    }
    if (k < a->n_in) { /* x is padded with zeros */
        char tail[4][DOT_STEP * 4] __attribute__((aligned(64)));
        const char *w[4];

        for (int i = 0; i < O; i++) {
            step_tail(tail[i], base + (size_t)i * w_stride + (size_t)k * esize, a->n_in - k, dt);
            w[i] = tail[i];
        }
        dot_step(acc, w, x + k, a->ldx, dt, R, O);
    }
#pragma GCC unroll 4
    for (int i = 0; i < O; i++) {
#pragma GCC unroll 4
        for (int r = 0; r < R; r++)
            a->y[(row + r) * a->ldy + o + i] = v_sum(acc[i][r]);
    }
}

/* All outputs of R rows, O at a time and the rest one by one. */
VEC_FN void dot_rows(const struct dot_args *a, int o, int end, int row, const enum dtype dt,
                     const int R, const int O)
{
    for (; o + O <= end; o += O)
        dot_block(a, o, row, dt, R, O);
    for (; o < end; o++)
        dot_block(a, o, row, dt, R, 1);
}

#define DOT_OUTS_4 (GEMM_OUTS >= 8 ? 4 : 2) /* of 32 registers, of 16 */
#define DOT_STRIP  24 /* outputs whose weights stay in the nearest caches for all rows */

VEC_FN void dot_range(const struct dot_args *a, int out0, int n_out, const enum dtype dt)
{
    int end_all = out0 + n_out;

    for (int o = out0; o < end_all; o += DOT_STRIP) {
        int end = o + DOT_STRIP < end_all ? o + DOT_STRIP : end_all;
        int row = 0;

        for (; row + 4 <= a->n_rows; row += 4)
            dot_rows(a, o, end, row, dt, 4, DOT_OUTS_4);
        for (; row + 2 <= a->n_rows; row += 2)
            dot_rows(a, o, end, row, dt, 2, 4);
        for (; row < a->n_rows; row++)
            dot_rows(a, o, end, row, dt, 1, 4);
    }
}

/* Pads with zeros, and for bf16 puts even before odd elements in each step. */
static void dot_prepare(float *out, const float *x, int n_in, enum dtype dtype)
{
    for (int k = 0; k < n_in; k += DOT_STEP) {
        char tail[DOT_STEP * 4];
        const float *at = x + k;
        vf lo, hi;

        if (n_in - k < DOT_STEP) {
            step_tail(tail, (const char *)at, n_in - k, DTYPE_F32);
            at = (const float *)tail;
        }
        lo = v_load(at);
        hi = v_load(at + VW);
        if (dtype == DTYPE_BF16)
            v_unzip(&lo, &hi);
        v_store(out + k, lo);
        v_store(out + k + VW, hi);
    }
}

static void dot(const struct dot_args *a, int out0, int n_out)
{
    if (a->dtype == DTYPE_F32)
        dot_range(a, out0, n_out, DTYPE_F32);
    else if (a->dtype == DTYPE_BF16)
        dot_range(a, out0, n_out, DTYPE_BF16);
    else
        dot_range(a, out0, n_out, DTYPE_F16);
}

/* ---- products of prompt rows, f32 ---- */

/*
 * sum[i][g] += w[i * si + k * sk] * x[g][k] over k ascending, for O outputs and G vectors of rows.
 * The weights are broadcast one by one, so they may lie any way.
 */
VEC_FN void outer_sum(float *sum, int ld, const float *w, int64_t si, int64_t sk, const float *x,
                      int64_t xg, int64_t xk, int n, const int O, const int G)
{
    vf acc[16][GEMM_GROUPS];

#pragma GCC unroll 16
    for (int i = 0; i < O; i++) {
#pragma GCC unroll 2
        for (int g = 0; g < G; g++)
            acc[i][g] = v_zero();
    }
    for (int k = 0; k < n; k++) {
        vf xv[GEMM_GROUPS];

#pragma GCC unroll 2
        for (int g = 0; g < G; g++)
            xv[g] = v_load(x + g * xg + k * xk);
#pragma GCC unroll 16
        for (int i = 0; i < O; i++) {
            vf wv = v_set1(w[i * si + k * sk]);

#pragma GCC unroll 2
            for (int g = 0; g < G; g++)
                acc[i][g] = v_fma(wv, xv[g], acc[i][g]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < O; i++) {
#pragma GCC unroll 2
        for (int g = 0; g < G; g++)
            v_store(sum + (int64_t)i * ld + g * VW, acc[i][g]);
    }
}

/*
 * Rows o .. of w as f32 [n_in, GEMM_OUTS]; outputs beyond n are 0. VW values of all rows go at once
 * through a transpose of VW by VW, whose last rows may be missing: a store's last lanes are
 * overwritten by the next store.
 */
VEC_FN void panel_fill(float *panel, const void *w, int o, int n, int n_in, const enum dtype dt)
{
    size_t esize = dtype_bytes(dt), row_bytes = (size_t)n_in * esize;
    const char *rows = (const char *)w + (size_t)o * row_bytes;
    int k0 = 0;

#if VW >= GEMM_OUTS
    for (; k0 + 2 * VW <= n_in; k0 += VW) { /* the last step is left to the plain loop */
        vf r[VW];

#pragma GCC unroll 16
        for (int i = 0; i < VW; i++)
            r[i] =
                i < n ? v_load_as(rows + (size_t)i * row_bytes + (size_t)k0 * esize, dt) : v_zero();
        v_transpose(r);
#pragma GCC unroll 16
        for (int i = 0; i < VW; i++)
            v_store(panel + (int64_t)(k0 + i) * GEMM_OUTS, r[i]);
    }
#endif
    for (int i = 0; i < GEMM_OUTS; i++) {
        for (int k = k0; k < n_in; k += VW) {
            int m = n_in - k < VW ? n_in - k : VW;
            const char *at = rows + (size_t)i * row_bytes + (size_t)k * esize;
            float lane[VW];

            v_store(lane, i >= n ? v_zero() : m == VW ? v_load_as(at, dt) : v_load_tail(at, dt, m));
            for (int j = 0; j < m; j++)
                panel[(int64_t)(k + j) * GEMM_OUTS + i] = lane[j];
        }
    }
}

static void panel_fill_any(float *panel, const void *w, int o, int n, int n_in, enum dtype dt)
{
    if (dt == DTYPE_F32)
        panel_fill(panel, w, o, n, n_in, DTYPE_F32);
    else if (dt == DTYPE_BF16)
        panel_fill(panel, w, o, n, n_in, DTYPE_BF16);
    else
        panel_fill(panel, w, o, n, n_in, DTYPE_F16);
}

static size_t gemm_f32_scratch(int n_in)
{
    return sizeof(float) * GEMM_OUTS * (2 * (size_t)n_in + 2 * GEMM_GROUPS * VW);
}

static void gemm_f32_pack(void *group, const float *x, int64_t ldx, int n_rows, int n_in)
{
    float *out = group;
    int k0 = 0;

    for (; k0 + VW <= n_in; k0 += VW) {
        vf v[VW];

#pragma GCC unroll 16
        for (int r = 0; r < VW; r++)
            v[r] = r < n_rows ? v_load(x + r * ldx + k0) : v_zero();
        v_transpose(v);
#pragma GCC unroll 16
        for (int r = 0; r < VW; r++)
            v_store(out + (int64_t)(k0 + r) * VW, v[r]);
    }
    for (int r = 0; r < VW; r++) {
        for (int k = k0; k < n_in; k++)
            out[(int64_t)k * VW + r] = r < n_rows ? x[r * ldx + k] : 0.0f;
    }
}

static void gemm_f32_epilogue(const struct gemm_args *a, const struct gemm_tile *t, int n_groups)
{
    if (a->epilogue != GEMM_ACT_PACK) {
        tile_store(a, t, n_groups * VW);
        return;
    }
    for (int g = 0; g < n_groups; g++) {
        float *h = (float *)a->h + (t->row0 / VW + g) * (int64_t)a->h_dim * VW;

        for (int i = 0; i < t->n_out; i++)
            v_store(h + (int64_t)(t->out0 + i) * VW, tile_act(a, t, i, g * VW));
    }
}

static void gemm_f32_panel(const struct gemm_args *a, int o, int n, float *scratch)
{
    size_t panel_len = (size_t)a->n_in * GEMM_OUTS;
    float *panel = scratch, *panel_up = scratch + panel_len;
    float *sum = panel_up + panel_len, *sum_up = sum + GEMM_OUTS * GEMM_GROUPS * VW;
    int n_groups = (a->n_rows + VW - 1) / VW;
    int ld = GEMM_GROUPS * VW;
    int64_t group_len = (int64_t)a->n_in * VW;

    panel_fill_any(panel, a->w, o, n, a->n_in, a->dtype);
    if (a->w_up)
        panel_fill_any(panel_up, a->w_up, o, n, a->n_in, a->dtype);
    for (int g = 0; g < n_groups; g += GEMM_GROUPS) {
        const float *x = (const float *)a->packed + g * group_len;
        int two = n_groups - g >= 2;
        struct gemm_tile t = {.sum = sum,
                              .sum_up = a->w_up ? sum_up : NULL,
                              .ld = ld,
                              .out0 = o,
                              .n_out = n,
                              .row0 = g * VW};

        for (int side = 0; side < (a->w_up ? 2 : 1); side++) {
            float *s = side ? sum_up : sum;
            const float *p = side ? panel_up : panel;

            if (two)
                outer_sum(s, ld, p, 1, GEMM_OUTS, x, group_len, VW, a->n_in, GEMM_OUTS, 2);
            else
                outer_sum(s, ld, p, 1, GEMM_OUTS, x, group_len, VW, a->n_in, GEMM_OUTS, 1);
        }
        gemm_f32_epilogue(a, &t, two ? 2 : 1);
    }
}

static void gemm_f32_run(const struct gemm_args *a, struct gemm_queue *q, void *scratch)
{
    int out0, n_out;

    while (gemm_queue_take(q, &out0, &n_out)) {
        for (int o = out0; o < out0 + n_out; o += GEMM_OUTS) {
            int n = out0 + n_out - o < GEMM_OUTS ? out0 + n_out - o : GEMM_OUTS;

            gemm_f32_panel(a, o, n, scratch);
        }
    }
}

static const struct cpu_gemm gemm_f32 = {
    .name = "f32",
    .lanes = VW,
    .k_multiple = 1,
    .bf16 = false,
    .grain = GEMM_OUTS * GEMM_PANELS,
    .grain_gated = GEMM_OUTS * GEMM_PANELS,
    .grain_least = GEMM_OUTS * GEMM_PANELS,
    .scratch_bytes = gemm_f32_scratch,
    .pack = gemm_f32_pack,
    .run = gemm_f32_run,
};

/* ---- norm and activation ---- */

VEC_FN float sum_of(const float *x, int n, float mean, bool squares)
{
    vf acc = v_zero(), m = v_set1(mean);
    int i = 0;

    for (; i + VW <= n; i += VW) {
        vf d = v_load(x + i) - m;

        acc = squares ? v_fma(d, d, acc) : (vf)(acc + d);
    }
    if (i < n) {
        float lane[VW];

        v_store(lane, v_load_tail(x + i, DTYPE_F32, n - i) - m);
        for (int j = n - i; j < VW; j++)
            lane[j] = 0.0f;
        acc = squares ? v_fma(v_load(lane), v_load(lane), acc) : (vf)(acc + v_load(lane));
    }
    return v_sum(acc);
}

static void norm(float *out, const float *x, int dim, enum norm_kind kind, float eps,
                 const float *gain, const float *bias)
{
    float mean = 0.0f, r;

    if (kind == NORM_LAYER)
        mean = sum_of(x, dim, 0.0f, false) / (float)dim;
    r = 1.0f / sqrtf(sum_of(x, dim, mean, true) / (float)dim + eps);
    for (int i = 0; i < dim; i++) {
        float v = (x[i] - mean) * r * gain[i];

        out[i] = bias ? v + bias[i] : v;
    }
}

static void act(float *gate, const float *up, int n, enum act_kind kind)
{
    for (int i = 0; i < n; i += VW) {
        int m = n - i < VW ? n - i : VW;
        vf x = m == VW ? v_load(gate + i) : v_load_tail(gate + i, DTYPE_F32, m);

        x = act_vec(x, kind);
        if (up)
            x = x * (m == VW ? v_load(up + i) : v_load_tail(up + i, DTYPE_F32, m));
        if (m == VW) {
            v_store(gate + i, x);
        } else {
            float lane[VW];

            v_store(lane, x);
            memcpy(gate + i, lane, sizeof(float) * (size_t)m);
        }
    }
}

/* ---- sampling ---- */

static float logits_clean(float *out, const float *x, int n)
{
    vf lowest = v_set1(-INFINITY), highest = v_set1(FLT_MAX), m = lowest;
    float max;
    int i = 0;

    for (; i + VW <= n; i += VW) {
        vf v = v_min(v_max(v_load(x + i), lowest), highest);

        v_store(out + i, v);
        m = v_max(v, m);
    }
    max = v_max_lane(m);
    for (; i < n; i++) {
        float v = x[i] >= -INFINITY ? x[i] : -INFINITY;

        out[i] = v > FLT_MAX ? FLT_MAX : v;
        max = out[i] > max ? out[i] : max;
    }
    return max;
}

static float logits_scale(float *x, int n, float f)
{
    vf highest = v_set1(FLT_MAX), m = v_set1(-INFINITY), fv = v_set1(f);
    float max;
    int i = 0;

    for (; i + VW <= n; i += VW) {
        vf v = v_min(v_load(x + i) * fv, highest);

        v_store(x + i, v);
        m = v_max(v, m);
    }
    max = v_max_lane(m);
    for (; i < n; i++) {
        float v = x[i] * f;

        x[i] = v > FLT_MAX ? FLT_MAX : v;
        max = x[i] > max ? x[i] : max;
    }
    return max;
}

static int count_ge(const float *x, int n, float cut)
{
    vf c = v_set1(cut);
    int i = 0, count = 0;

    for (; i + VW <= n; i += VW)
        count += __builtin_popcount(v_ge_bits(v_load(x + i), c));
    for (; i < n; i++)
        count += x[i] >= cut;
    return count;
}

/* exp_weight() of a vector, 0 in lanes below the cut. */
VEC_FN void weights_of(uint64_t out[VW], vf x, float max, float cut)
{
    float lane[VW];

#if defined(__FMA__)
    vf e = v_exp(x - v_set1(max));

    v_store(lane, v_select_ge(x, v_set1(cut), e, v_zero()));
    for (int j = 0; j < VW; j++)
        out[j] = (uint64_t)(int64_t)((double)lane[j] * 1099511627776.0);
#else
    /* Without a fused multiply-add only libm has the right bits. */
    v_store(lane, x);
    for (int j = 0; j < VW; j++)
        out[j] = lane[j] >= cut ? exp_weight(lane[j] - max) : 0;
#endif
}

#if defined(__AVX512F__)
VEC_FN __m512i weights_low(__m256 e)
{
    return _mm512_cvttpd_epi64(_mm512_cvtps_pd(e) * _mm512_set1_pd(1099511627776.0));
}
#endif

static uint64_t weight_sum(const float *x, int n, float max, float cut)
{
    uint64_t sum = 0, w[VW];
    int i = 0;

#if defined(__AVX512F__)
    __m512i acc = _mm512_setzero_si512();

    for (; i + VW <= n; i += VW) {
        vf v = v_load(x + i), e;

        if (!v_ge_bits(v, v_set1(cut)))
            continue;
        e = v_select_ge(v, v_set1(cut), v_exp(v - v_set1(max)), v_zero());
        acc = _mm512_add_epi64(acc, weights_low(_mm512_castps512_ps256(e)));
        acc = _mm512_add_epi64(acc, weights_low(_mm512_extractf32x8_ps(e, 1)));
    }
    sum = (uint64_t)_mm512_reduce_add_epi64(acc);
#else
    for (; i + VW <= n; i += VW) {
        vf v = v_load(x + i);

        if (!v_ge_bits(v, v_set1(cut)))
            continue;
        weights_of(w, v, max, cut);
        for (int j = 0; j < VW; j++)
            sum += w[j];
    }
#endif
    if (i < n) {
        weights_of(w, v_load_tail(x + i, DTYPE_F32, n - i), max, cut);
        for (int j = 0; j < n - i; j++)
            sum += w[j];
    }
    return sum;
}

static int collect_ge(struct sample_cand *out, const float *x, int n, float max, float cut)
{
    int count = 0;

    for (int i = 0; i < n; i += VW) {
        int m = n - i < VW ? n - i : VW;
        vf v = m == VW ? v_load(x + i) : v_load_tail(x + i, DTYPE_F32, m);
        uint32_t bits = v_ge_bits(v, v_set1(cut)) & (uint32_t)((1ull << m) - 1);
        uint64_t w[VW];

        if (!bits)
            continue;
        weights_of(w, v, max, cut);
        for (; bits; bits &= bits - 1) {
            int j = __builtin_ctz(bits);

            out[count++] = (struct sample_cand){.weight = w[j], .logit = x[i + j], .token = i + j};
        }
    }
    return count;
}

static uint64_t stream_read(const void *p, size_t bytes)
{
    const float *x = p;
    vf acc[8];
    float s = 0.0f;

    for (int j = 0; j < 8; j++)
        acc[j] = v_zero();
    for (size_t i = 0; i + 8 * VW <= bytes / 4; i += 8 * VW) {
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++)
            acc[j] = acc[j] + v_load(x + i + j * VW);
    }
    for (int j = 0; j < 8; j++)
        s += v_sum(acc[j]);
    return s > 0.0f;
}

#include "engine/cpu/cpu_attn_impl.h"

const struct cpu_kernels KERNELS_NAME = {
    .gemm = &gemm_f32,
    .name = KERNELS_LABEL,
    .dot = dot,
    .dot_prepare = dot_prepare,
    .norm = norm,
    .act = act,
    .attn_decode = attn_decode,
    .attn_prompt = attn_prompt,
    .attn_prompt_scratch = attn_prompt_scratch,
    .logits_clean = logits_clean,
    .logits_scale = logits_scale,
    .weight_sum = weight_sum,
    .count_ge = count_ge,
    .collect_ge = collect_ge,
    .stream_read = stream_read,
};

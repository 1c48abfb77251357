/*
 * cpu_gemm_avx512bf16 - products of prompt rows by vdpbf16ps: 32 products an instruction.
 *
 * A vector holds 16 rows, a weight pair is broadcast to all of them. The pair is the innermost
 * step of the sum, k ascends, and each (row, output) has one accumulator: no row sees another.
 */
#if defined(__x86_64__)
#include "engine/cpu/cpu_gemm_impl.h"

#define OUTS       12 /* 12 x 2 sums leave 8 registers for operands */
#define GROUPS     2
#define GRAIN      (4 * OUTS)
#define K_MULTIPLE 32 /* as AMX has it, so that both share the packing */

static int k_pad(int n_in)
{
    return (n_in + K_MULTIPLE - 1) / K_MULTIPLE * K_MULTIPLE;
}

/*
 * Weight pairs of OUTS outputs: [k_pad / 2, OUTS] of 32 bits; beyond outputs and n_in zeros.
 * Sixteen pairs at a time are transposed; each store's last words are overwritten by the next, and
 * those of the very last lie in the panel or the sums behind, which are filled later.
 */
static void panel_fill(uint32_t *panel, const uint16_t *w, int o, int n, int n_in)
{
    const uint16_t *rows = w + (int64_t)o * n_in;

    for (int k = 0; k < n_in; k += 2 * VW) {
        int left = n_in - k;
        __mmask32 there = left >= 2 * VW ? 0xffffffffu : (1u << left) - 1;
        vf r[VW];

#pragma GCC unroll 16
        for (int i = 0; i < VW; i++)
            r[i] = i < n ? _mm512_castsi512_ps(
                               _mm512_maskz_loadu_epi16(there, rows + (int64_t)i * n_in + k))
                         : v_zero();
        v_transpose(r);
#pragma GCC unroll 16
        for (int i = 0; i < VW; i++)
            v_store((float *)(panel + (int64_t)(k / 2 + i) * OUTS), r[i]);
    }
}

VEC_FN void pair_sum(float *sum, int ld, const uint32_t *w, const uint32_t *x, int64_t xg,
                     int n_pairs, const int G)
{
    __m512 acc[OUTS][GROUPS];

#pragma GCC unroll 12
    for (int i = 0; i < OUTS; i++) {
#pragma GCC unroll 2
        for (int g = 0; g < G; g++)
            acc[i][g] = _mm512_setzero_ps();
    }
    for (int p = 0; p < n_pairs; p++) {
        __m512i xv[GROUPS];

#pragma GCC unroll 2
        for (int g = 0; g < G; g++)
            xv[g] = _mm512_loadu_si512(x + g * xg + (int64_t)p * VW);
#pragma GCC unroll 12
        for (int i = 0; i < OUTS; i++) {
            __m512i wv = _mm512_set1_epi32((int)w[(int64_t)p * OUTS + i]);

#pragma GCC unroll 2
            for (int g = 0; g < G; g++)
                acc[i][g] = _mm512_dpbf16_ps(acc[i][g], (__m512bh)wv, (__m512bh)xv[g]);
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < OUTS; i++) {
#pragma GCC unroll 2
        for (int g = 0; g < G; g++)
            v_store(sum + (int64_t)i * ld + g * VW, acc[i][g]);
    }
}

static size_t scratch_bytes(int n_in)
{
    return 2 * sizeof(uint32_t) * OUTS * (size_t)k_pad(n_in) / 2 +
           2 * sizeof(float) * OUTS * GROUPS * VW;
}

void cpu_gemm_pack_bf16(void *group, const float *x, int64_t ldx, int n_rows, int n_in);
void cpu_gemm_epilogue_bf16(const struct gemm_args *a, const struct gemm_tile *t, int n_groups);

/* Pairs (k, k + 1) of 16 rows: one row's pairs are strided by 16 words. */
void cpu_gemm_pack_bf16(void *group, const float *x, int64_t ldx, int n_rows, int n_in)
{
    uint32_t *out = group;
    int n_pairs = k_pad(n_in) / 2;

    for (int p0 = 0; p0 < n_pairs; p0 += VW) {
        vf r[VW];

        /* Row r's 32 values become 16 words; the transpose makes words of 16 rows contiguous. */
        for (int i = 0; i < VW; i++) {
            const float *at = x + i * ldx + 2 * p0;
            int left = i < n_rows ? n_in - 2 * p0 : 0;
            vf lo = v_zero(), hi = v_zero();

            if (left >= 2 * VW) {
                lo = v_load(at);
                hi = v_load(at + VW);
            } else if (left > 0) {
                lo = left >= VW ? v_load(at) : v_load_tail(at, DTYPE_F32, left);
                hi = left > VW ? v_load_tail(at + VW, DTYPE_F32, left - VW) : v_zero();
            }
            r[i] = _mm512_castsi512_ps((__m512i)_mm512_cvtne2ps_pbh(hi, lo));
        }
        v_transpose(r);
        for (int i = 0; i < VW && p0 + i < n_pairs; i++)
            v_store((float *)(out + (int64_t)(p0 + i) * VW), r[i]);
    }
}

/* Also for the AMX form, whose tiles and packing are the same. */
void cpu_gemm_epilogue_bf16(const struct gemm_args *a, const struct gemm_tile *t, int n_groups)
{
    if (a->epilogue != GEMM_ACT_PACK) {
        tile_store(a, t, n_groups * VW);
        return;
    }
    for (int g = 0; g < n_groups; g++) {
        uint32_t *h = (uint32_t *)a->h + (t->row0 / VW + g) * (int64_t)(a->h_dim / 2) * VW;

        for (int i = 0; i < t->n_out; i += 2) {
            vf even = tile_act(a, t, i, g * VW);
            vf odd = i + 1 < t->n_out ? tile_act(a, t, i + 1, g * VW) : v_zero();
            __m512i lo = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even));
            __m512i hi = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd));

            _mm512_storeu_si512(h + (int64_t)(t->out0 + i) / 2 * VW,
                                _mm512_or_si512(lo, _mm512_slli_epi32(hi, 16)));
        }
    }
}

static void run_panel(const struct gemm_args *a, int o, int n, void *scratch)
{
    int n_pairs = (a->n_in + 1) / 2, n_groups = (a->n_rows + VW - 1) / VW;
    size_t panel_len = (size_t)(k_pad(a->n_in) / 2) * OUTS;
    uint32_t *panel = scratch, *panel_up = panel + panel_len;
    float *sum = (float *)(panel_up + panel_len), *sum_up = sum + OUTS * GROUPS * VW;
    int64_t group_len = (int64_t)(k_pad(a->n_in) / 2) * VW;
    int ld = GROUPS * VW;

    panel_fill(panel, a->w, o, n, a->n_in);
    if (a->w_up)
        panel_fill(panel_up, a->w_up, o, n, a->n_in);
    for (int g = 0; g < n_groups; g += GROUPS) {
        const uint32_t *x = (const uint32_t *)a->packed + g * group_len;
        struct gemm_tile t = {.sum = sum,
                              .sum_up = a->w_up ? sum_up : NULL,
                              .ld = ld,
                              .out0 = o,
                              .n_out = n,
                              .row0 = g * VW};
        bool two = n_groups - g >= 2;

        if (two)
            pair_sum(sum, ld, panel, x, group_len, n_pairs, 2);
        else
            pair_sum(sum, ld, panel, x, group_len, n_pairs, 1);
        if (a->w_up && two)
            pair_sum(sum_up, ld, panel_up, x, group_len, n_pairs, 2);
        else if (a->w_up)
            pair_sum(sum_up, ld, panel_up, x, group_len, n_pairs, 1);
        cpu_gemm_epilogue_bf16(a, &t, two ? 2 : 1);
    }
}

static void run(const struct gemm_args *a, struct gemm_queue *q, void *scratch)
{
    int out0, n_out;

    while (gemm_queue_take(q, &out0, &n_out)) {
        for (int o = out0; o < out0 + n_out; o += OUTS)
            run_panel(a, o, out0 + n_out - o < OUTS ? out0 + n_out - o : OUTS, scratch);
    }
}

const struct cpu_gemm cpu_gemm_avx512bf16 = {
    .name = "avx512bf16",
    .lanes = VW,
    .k_multiple = K_MULTIPLE,
    .bf16 = true,
    .grain = GRAIN,
    .grain_gated = GRAIN,
    .grain_least = GRAIN,
    .scratch_bytes = scratch_bytes,
    .pack = cpu_gemm_pack_bf16,
    .run = run,
};
#endif

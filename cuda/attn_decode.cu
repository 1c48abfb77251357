/*
 * attn_decode.cu - one new token per sequence attends to the pages of its heads.
 *
 *   q     act  [n_rows, n_heads, head_dim]
 *   k, v  kv   per (slot, layer, kv_head) a list of pages [2, page_entries, head_dim]: sink, ring
 *   out   act  [n_rows, n_heads, head_dim]; sums and softmax state in f32
 *
 * Work     one item per (row, kv_head, part of its query heads, chunk of 1,024 indices).
 *          Chunks are cut by index and merged in ascending order, so a row's bits depend on nothing
 *          but its own sequence. Persistent CTAs are dealt items and draw the last ones from a
 * counter; who has what does not matter. Whoever finishes the last chunk of a (row, head) merges
 * it: no second kernel. Roles    planner warps find items and page ids two or three ahead; a
 * producer warp keeps all stages of shared memory under copy (bulk copies of whole pages on sm_90,
 * cp.async on sm_80); consumers hold a softmax state per warp and never wait for each other;
 * finishers merge the warps' states and write. So the loads never stop at the border of an item.
 * Tile     32 KiB a stage (16 KiB of K, as much V): with 6 stages some 190 KiB are in flight an SM
 * Arithm.  MHA and groups of 2 on CUDA cores: a quarter to a half of the issue slots. Groups from 3
 *          on tensor cores, 8 query heads padded to the 16 rows of an mma; more heads are parts.
 * Bound    HBM: 4 * head_dim bytes per (row, kv_head, key) in 16 bits
 * Measured see SPEED.md
 * Limits   head_dim 32, 64, 80, 96, 128, 256; page_entries 16 to 256, a power of 2
 * Checked  against cpu in tests/cuda/test_attn.c
 */
#include "base/check.h"
#include "cuda/attn_decode_math.cuh"
#include "cuda/attn_decode_work.cuh"
#include "cuda/cuda_backend.h"
#include "cuda/device.cuh"
#include "cuda/launch.cuh"

#define PLAN_THREADS 1024

struct attn_plan_args {
    const struct kv_geom *geom;
    const int32_t *pos, *slot;
    int32_t *first; /* [n_layers, first_stride] */
    int n_pairs, first_stride, layer0, n_layers, n_kv_heads, n_parts;
};

/* CTA -> layer; running counts of chunks over the pairs */
static __global__ void __launch_bounds__(PLAN_THREADS)
    attn_plan_kernel(const __grid_constant__ attn_plan_args a)
{
    __shared__ int sums[PLAN_THREADS / WARP_LANES];
    int layer = a.layer0 + blockIdx.x, warp = threadIdx.x / WARP_LANES;
    int lane = threadIdx.x % WARP_LANES, carry = 0;
    int32_t *first = a.first + (int64_t)layer * a.first_stride;

    grid_wait();
    grid_launch_next();
    if (threadIdx.x == 0)
        first[0] = 0;
    for (int base = 0; base < a.n_pairs; base += PLAN_THREADS) {
        int pair = base + threadIdx.x, n = 0, before = 0, total = 0;

        if (pair < a.n_pairs) {
            int head = pair / a.n_parts % a.n_kv_heads, row = pair / a.n_parts / a.n_kv_heads;
            int64_t at = ((int64_t)a.slot[row] * a.n_layers + layer) * a.n_kv_heads + head;

            n = n_chunks_of(indices_used(a.geom[at], a.pos[row]));
        }
        for (int m = 1; m < WARP_LANES; m <<= 1) {
            int below = __shfl_up_sync(0xffffffffu, n, m);

            n += lane >= m ? below : 0;
        }
        if (lane == WARP_LANES - 1)
            sums[warp] = n;
        __syncthreads(); /* every warp's total is there */
        for (int i = 0; i < PLAN_THREADS / WARP_LANES; i++) {
            before += i < warp ? sums[i] : 0;
            total += sums[i];
        }
        if (pair < a.n_pairs)
            first[pair + 1] = carry + before + n;
        carry += total;
        __syncthreads(); /* sums have been read */
    }
}

/* What the shapes of one instance come to. */
template <typename T, int HEAD_DIM, bool MMA> struct decode_shape {
    static constexpr int BYTES = sizeof(T) * HEAD_DIM;
    static constexpr int N_CONSUMERS = MMA ? 4 : 8;
    static constexpr int MERGES = MMA ? MERGES_MMA : MERGES_CORES;
    static constexpr int TILE_KEYS = MMA            ? 64
                                     : BYTES <= 64  ? 256
                                     : BYTES <= 128 ? 128
                                     : BYTES <= 256 ? 64
                                     : BYTES <= 512 ? 32
                                                    : 16;
    static constexpr int STAGE_BYTES = 2 * TILE_KEYS * BYTES;
    static constexpr int N_THREADS = (N_CONSUMERS + 1 + N_PLANNERS + N_FINISHERS) * WARP_LANES;

    /* Behind the stages: what consumers leave to finishers, and the queries of items to come. */
    static size_t merge_bytes(int part_heads)
    {
        return MERGES * N_CONSUMERS * part_heads * (HEAD_DIM * sizeof(float) + sizeof(float2));
    }
    static size_t query_bytes(int part_heads)
    {
        return ITEM_SLOTS * part_heads * BYTES;
    }
};

/* CTA -> items drawn from a.next; warps 0.. consume, then producer, planners, finishers. */
template <typename T, int HEAD_DIM, int HEADS, bool MMA>
static __global__ void __launch_bounds__(decode_shape<T, HEAD_DIM, MMA>::N_THREADS, 1)
    attn_decode_split_kv(const __grid_constant__ attn_decode_args a)
{
    using shape = decode_shape<T, HEAD_DIM, MMA>;
    constexpr int N_WARPS = shape::N_CONSUMERS;
    extern __shared__ __align__(128) unsigned char smem[];
    __shared__ barriers bars;
    __shared__ work_item items[ITEM_SLOTS];
    __shared__ float quarter_o[N_FINISHERS * HEAD_DIM], quarter_d[N_FINISHERS];
    __shared__ int is_last;
    T *stages = (T *)smem;
    T *queries = (T *)(smem + a.n_stages * shape::STAGE_BYTES);
    float *merge_o = (float *)(queries + ITEM_SLOTS * a.part_heads * HEAD_DIM);
    float2 *merge_md = (float2 *)(merge_o + shape::MERGES * N_WARPS * a.part_heads * HEAD_DIM);
    int warp = threadIdx.x / WARP_LANES;

    if (threadIdx.x == 0) {
        for (int i = 0; i < a.n_stages; i++) {
#if HAS_BULK_COPY
            barrier_init(&bars.stage_full[i], 1);
#else
            barrier_init(&bars.stage_full[i], WARP_LANES);
#endif
            barrier_init(&bars.stage_empty[i], N_WARPS);
        }
        for (int i = 0; i < ITEM_SLOTS; i++) {
            barrier_init(&bars.item_full[i], 1);
            barrier_init(&bars.item_empty[i], N_WARPS + 1 + N_FINISHERS);
        }
        for (int i = 0; i < shape::MERGES; i++) {
            barrier_init(&bars.merge_full[i], N_WARPS);
            barrier_init(&bars.merge_empty[i], N_FINISHERS);
        }
#if HAS_BULK_COPY
        barrier_init_done();
#endif
    }
    __syncthreads(); /* the barriers are ready */
    if (warp < N_WARPS || warp > N_WARPS + N_PLANNERS)
        grid_wait(); /* producer and planner do when they must */
    if (warp < N_WARPS) {
        if constexpr (MMA)
            consume_mma<T, HEAD_DIM, N_WARPS>(a, stages, items, queries, &bars, merge_o, merge_md,
                                              warp);
        else
            consume_cores<T, HEAD_DIM, shape::TILE_KEYS, HEADS, N_WARPS>(
                a, stages, items, queries, &bars, merge_o, merge_md, warp);
    } else if (warp == N_WARPS) {
        produce<T, HEAD_DIM, shape::TILE_KEYS>(a, stages, items, &bars);
    } else if (warp <= N_WARPS + N_PLANNERS) {
        plan_items<T, HEAD_DIM>(a, items, queries, &bars, warp - N_WARPS - 1);
    } else {
        finish<T, HEAD_DIM, N_WARPS, shape::MERGES>(a, items, &bars, merge_o, merge_md, quarter_o,
                                                    quarter_d, &is_last,
                                                    warp - N_WARPS - 1 - N_PLANNERS);
    }
}

/* Work lists for this model: taken by the first step, kept until the backend closes. */
static int plan_reserve(struct cuda_backend *cb, int n_layers, int n_pairs, struct err *err)
{
    struct attn_plan *p = &cb->plan;

    if (p->n_layers >= n_layers && p->max_pairs >= n_pairs)
        return 0;
    CUDA_TRY(err, cudaStreamSynchronize(cb->stream));
    cudaFree(p->first);
    cudaFree(p->arrived);
    *p = attn_plan();
    CUDA_TRY(err,
             cudaMalloc((void **)&p->first, sizeof(int32_t) * n_layers * ((size_t)n_pairs + 1)));
    CUDA_TRY(err, cudaMalloc((void **)&p->arrived, sizeof(int32_t) * n_pairs));
    CUDA_TRY(err, cudaMemsetAsync(p->arrived, 0, sizeof(int32_t) * n_pairs, cb->stream));
    p->n_layers = n_layers;
    p->max_pairs = n_pairs;
    return 0;
}

/* How the query heads of a KV head are dealt to items. */
struct decode_parts {
    int heads, n; /* heads of a part, parts of a KV head */
    bool mma;
};

static decode_parts parts_of(const struct cuda_backend *cb, int n_heads, int n_kv_heads)
{
    int group = n_heads / n_kv_heads;
    bool wide = cb->base.act_dtype == DTYPE_F32; /* every head is a part */
    decode_parts d = {};

    d.mma = !wide && group > 2;
    d.heads = d.mma ? (group < MMA_HEADS ? group : MMA_HEADS) : wide ? 1 : group;
    d.n = (group + d.heads - 1) / d.heads;
    return d;
}

int attn_plan_launch(struct cuda_backend *cb, const struct kv_view *kv,
                     const struct step_batch *batch, int layer, struct err *err)
{
    decode_parts parts = parts_of(cb, kv->n_heads, kv->n_kv_heads);
    int pairs_per_row = kv->n_kv_heads * parts.n, rc;
    struct attn_plan_args k = {};

    if (batch->n_decode == 0 || (cb->in_step && cb->plan.valid))
        return 0;
    rc = plan_reserve(cb, kv->n_layers, cb->max_decode * pairs_per_row, err);
    if (rc < 0)
        return rc;
    k.geom = kv->geom;
    k.pos = batch->pos;
    k.slot = batch->slot;
    k.first = cb->plan.first;
    k.n_pairs = batch->n_decode * pairs_per_row;
    k.first_stride = cb->plan.max_pairs + 1;
    k.layer0 = cb->in_step ? 0 : layer;
    k.n_layers = kv->n_layers;
    k.n_kv_heads = kv->n_kv_heads;
    k.n_parts = parts.n;
    cb->plan.valid = cb->in_step;
    return launch_overlapped(cb, "attn_plan", attn_plan_kernel,
                             dim3(cb->in_step ? kv->n_layers : 1), dim3(PLAN_THREADS), 0, err, k);
}

template <typename T, int HEAD_DIM, int HEADS, bool MMA>
static int decode_start(struct cuda_backend *cb, const struct attn_args *p, bool planned_just_now,
                        struct err *err)
{
    using shape = decode_shape<T, HEAD_DIM, MMA>;
    struct attn_decode_args k = {};
    decode_parts parts = parts_of(cb, p->n_heads, p->n_kv_heads);
    int pairs_per_row, max_chunks, rows_at_once, rc;
    size_t row_state, fixed, static_smem, budget;
    cudaFuncAttributes attr;

    k.part_heads = parts.heads;
    k.n_parts = parts.n;
    static_assert(CHUNK % shape::TILE_KEYS == 0, "a chunk is whole tiles");
    k.q = p->q;
    k.out = p->out;
    k.pages = p->kv->pages;
    k.page_elems = (int64_t)(p->kv->page_bytes / sizeof(T));
    k.page_table = p->kv->page_table;
    k.head_base = p->kv->head_base;
    k.geom = p->kv->geom;
    k.window = p->kv->window;
    k.pos = p->batch->pos;
    k.slot = p->batch->slot;
    k.first = cb->plan.first + (int64_t)p->layer * (cb->plan.max_pairs + 1);
    k.arrived = cb->plan.arrived;
    k.layer = p->layer;
    k.n_layers = p->kv->n_layers;
    k.n_heads = p->n_heads;
    k.n_kv_heads = p->n_kv_heads;
    k.group = p->n_heads / p->n_kv_heads;
    k.page_entries = p->kv->page_entries;
    k.scale_log2 = p->scale * 1.44269504f;

    /* The longest sequence decides how many rows the state memory holds at once. */
    pairs_per_row = p->n_kv_heads * k.n_parts;
    max_chunks = n_chunks_of(cb->params.max_positions + 2 * KV_TILE);
    row_state = (size_t)pairs_per_row * max_chunks * k.part_heads *
                (HEAD_DIM * sizeof(float) + sizeof(float2));
    rows_at_once =
        (int)(ATTN_STATE_BYTES / row_state < 1 << 20 ? ATTN_STATE_BYTES / row_state : 1 << 20);
    if (rows_at_once == 0)
        return err_set(err, ERR_UNSUPPORTED,
                       "attn: %d positions of %d heads exceed the state memory",
                       cb->params.max_positions, p->n_heads);
    k.state_md = (float2 *)cb->attn_state;
    k.state_o = cb->attn_state +
                (size_t)2 * pairs_per_row * max_chunks * k.part_heads *
                    (rows_at_once < p->batch->n_decode ? rows_at_once : p->batch->n_decode);

    CUDA_TRY(err, cudaFuncGetAttributes(&attr, attn_decode_split_kv<T, HEAD_DIM, HEADS, MMA>));
    static_smem = attr.sharedSizeBytes;
    fixed = shape::merge_bytes(k.part_heads) + shape::query_bytes(k.part_heads) + static_smem;
    /* Half an SM's, so that the next kernel's loads begin beside the last ones of this. */
    budget = cb->arch >= 90 ? cb->smem_max / 2 : cb->smem_max;
    if (budget < fixed + MIN_STAGES * shape::STAGE_BYTES)
        budget = cb->smem_max;
    k.n_stages = (int)((budget - fixed) / shape::STAGE_BYTES);
    k.n_stages = k.n_stages < MAX_STAGES ? k.n_stages : MAX_STAGES;
    CHECK(k.n_stages >= 1);
    fixed = k.n_stages * shape::STAGE_BYTES + shape::merge_bytes(k.part_heads) +
            shape::query_bytes(k.part_heads);
    CUDA_TRY(err, cudaFuncSetAttribute(attn_decode_split_kv<T, HEAD_DIM, HEADS, MMA>,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, (int)fixed));
    for (int row0 = 0; row0 < p->batch->n_decode; row0 += rows_at_once) {
        int n = p->batch->n_decode - row0;

        k.pair0 = row0 * pairs_per_row;
        k.n_pairs = (n < rows_at_once ? n : rows_at_once) * pairs_per_row;
        k.next = cb->attn_next;
        rc = launch_kernel(cb, !planned_just_now, "attn_decode_split_kv",
                           attn_decode_split_kv<T, HEAD_DIM, HEADS, MMA>, dim3(cb->n_sms),
                           dim3(shape::N_THREADS), fixed, err, k);
        if (rc < 0)
            return rc;
    }
    return 0;
}

template <typename T, int HEAD_DIM>
static int decode_group(struct cuda_backend *cb, const struct attn_args *p, bool planned_just_now,
                        struct err *err)
{
    int group = p->n_heads / p->n_kv_heads;

    if constexpr (sizeof(T) == 2) {
        if (group == 1)
            return decode_start<T, HEAD_DIM, 1, false>(cb, p, planned_just_now, err);
        if (group == 2)
            return decode_start<T, HEAD_DIM, 2, false>(cb, p, planned_just_now, err);
        return decode_start<T, HEAD_DIM, MMA_HEADS, true>(cb, p, planned_just_now, err);
    } else {
        return decode_start<T, HEAD_DIM, 1, false>(cb, p, planned_just_now,
                                                   err); /* f32: every head is a part */
    }
}

int attn_supports(int head_dim, int page_entries, struct err *err)
{
    static const int dims[] = {32, 64, 80, 96, 128, 256};
    bool built = false;

    for (int dim : dims)
        built = built || dim == head_dim;
    if (!built)
        return err_set(
            err, ERR_UNSUPPORTED,
            "CUDA: heads of %d dimensions; attention is built for 32, 64, 80, 96, 128 and "
            "256",
            head_dim);
    if (page_entries < 16 || page_entries > MAX_PAGE_ENTRIES || (page_entries & (page_entries - 1)))
        return err_set(err, ERR_UNSUPPORTED,
                       "CUDA: pages of %d entries; want 16 to %d, a power of 2", page_entries,
                       MAX_PAGE_ENTRIES);
    return 0;
}

template <typename T>
static int decode_dim(struct cuda_backend *cb, const struct attn_args *p, bool planned_just_now,
                      struct err *err)
{
    switch (p->head_dim) {
    case 32:
        return decode_group<T, 32>(cb, p, planned_just_now, err);
    case 64:
        return decode_group<T, 64>(cb, p, planned_just_now, err);
    case 80:
        return decode_group<T, 80>(cb, p, planned_just_now, err);
    case 96:
        return decode_group<T, 96>(cb, p, planned_just_now, err);
    case 128:
        return decode_group<T, 128>(cb, p, planned_just_now, err);
    case 256:
        return decode_group<T, 256>(cb, p, planned_just_now, err);
    }
    return attn_supports(p->head_dim, p->kv->page_entries, err);
}

int attn_decode_launch(struct cuda_backend *cb, const struct attn_args *p, struct err *err)
{
    bool planned_just_now;
    int rc;

    if (p->batch->n_decode == 0)
        return 0;
    rc = attn_supports(p->head_dim, p->kv->page_entries, err);
    if (rc < 0)
        return rc;
    /* An attention that is not part of a step plans for itself, and waits for it. */
    planned_just_now = !(cb->in_step && cb->plan.valid);
    rc = attn_plan_launch(cb, p->kv, p->batch, p->layer, err);
    if (rc < 0)
        return rc;
    switch (cb->base.act_dtype) {
    case DTYPE_F32:
        return decode_dim<float>(cb, p, planned_just_now, err);
    case DTYPE_BF16:
        return decode_dim<__nv_bfloat16>(cb, p, planned_just_now, err);
    case DTYPE_F16:
        return decode_dim<__half>(cb, p, planned_just_now, err);
    }
    return 0;
}

/*
 * attn_prefill_wgmma.cu - prompt attention of head_dim 64 and 128 on sm_90's warpgroup products.
 *
 *   q         act  [n_rows, n_heads, head_dim]
 *   pages     kv   positions before the chunk, where the ring still has them; 64 entries a page
 *   k_chunk   kv   [n_rows - n_decode, n_kv_heads, head_dim] positions of the chunk; v_chunk alike
 *   out       act  [n_rows, n_heads, head_dim]; sums and softmax state in f32
 *
 * Work     persistent CTAs, one an SM, take (128 positions, query head) from a counter, the longest
 *          first; a producer warpgroup copies, two consumer warpgroups of 64 rows each compute
 * Tile     128 x 128 by absolute position; a tile of keys is two halves of 64 with a source each:
 *          a page or rows of the chunk by tensor map, or, where only a part may be read or it
 *          straddles pages, row by row. What nobody sees is not loaded, a half, or not visited
 * Overlap  K and V in N_STAGES buffers each; QK of the next tile is queued before PV of this one,
 *          which runs during softmax, and so do the products of the other warpgroup
 * Bits     a tile that a row does not see multiplies its state by 1 and adds 0: the order of its
 *          sums is that of absolute positions, wherever chunks begin
 * Bound    tensor cores: 4 * head_dim FLOP a visible pair
 * Measured H100, d128, 4k and 8k rows: 548 and 588 TFLOP/s at 32/32 heads, 564 and 608 at 32/8, of
 *          some 765 of cuBLASLt's on random data   spand-cuda-bench prefill; see SPEED.md
 * Limits   head_dim 64 and 128, pages of 64 entries; attn_prefill.cu has the others
 * Checked  against cpu in tests/cuda/test_attn.c
 */
#include "cuda/attn_prefill.cuh"
#include "cuda/attn_prefill_wgmma.h"
#include "cuda/launch.cuh"
#include "cuda/ptx_hopper_rs.cuh"

#include <cudaTypedefs.h>

#define N_CONSUMERS    2
#define ROWS           (N_CONSUMERS * TILE)
#define KEYS           (2 * TILE)
#define N_STAGES       2
#define N_QUERIES      2   /* buffers of q */
#define HEADS_AT_ONCE  8   /* see job_place() */
#define N_JOBS         4   /* the one being found, and those that may still be read */
#define GROUP_LANES    128 /* a warpgroup */
#define N_THREADS      ((1 + N_CONSUMERS) * GROUP_LANES)
#define CONSUMER_WARPS (N_CONSUMERS * 4)
#define PRODUCER_REGS  72
#define CONSUMER_REGS  216

/* Named barriers; 0 is __syncthreads(), consumer w has BARRIER_CONSUMER + w. */
enum { BARRIER_PRODUCER = 1, BARRIER_CONSUMER = 2 };

struct tensor_maps {
    CUtensorMap q, k_chunk, v_chunk; /* [rows, heads, head_dim], boxes of [64, 1, 64] */
    CUtensorMap pages;               /* [pages, K and V, 64, head_dim], boxes of [1, 1, 64, 64] */
};

/* The tiles that a warpgroup's rows see: 0 .. n_sink - 1 and lo .. hi; none: n_sink 0, hi -1. */
struct tile_span {
    int n_sink, lo, hi;
};

/* One CTA's work: ROWS positions of a chunk, for one head. */
struct wgmma_job {
    prefill_job part[N_CONSUMERS]; /* of each consumer */
    tile_span span[N_CONSUMERS];
    int head, chunk_last;
    int n_sink, lo, n; /* pairs of tiles visited: 0 .. n_sink - 1, then lo .., n in all */
    bool there;        /* false: there is no more work */

    __device__ int pair(int i) const
    {
        return i < n_sink ? i : lo + i - n_sink;
    }
};

/* A tile of R rows is HEAD_DIM / 64 column boxes of [R, 64] elements, each in 128-byte swizzle. */
template <int HEAD_DIM> struct wgmma_smem {
    static constexpr int BOXES = HEAD_DIM / 64;
    static constexpr int HALF_BYTES = TILE * 128, BOX_BYTES = KEYS * 128;

    unsigned char q[N_QUERIES][N_CONSUMERS][BOXES][HALF_BYTES]; /* and rows on their way out */
    unsigned char k[N_STAGES][BOXES][BOX_BYTES];
    unsigned char v[N_STAGES][BOXES][BOX_BYTES];
    uint64_t q_full[N_QUERIES], q_empty[N_QUERIES]; /* also of job */
    uint64_t k_full[N_STAGES], k_empty[N_STAGES], v_full[N_STAGES], v_empty[N_STAGES];
    wgmma_job job[N_JOBS];
};

static __device__ __forceinline__ bool span_sees(const tile_span &s, int tile)
{
    return tile < s.n_sink || (tile >= s.lo && tile <= s.hi);
}

/*
 * Job n is (tile, head): the longest tiles first. The first half of the tiles is gone through by
 * HEADS_AT_ONCE heads at a time, whose keys and values then stay in L2, the other half by all
 * heads, so that there are short jobs left for the end.
 */
static __device__ void job_place(const attn_prefill_args &a, int n, int *tile, int *head)
{
    int at_once = a.n_heads % HEADS_AT_ONCE ? a.n_heads : HEADS_AT_ONCE, half = 0;

    for (int c = 0; c < a.n_chunks; c++)
        half += chunk_n_tiles(a.chunks[c], ROWS);
    half /= 2;
    if (n < half * a.n_heads) {
        *tile = n % (half * at_once) / at_once;
        *head = n / (half * at_once) * at_once + n % at_once;
    } else {
        *tile = n / a.n_heads;
        *head = n % a.n_heads;
    }
}

static __device__ void job_find(const attn_prefill_args &a, int n, wgmma_job *job)
{
    int tile, c = 0, lo = 1 << 30, hi = -1, n_sink = 0;
    struct step_chunk chunk;

    job_place(a, n, &tile, &job->head);
    job->there = false;
    for (;; c++) {
        int n_tiles;

        if (c == a.n_chunks)
            return;
        chunk = a.chunks[c];
        n_tiles = chunk_n_tiles(chunk, ROWS);
        if (tile < n_tiles)
            break;
        tile -= n_tiles;
    }
    job->there = true;
    tile = chunk_last(chunk) / ROWS - tile;
    job->chunk_last = chunk_last(chunk);
    for (int w = 0; w < N_CONSUMERS; w++) {
        prefill_job *j = &job->part[w];
        tile_span *s = &job->span[w];

        job_set(a, chunk, tile * N_CONSUMERS + w, job->head, j);
        *s = {0, 0, -1};
        if (j->last < 0)
            continue;
        key_tiles t = tiles_of(*j);
        s->n_sink = t.n_sink;
        s->lo = t.window;
        s->hi = j->tile;
        lo = s->lo < lo ? s->lo : lo;
        hi = s->hi > hi ? s->hi : hi;
        n_sink = s->n_sink > n_sink ? s->n_sink : n_sink;
    }
    /* At least the last pair is visited, though a window of no tile sees nothing of it. */
    lo = (lo < hi ? lo : hi) / 2;
    hi /= 2;
    job->n_sink = (n_sink + 1) / 2;
    job->n_sink = job->n_sink < hi ? job->n_sink : hi;
    job->lo = lo > job->n_sink ? lo : job->n_sink;
    job->n = job->n_sink + hi - job->lo + 1;
}

/* Where a half, 64 positions of a tile, comes from. */
struct half_source {
    enum { NONE, PAGE, CHUNK, EACH_ROW } kind;
    int at; /* page id, or first row of the chunk buffers */
};

static __device__ __forceinline__ bool job_needs_all(const prefill_job &j, int p)
{
    if (p + TILE - 1 > j.last)
        return false;
    if (j.geom.mask == KV_MASK_TOKEN)
        return p + TILE - 1 < j.geom.n_sink || p > j.first - j.window;
    return job_needs(j, p);
}

static __device__ half_source source_of(const attn_prefill_args &a, const wgmma_job &job, int tile)
{
    const prefill_job &j = job.part[0];
    int p = tile * TILE, index;

    if (!span_sees(job.span[0], tile) && !span_sees(job.span[1], tile))
        return {half_source::NONE, 0};
    if (p >= j.pos0)
        return {p + TILE - 1 <= job.chunk_last ? half_source::CHUNK : half_source::EACH_ROW,
                j.row0 - a.n_decode + p - j.pos0};
    if (p + TILE - 1 >= j.pos0 || (p < j.geom.n_sink && p + TILE > j.geom.n_sink) ||
        !(job_needs_all(j, p) || job_needs_all(job.part[1], p)))
        return {half_source::EACH_ROW, 0};
    index = kv_index_of(j.geom, p); /* a multiple of TILE does not wrap: a ring is one, too */
    return index % TILE ? half_source{half_source::EACH_ROW, 0}
                        : half_source{half_source::PAGE, j.table[index / TILE]};
}

/* Copies a half by the lanes of a warp; rows that no one may see become zeros: not 0 * NaN. */
template <typename T, int HEAD_DIM>
static __device__ void copy_rows(const attn_prefill_args &a, const wgmma_job &job, int tile,
                                 smem_ref dst, const T *chunk_rows, int64_t in_page)
{
    constexpr int PIECES = HEAD_DIM / 8;
    int lane = threadIdx.x % WARP_LANES, kv_head = job.head / (a.n_heads / a.n_kv_heads);

    for (int row0 = 0; row0 < TILE; row0 += WARP_LANES) {
        int p = tile * TILE + row0 + lane;
        const T *row = NULL;

        if (job_needs(job.part[0], p) || job_needs(job.part[1], p)) {
            bool in_chunk;
            int64_t at = row_offset(a, job.part[0], kv_head, HEAD_DIM, p, &in_chunk);

            row = in_chunk ? chunk_rows + at : (const T *)a.pages + in_page + at;
        }
        for (int i = lane; i < WARP_LANES * PIECES; i += WARP_LANES) {
            int r = i / PIECES, piece = i % PIECES;
            const T *src = (const T *)__shfl_sync(0xffffffffu, (unsigned long long)row, r);

            copy_async16(dst + piece / 8 * wgmma_smem<HEAD_DIM>::BOX_BYTES + (row0 + r) * 128 +
                             ((piece % 8) ^ (r % 8)) * 16,
                         src ? src + piece * 8 : (const T *)a.q, src ? 16 : 0);
        }
    }
}

/* A producer warp brings one half of every tile of K, or of V. */
struct producer_state {
    int n;             /* tiles so far */
    uint64_t *pending; /* what cp.async fills and is not yet announced; or NULL */
};

/* Announces what cp.async has brought, but for the newest N groups. */
template <int N> static __device__ void pending_flush(producer_state &st)
{
    if (!st.pending)
        return;
    copy_async_wait<N>();
    async_proxy_fence();
    __syncwarp(); /* every lane's copies are there */
    if (threadIdx.x % WARP_LANES == 0)
        barrier_arrive(st.pending);
    st.pending = NULL;
}

template <typename T, int HEAD_DIM, bool IS_V>
static __device__ void produce_half(const attn_prefill_args &a, const tensor_maps &maps,
                                    wgmma_smem<HEAD_DIM> &sm, const wgmma_job &job, int half,
                                    producer_state &st)
{
    typedef wgmma_smem<HEAD_DIM> smem;
    int lane = threadIdx.x % WARP_LANES, kv_head = job.head / (a.n_heads / a.n_kv_heads);
    half_source next = source_of(a, job, 2 * job.pair(0) + half);

    for (int i = 0; i < job.n; i++) {
        int stage = st.n % N_STAGES;
        uint64_t *full = IS_V ? &sm.v_full[stage] : &sm.k_full[stage];
        smem_ref dst = smem_addr(IS_V ? sm.v[stage] : sm.k[stage]) + half * smem::HALF_BYTES;
        half_source src = next;

        if (i + 1 < job.n)
            next = source_of(a, job, 2 * job.pair(i + 1) + half);
        barrier_wait(IS_V ? &sm.v_empty[stage] : &sm.k_empty[stage], (st.n / N_STAGES + 1) % 2);
        st.n++;
        if (src.kind == half_source::PAGE || src.kind == half_source::CHUNK) {
            if (lane == 0) {
                barrier_expect(full, smem::BOXES * smem::HALF_BYTES);
#pragma unroll
                for (int b = 0; b < smem::BOXES; b++) {
                    if (src.kind == half_source::PAGE)
                        copy_tensor_4d(dst + b * smem::BOX_BYTES, &maps.pages, b * 64, 0, IS_V,
                                       src.at, full);
                    else
                        copy_tensor_3d(dst + b * smem::BOX_BYTES,
                                       IS_V ? &maps.v_chunk : &maps.k_chunk, b * 64, kv_head,
                                       src.at, full);
                }
                barrier_arrive(full);
            }
            __syncwarp();
            pending_flush<0>(st);
        } else if (!IS_V && src.kind == half_source::NONE) {
            if (lane == 0) /* whatever is there is masked; of V, it becomes zeros */
                barrier_arrive(full);
            pending_flush<0>(st);
        } else {
            copy_rows<T, HEAD_DIM>(a, job, 2 * job.pair(i) + half, dst,
                                   (const T *)(IS_V ? a.v_chunk : a.k_chunk),
                                   IS_V ? TILE * HEAD_DIM : 0);
            copy_async_commit();
            pending_flush<1>(st);
            st.pending = full; /* its copies may land while the next buffer is filled */
        }
    }
    pending_flush<0>(st);
}

/* Warps 0 and 1 -> halves of K, 2 and 3 -> halves of V. Warp 0 finds work, warp 2 brings q. */
template <typename T, int HEAD_DIM>
static __device__ void produce(const attn_prefill_args &a, const tensor_maps &maps, int32_t *next,
                               wgmma_smem<HEAD_DIM> &sm)
{
    typedef wgmma_smem<HEAD_DIM> smem;
    int warp = threadIdx.x / WARP_LANES, n = blockIdx.x;
    producer_state st = {0, NULL};

    for (int n_jobs = 0;; n_jobs++) {
        wgmma_job &job = sm.job[n_jobs % N_JOBS];

        if (threadIdx.x == 0) {
            job_find(a, n, &job);
            if (job.there)
                n = gridDim.x + atomicAdd(&next[0], 1);
        }
        named_barrier(BARRIER_PRODUCER, GROUP_LANES); /* the job is there */
        if (threadIdx.x == 2 * WARP_LANES) {
            const prefill_job &j = job.part[0];
            int at = n_jobs % N_QUERIES;

            barrier_wait(&sm.q_empty[at], (n_jobs / N_QUERIES + 1) % 2);
            if (job.there) {
                barrier_expect(&sm.q_full[at], N_CONSUMERS * smem::BOXES * smem::HALF_BYTES);
                for (int w = 0; w < N_CONSUMERS; w++) {
                    for (int b = 0; b < smem::BOXES; b++)
                        copy_tensor_3d(smem_addr(sm.q[at][w][b]), &maps.q, b * 64, job.head,
                                       j.row0 + (j.tile + w) * TILE - j.pos0, &sm.q_full[at]);
                }
            }
            barrier_arrive(&sm.q_full[at]);
        }
        __syncwarp();
        if (!job.there)
            break;
        if (warp < 2)
            produce_half<T, HEAD_DIM, false>(a, maps, sm, job, warp % 2, st);
        else
            produce_half<T, HEAD_DIM, true>(a, maps, sm, job, warp % 2, st);
    }
    /* The last CTA to find no more work leaves the counters as the next launch wants them. */
    if (threadIdx.x == 0 && atomicAdd(&next[1], 1) == gridDim.x - 1) {
        next[0] = 0;
        next[1] = 0;
    }
}

/* One consumer thread's softmax state, of rows g and g + 8 of its warp's 16. */
struct softmax_rows {
    float m[2], d[2]; /* the greatest scaled score, the sum of weights: this lane's share */
    int pos[2], lo[2], sink;

    /* s[KEYS / 8][4] of one pair of tiles to weights; shrink is what went before is multiplied by.
     */
    __device__ __forceinline__ void weigh(float (&s)[KEYS / 2], float scale, bool full, int key0,
                                          float shrink[2])
    {
        float top[2][2] = {{-INFINITY, -INFINITY}, {-INFINITY, -INFINITY}};

        if (!full) {
#pragma unroll
            for (int i = 0; i < KEYS / 2; i++) {
                int key = key0 + i / 4 * 8 + i % 2, r = i / 2 % 2;

                if (key > pos[r] || (key >= sink && key < lo[r]))
                    s[i] = -INFINITY;
            }
        }
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++)
            top[i / 2 % 2][i % 2] = fmaxf(top[i / 2 % 2][i % 2], s[i]);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float t = fmaxf(top[r][0], top[r][1]), ref;

            t = fmaxf(t, __shfl_xor_sync(0xffffffffu, t, 1));
            t = fmaxf(t, __shfl_xor_sync(0xffffffffu, t, 2));
            t = fmaxf(m[r], t * scale);
            ref = t == -INFINITY ? 0.0f : t; /* nothing seen yet: all weights are 0 */
            shrink[r] = exp2_approx(m[r] - ref);
            m[r] = t;
            top[r][0] = ref;
            d[r] *= shrink[r];
        }
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++) {
            int r = i / 2 % 2;

            s[i] = exp2_approx(fmaf(s[i], scale, -top[r][0]));
            d[r] += s[i];
        }
    }
};

template <typename T>
static __device__ __forceinline__ void pack_weights(uint32_t (&p)[KEYS / 4],
                                                    const float (&s)[KEYS / 2])
{
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++)
        p[i] = pack2<T>(s[2 * i], s[2 * i + 1]);
}

/* s = q k^T of a warpgroup's 64 rows and a pair of tiles, queued. */
template <typename T, int HEAD_DIM>
static __device__ __forceinline__ void queue_qk(float (&s)[KEYS / 2], uint64_t q, uint64_t k)
{
    typedef wgmma_smem<HEAD_DIM> smem;

    wgmma_fence();
#pragma unroll
    for (int i = 0; i < HEAD_DIM / WGMMA_K; i++)
        wgmma_ss<T, KEYS>::run(s, q + (i / 4 * smem::HALF_BYTES + i % 4 * 32) / 16,
                               k + (i / 4 * smem::BOX_BYTES + i % 4 * 32) / 16, i > 0);
    wgmma_commit();
}

/* o += p v, queued. */
template <typename T, int HEAD_DIM>
static __device__ __forceinline__ void queue_pv(float (&o)[HEAD_DIM / 2],
                                                const uint32_t (&p)[KEYS / 4], uint64_t v)
{
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < KEYS / WGMMA_K; i++)
        wgmma_rs_t<T, HEAD_DIM>::run(o, p + i * 4, v + i * WGMMA_K * 128 / 16);
    wgmma_commit();
}

/*
 * A warp's 16 rows, scaled by f, through its rows of q's buffer to memory, 16 bytes a lane; only
 * positions first .. last are the chunk's. out is row 0 of position 0.
 */
template <typename T, int HEAD_DIM>
static __device__ __forceinline__ void put_rows(const float (&o)[HEAD_DIM / 2], const float f[2],
                                                unsigned char *buf, T *out, int64_t stride,
                                                int pos0, int first, int last)
{
    int warp_row = threadIdx.x / WARP_LANES % 4 * 16, lane = threadIdx.x % WARP_LANES;

    auto at = [&](int r, int piece) {
        return buf + piece / 8 * wgmma_smem<HEAD_DIM>::HALF_BYTES + (warp_row + r) * 128 +
               ((piece % 8) ^ (r % 8)) * 16;
    };
#pragma unroll
    for (int r = 0; r < 2; r++) {
#pragma unroll
        for (int c = 0; c < HEAD_DIM / 8; c++)
            *(uint32_t *)(at(lane / 4 + 8 * r, c) + lane % 4 * 4) =
                pack2<T>(o[4 * c + 2 * r] * f[r], o[4 * c + 2 * r + 1] * f[r]);
    }
    __syncwarp(); /* the rows are there */
#pragma unroll
    for (int i = lane; i < 16 * HEAD_DIM / 8; i += WARP_LANES) {
        int r = i / (HEAD_DIM / 8), piece = i % (HEAD_DIM / 8), pos = pos0 + r;

        if (pos >= first && pos <= last)
            *(uint4 *)(out + pos * stride + piece * 8) = *(const uint4 *)at(r, piece);
    }
    async_proxy_fence();
    __syncwarp(); /* the rows have been read */
}

template <typename T, int HEAD_DIM>
static __device__ void consume(const attn_prefill_args &a, wgmma_smem<HEAD_DIM> &sm)
{
    typedef wgmma_smem<HEAD_DIM> smem;
    /* The shuffle tells the compiler that w is the same in a warp. */
    int w = __shfl_sync(0xffffffffu, threadIdx.x / GROUP_LANES - 1, 0);
    int warp = threadIdx.x / WARP_LANES % 4, lane = threadIdx.x % WARP_LANES;
    int n_k = 0, n_v = 0; /* tiles so far */
    float o[HEAD_DIM / 2], s[KEYS / 2];
    uint32_t p[KEYS / 4];
    bool there;

    auto release = [&](uint64_t *bar) {
        if (lane == 0)
            barrier_arrive(bar);
    };
    auto wait_k = [&]() { barrier_wait(&sm.k_full[n_k % N_STAGES], n_k / N_STAGES % 2); };
    auto queue_next_qk = [&](int n_jobs) {
        queue_qk<T, HEAD_DIM>(s, wgmma_desc(smem_addr(sm.q[n_jobs % N_QUERIES][w])),
                              wgmma_desc(smem_addr(sm.k[n_k % N_STAGES])));
    };
    auto queue_next_pv = [&]() {
        int stage = n_v++ % N_STAGES;

        queue_pv<T, HEAD_DIM>(o, p, wgmma_desc_t(smem_addr(sm.v[stage]), smem::BOX_BYTES));
    };
    auto wait_v = [&]() { barrier_wait(&sm.v_full[n_v % N_STAGES], n_v / N_STAGES % 2); };
    auto wait_job = [&](int n_jobs) {
        barrier_wait(&sm.q_full[n_jobs % N_QUERIES], n_jobs / N_QUERIES % 2);
        return sm.job[n_jobs % N_JOBS].there;
    };

    there = wait_job(0);
    if (there)
        wait_k();
    queue_next_qk(0);
    for (int n_jobs = 0; there; n_jobs++) {
        const wgmma_job &job = sm.job[n_jobs % N_JOBS];
        const prefill_job &j = job.part[w];
        softmax_rows rows;
        float shrink[2], f[2];
        int n = job.n, pair = job.pair(0), pos0 = j.tile * TILE + warp * 16;
        int key0 = lane % 4 * 2;
        bool full;

        auto is_full = [&]() {
            return span_sees(job.span[w], 2 * pair) && span_sees(job.span[w], 2 * pair + 1) &&
                   tile_is_full(j, 2 * pair) && tile_is_full(j, 2 * pair + 1);
        };
        rows.sink = j.geom.mask == KV_MASK_TOKEN ? j.geom.n_sink : j.geom.n_sink / TILE * TILE;
        for (int r = 0; r < 2; r++) {
            rows.pos[r] = pos0 + lane / 4 + r * 8;
            rows.lo[r] = kv_window_start_prompt(j.geom, j.window, rows.pos[r]);
            rows.m[r] = -INFINITY;
            rows.d[r] = 0;
        }
        full = is_full();
        wgmma_wait<0>();
        wgmma_pin(s);
        release(&sm.k_empty[n_k++ % N_STAGES]);
        rows.weigh(s, a.scale_log2, full, pair * KEYS + key0, shrink);
        pack_weights<T>(p, s);
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 2; i++)
            o[i] = 0;
        if (n > 1)
            wait_k();
        for (int i = 1; i < n; i++) {
            queue_next_qk(n_jobs);
            wait_v();
            queue_next_pv();
            pair = job.pair(i);
            full = is_full();
            wgmma_wait<1>();
            wgmma_pin(s);
            release(&sm.k_empty[n_k++ % N_STAGES]);
            rows.weigh(s, a.scale_log2, full, pair * KEYS + key0, shrink);
            /* Waits for K before it waits for PV: this branch keeps ptxas from putting softmax off
             * until PV is done. */
            wgmma_pin(s);
            if (i + 1 < n)
                wait_k();
            wgmma_wait<0>();
            wgmma_pin(o);
            release(&sm.v_empty[(n_v - 1) % N_STAGES]);
#pragma unroll
            for (int e = 0; e < HEAD_DIM / 2; e++)
                o[e] *= shrink[e / 2 % 2];
            pack_weights<T>(p, s);
        }
        wait_v();
        queue_next_pv();
        /* The next job's first product runs while this one's rows go out. Behind the last job it is
         * one of leftovers, so that no branch divides the queue of products. */
        there = wait_job(n_jobs + 1);
        if (there)
            wait_k();
        queue_next_qk(n_jobs + 1);
        for (int r = 0; r < 2; r++) {
            f[r] = rows.d[r];
            f[r] += __shfl_xor_sync(0xffffffffu, f[r], 1);
            f[r] += __shfl_xor_sync(0xffffffffu, f[r], 2);
            f[r] = f[r] > 0 ? 1.0f / f[r] : 0.0f;
        }
        wgmma_wait<1>();
        wgmma_pin(o);
        release(&sm.v_empty[(n_v - 1) % N_STAGES]);
        named_barrier(BARRIER_CONSUMER + w, GROUP_LANES); /* all warps are through with q */
        put_rows<T, HEAD_DIM>(o, f, sm.q[n_jobs % N_QUERIES][w][0],
                              (T *)a.out +
                                  ((int64_t)(j.row0 - j.pos0) * a.n_heads + job.head) * HEAD_DIM,
                              (int64_t)a.n_heads * HEAD_DIM, pos0, j.first, j.last);
        release(&sm.q_empty[n_jobs % N_QUERIES]); /* q and the job have been read */
    }
    wgmma_wait<0>();
    wgmma_pin(s);
}

/* Warpgroup 0 -> copies; 1 and 2 -> rows 0..63 and 64..127 of a job, fragments as in wgmma_ss */
template <typename T, int HEAD_DIM>
static __global__ void __launch_bounds__(N_THREADS, 1)
    attn_prefill_wgmma(const __grid_constant__ attn_prefill_args a,
                       const __grid_constant__ tensor_maps maps, int32_t *next)
{
    extern __shared__ unsigned char smem_bytes[];
    wgmma_smem<HEAD_DIM> &sm =
        *(wgmma_smem<HEAD_DIM> *)(smem_bytes + (1024 - smem_addr(smem_bytes) % 1024) % 1024);

    if (threadIdx.x == 0) {
        for (int i = 0; i < N_QUERIES; i++) {
            barrier_init(&sm.q_full[i], 1);
            barrier_init(&sm.q_empty[i], CONSUMER_WARPS);
        }
        for (int i = 0; i < N_STAGES; i++) {
            barrier_init(&sm.k_full[i], 2); /* warps with a half each */
            barrier_init(&sm.v_full[i], 2);
            barrier_init(&sm.k_empty[i], CONSUMER_WARPS);
            barrier_init(&sm.v_empty[i], CONSUMER_WARPS);
        }
#if HAS_BULK_COPY /* which it has not in the host's pass */
        barrier_init_done();
#endif
        tensor_map_prefetch(&maps.q);
        tensor_map_prefetch(&maps.k_chunk);
        tensor_map_prefetch(&maps.v_chunk);
        tensor_map_prefetch(&maps.pages);
    }
    grid_wait();
    __syncthreads(); /* the barriers are there */
    if (threadIdx.x < GROUP_LANES) {
        registers_give<PRODUCER_REGS>();
        produce<T, HEAD_DIM>(a, maps, next, sm);
    } else {
        registers_take<CONSUMER_REGS>();
        consume<T, HEAD_DIM>(a, sm);
    }
}

/* dims and box from the fastest; strides in bytes, of all dimensions but that. */
static int map_make(struct cuda_backend *cb, CUtensorMap *map, const void *data, int n_dims,
                    const cuuint64_t *dims, const cuuint64_t *strides, const cuuint32_t *box,
                    struct err *err)
{
    static const cuuint32_t steps[4] = {1, 1, 1, 1};
    PFN_cuTensorMapEncodeTiled_v12000 encode =
        (PFN_cuTensorMapEncodeTiled_v12000)cb->tensor_map_encode;
    CUresult rc;

    rc = encode(map,
                cb->base.act_dtype == DTYPE_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                n_dims, (void *)data, dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (rc != CUDA_SUCCESS)
        return err_set(err, ERR_DEVICE, "CUDA: attn: tensor map at %p: error %d", data, (int)rc);
    return 0;
}

/* [n_rows, n_heads, head_dim] in boxes of 64 rows and 64 elements of one head */
static int map_rows(struct cuda_backend *cb, CUtensorMap *map, const void *data, int n_rows,
                    int n_heads, int head_dim, struct err *err)
{
    cuuint64_t dims[3] = {(cuuint64_t)head_dim, (cuuint64_t)n_heads, (cuuint64_t)n_rows};
    cuuint64_t strides[2] = {(cuuint64_t)head_dim * 2, (cuuint64_t)n_heads * head_dim * 2};
    cuuint32_t box[3] = {64, 1, TILE};

    return map_make(cb, map, data, 3, dims, strides, box, err);
}

/* [pages, 2, 64, head_dim]; how many pages there are is not known here, so all that may be. */
static int map_pages(struct cuda_backend *cb, CUtensorMap *map, const struct kv_view *kv,
                     struct err *err)
{
    cuuint64_t dims[4] = {(cuuint64_t)kv->head_dim, TILE, 2, INT32_MAX};
    cuuint64_t strides[3] = {(cuuint64_t)kv->head_dim * 2, (cuuint64_t)kv->head_dim * 2 * TILE,
                             kv->page_bytes};
    cuuint32_t box[4] = {64, TILE, 1, 1};

    return map_make(cb, map, kv->pages, 4, dims, strides, box, err);
}

template <typename T, int HEAD_DIM>
static int wgmma_start(struct cuda_backend *cb, const struct attn_args *p, struct err *err)
{
    int smem = (int)sizeof(wgmma_smem<HEAD_DIM>) + 1024; /* it is moved to a multiple of 1,024 */
    int n_prompt = p->batch->n_rows - p->batch->n_decode;
    tensor_maps maps;
    int rc = map_rows(cb, &maps.q, p->q, p->batch->n_rows, p->n_heads, HEAD_DIM, err);

    if (rc == 0)
        rc = map_rows(cb, &maps.k_chunk, p->k_chunk, n_prompt, p->n_kv_heads, HEAD_DIM, err);
    if (rc == 0)
        rc = map_rows(cb, &maps.v_chunk, p->v_chunk, n_prompt, p->n_kv_heads, HEAD_DIM, err);
    if (rc == 0)
        rc = map_pages(cb, &maps.pages, p->kv, err);
    if (rc < 0)
        return rc;
    CUDA_TRY(err, cudaFuncSetAttribute(attn_prefill_wgmma<T, HEAD_DIM>,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, smem));
    return launch_overlapped(cb, "attn_prefill_wgmma", attn_prefill_wgmma<T, HEAD_DIM>,
                             dim3(cb->n_sms), dim3(N_THREADS), smem, err, attn_prefill_args_of(p),
                             maps, cb->attn_next);
}

int attn_prefill_wgmma_launch(struct cuda_backend *cb, const struct attn_args *p, struct err *err)
{
    bool bf16 = cb->base.act_dtype == DTYPE_BF16;

    if (p->head_dim == 128)
        return bf16 ? wgmma_start<__nv_bfloat16, 128>(cb, p, err)
                    : wgmma_start<__half, 128>(cb, p, err);
    return bf16 ? wgmma_start<__nv_bfloat16, 64>(cb, p, err) : wgmma_start<__half, 64>(cb, p, err);
}

/*
 * read_bandwidth.cu - the ceiling that every memory-bound kernel is measured against.
 *
 * Work     streaming reads of a buffer far beyond L2, once through registers and once, on sm_90,
 *          by bulk copies into shared memory; the faster of the two is the ceiling
 * Bound    HBM
 */
#include "cuda/cuda_backend.h"
#include "cuda/device.cuh"

#define READ_THREADS 512
#define READ_UNROLL  8
#define BULK_BYTES   16384 /* a page's K */
#define BULK_STAGES  12
#define N_RUNS       6

/* thread -> every grid-th vector, READ_UNROLL loads in flight */
static __global__ void __launch_bounds__(READ_THREADS)
    read_registers_kernel(const uint4 *p, int64_t n, uint32_t *out)
{
    int64_t step = (int64_t)gridDim.x * READ_THREADS;
    uint32_t sum = 0;

    for (int64_t i = (int64_t)blockIdx.x * READ_THREADS + threadIdx.x;
         i + (READ_UNROLL - 1) * step < n; i += READ_UNROLL * step) {
        uint4 v[READ_UNROLL];

#pragma unroll
        for (int j = 0; j < READ_UNROLL; j++)
            v[j] = __ldcs(p + i + j * step);
#pragma unroll
        for (int j = 0; j < READ_UNROLL; j++)
            sum ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    if (sum == 0x12345679) /* the compiler must believe that the sum is wanted */
        *out = sum;
}

/* CTA -> every grid-th piece; one thread keeps BULK_STAGES copies in flight */
static __global__ void read_bulk_kernel(const char *p, int64_t n_pieces)
{
#if HAS_BULK_COPY
    extern __shared__ __align__(128) unsigned char smem[];
    __shared__ uint64_t full[BULK_STAGES];
    uint64_t policy = policy_evict_first();
    int64_t mine = (n_pieces - blockIdx.x + gridDim.x - 1) / gridDim.x;

    if (threadIdx.x != 0)
        return;
    for (int i = 0; i < BULK_STAGES; i++)
        barrier_init(&full[i], 1);
    barrier_init_done();
    for (int64_t i = 0; i < mine + BULK_STAGES; i++) {
        int stage = (int)(i % BULK_STAGES);

        if (i >= BULK_STAGES)
            barrier_wait(&full[stage], (uint32_t)(i / BULK_STAGES - 1) & 1);
        if (i < mine) {
            barrier_arrive_expect(&full[stage], BULK_BYTES);
            copy_bulk(smem_addr(smem + stage * BULK_BYTES),
                      p + (blockIdx.x + i * gridDim.x) * BULK_BYTES, BULK_BYTES, &full[stage],
                      policy);
        }
    }
#endif
}

int cuda_read_bandwidth(struct cuda_backend *cb, size_t bytes, double *registers, double *bulk,
                        struct err *err)
{
    cudaEvent_t begin, end;
    void *p;
    float ms;

    bytes = bytes / BULK_BYTES * BULK_BYTES;
    *registers = *bulk = 0;
    CUDA_TRY(err, cudaMalloc(&p, bytes));
    CUDA_TRY(err, cudaMemsetAsync(p, 0x5a, bytes, cb->stream));
    CUDA_TRY(err, cudaEventCreate(&begin));
    CUDA_TRY(err, cudaEventCreate(&end));
    CUDA_TRY(err,
             cudaFuncSetAttribute(read_bulk_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  BULK_STAGES * BULK_BYTES));
    for (int run = 0; run < 2 * N_RUNS; run++) {
        bool is_bulk = run >= N_RUNS;
        double *best = is_bulk ? bulk : registers;

        if (is_bulk && (cb->arch < 90 || cb->smem_max < BULK_STAGES * BULK_BYTES))
            break;
        CUDA_TRY(err, cudaEventRecord(begin, cb->stream));
        if (is_bulk)
            read_bulk_kernel<<<cb->n_sms, 32, BULK_STAGES * BULK_BYTES, cb->stream>>>(
                (const char *)p, (int64_t)(bytes / BULK_BYTES));
        else
            read_registers_kernel<<<cb->n_sms * 4, READ_THREADS, 0, cb->stream>>>(
                (const uint4 *)p, (int64_t)(bytes / sizeof(uint4)), (uint32_t *)p);
        CUDA_TRY(err, cudaEventRecord(end, cb->stream));
        CUDA_TRY(err, cudaEventSynchronize(end));
        CUDA_TRY(err, cudaEventElapsedTime(&ms, begin, end));
        if ((double)bytes / (ms * 1e-3) > *best)
            *best = (double)bytes / (ms * 1e-3);
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    cudaFree(p);
    return cuda_launched(cb, "read_bandwidth", err);
}

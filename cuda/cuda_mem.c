/*
 * cuda_mem - device memory, copies, and weights on their way from files to the GPU.
 *
 * Everything on its way up passes through two pinned buffers in turn: one is filled while the other
 * is under way. Weights are converted there, by several threads, which live for one buffer;
 * everything else is the engine thread's.
 */
#include "base/dtype.h"
#include "cuda/cuda_backend.h"

#include <pthread.h>
#include <string.h>

#define COPY_THREADS 4                 /* at 10 to 15 GB/s each, what a PCIe 5 x16 link takes */
#define COPY_GRAIN   ((size_t)1 << 20) /* elements: below, a thread costs more than it saves */

static struct cuda_backend *of(struct backend *be)
{
    return (struct cuda_backend *)be;
}

int cuda_mem_alloc(struct backend *be, void **out, size_t bytes, struct err *err)
{
    cudaError_t rc = cudaSetDevice(of(be)->device); /* the thread may be a new one */

    if (rc == cudaSuccess)
        rc = cudaMalloc(out, bytes ? bytes : 1);
    if (rc == cudaErrorMemoryAllocation) {
        cudaGetLastError(); /* it must not be reported again by the next launch */
        *out = NULL;
        return err_set(err, ERR_NO_ROOM, "GPU memory: no room for %.1f MB, %.1f MB are free",
                       (double)bytes / 1e6, (double)cuda_mem_room(be) / 1e6);
    }
    return rc == cudaSuccess ? 0 : cuda_fail(err, rc, "cudaMalloc");
}

void cuda_mem_free(struct backend *be, void *ptr)
{
    (void)be;
    cudaFree(ptr);
}

int cuda_mem_host_alloc(struct backend *be, void **out, size_t bytes, struct err *err)
{
    CUDA_TRY(err, cudaSetDevice(of(be)->device));
    CUDA_TRY(err, cudaHostAlloc(out, bytes ? bytes : 1, cudaHostAllocDefault));
    return 0;
}

void cuda_mem_host_free(struct backend *be, void *ptr)
{
    (void)be;
    cudaFreeHost(ptr);
}

int cuda_mem_fetch(struct backend *be, void *host, const void *src, size_t bytes, struct err *err)
{
    if (bytes > 0)
        CUDA_TRY(err, cudaMemcpyAsync(host, src, bytes, cudaMemcpyDeviceToHost, of(be)->stream));
    return 0;
}

/*
 * Room for `bytes`, at most CUDA_STAGING_BYTES, that the device may read until the other buffer is
 * full too: far longer than a step, so that a step's uploads wait for nothing.
 */
static int stage(struct cuda_backend *cb, size_t bytes, void **out, struct err *err)
{
    if (bytes > CUDA_STAGING_BYTES - cb->staging_at) {
        CUDA_TRY(err, cudaEventRecord(cb->staging_free[cb->staging_turn], cb->stream));
        cb->staging_turn ^= 1;
        cb->staging_at = 0;
        CUDA_TRY(err, cudaEventSynchronize(cb->staging_free[cb->staging_turn]));
    }
    *out = (char *)cb->staging[cb->staging_turn] + cb->staging_at;
    cb->staging_at += (bytes + 63) / 64 * 64;
    return 0;
}

int cuda_mem_upload(struct backend *be, void *dst, const void *host, size_t bytes, struct err *err)
{
    struct cuda_backend *cb = of(be);

    CUDA_TRY(err, cudaSetDevice(cb->device));
    for (size_t at = 0; at < bytes; at += CUDA_STAGING_BYTES) {
        size_t now = bytes - at < CUDA_STAGING_BYTES ? bytes - at : CUDA_STAGING_BYTES;
        void *room;
        int rc = stage(cb, now, &room, err);

        if (rc < 0)
            return rc;
        memcpy(room, (const char *)host + at, now);
        CUDA_TRY(err,
                 cudaMemcpyAsync((char *)dst + at, room, now, cudaMemcpyHostToDevice, cb->stream));
    }
    return 0;
}

int cuda_mem_download(struct backend *be, void *host, const void *src, size_t bytes,
                      struct err *err)
{
    CUDA_TRY(err, cudaSetDevice(of(be)->device));
    if (bytes > 0)
        CUDA_TRY(err, cudaMemcpyAsync(host, src, bytes, cudaMemcpyDeviceToHost, of(be)->stream));
    CUDA_TRY(err, cudaStreamSynchronize(of(be)->stream));
    return 0;
}

size_t cuda_mem_room(struct backend *be)
{
    size_t n_free = 0, total = 0;

    if (cudaSetDevice(of(be)->device) != cudaSuccess)
        return 0;
    if (cudaMemGetInfo(&n_free, &total) != cudaSuccess)
        return 0;
    return n_free;
}

static int weight_alloc(struct backend *be, struct weight *w, int n_out, int n_in, enum dtype dtype,
                        struct err *err)
{
    memset(w, 0, sizeof(*w));
    w->dtype = dtype;
    w->n_out = n_out;
    w->n_in = n_in;
    return cuda_mem_alloc(be, &w->data, (size_t)n_out * n_in * dtype_bytes(dtype), err);
}

/* A slice of a staging buffer. */
struct convert_job {
    void *dst;
    const void *src;
    enum dtype dst_dtype, src_dtype;
    size_t n;
};

static void *convert_run(void *arg)
{
    const struct convert_job *j = arg;

    dtype_convert(j->dst, j->dst_dtype, j->src, j->src_dtype, j->n);
    return NULL;
}

/* dtype_convert() by several threads; a thread that does not start is done without. */
static void convert_wide(void *dst, enum dtype dst_dtype, const void *src, enum dtype src_dtype,
                         size_t n)
{
    struct convert_job jobs[COPY_THREADS];
    pthread_t threads[COPY_THREADS];
    bool started[COPY_THREADS] = {false};
    size_t slice = (n + COPY_THREADS - 1) / COPY_THREADS;

    slice = slice < COPY_GRAIN ? COPY_GRAIN : slice;
    for (int i = 0; i < COPY_THREADS; i++) {
        size_t at = i * slice < n ? i * slice : n;

        jobs[i] = (struct convert_job){(char *)dst + at * dtype_bytes(dst_dtype),
                                       (const char *)src + at * dtype_bytes(src_dtype), dst_dtype,
                                       src_dtype, n - at < slice ? n - at : slice};
        if (i > 0 && jobs[i].n > 0)
            started[i] = pthread_create(&threads[i], NULL, convert_run, &jobs[i]) == 0;
    }
    for (int i = 0; i < COPY_THREADS; i++) {
        if (!started[i])
            convert_run(&jobs[i]);
    }
    for (int i = 0; i < COPY_THREADS; i++) {
        if (started[i])
            pthread_join(threads[i], NULL);
    }
}

/* Copies n elements to dst, converted. */
static int load_part(struct cuda_backend *cb, char *dst, enum dtype dtype, const char *src,
                     enum dtype src_dtype, size_t n, struct err *err)
{
    size_t at_once = CUDA_STAGING_BYTES / dtype_bytes(dtype);

    for (size_t done = 0; done < n; done += at_once) {
        size_t now = n - done < at_once ? n - done : at_once;
        void *room;
        int rc = stage(cb, now * dtype_bytes(dtype), &room, err);

        if (rc < 0)
            return rc;
        convert_wide(room, dtype, src + done * dtype_bytes(src_dtype), src_dtype, now);
        CUDA_TRY(err,
                 cudaMemcpyAsync(dst + done * dtype_bytes(dtype), room, now * dtype_bytes(dtype),
                                 cudaMemcpyHostToDevice, cb->stream));
    }
    return 0;
}

int cuda_mem_weight_load(struct backend *be, struct weight *w, const struct weight_part *parts,
                         int n_parts, enum dtype dtype, bool is_matrix, struct err *err)
{
    int n_out = 0, rc;
    char *dst;

    for (int i = 0; i < n_parts; i++)
        n_out += parts[i].n_out;
    if (!is_matrix)
        dtype = DTYPE_F32; /* gains and biases */
    rc = weight_alloc(be, w, n_out, parts[0].n_in, dtype, err);
    if (rc < 0)
        return rc;
    dst = w->data;
    for (int i = 0; i < n_parts && rc == 0; i++) {
        size_t n = (size_t)parts[i].n_out * parts[i].n_in;

        rc = load_part(of(be), dst, dtype, parts[i].host, parts[i].dtype, n, err);
        dst += n * dtype_bytes(dtype);
    }
    if (rc < 0)
        cuda_mem_weight_free(be, w);
    return rc;
}

int cuda_mem_weight_random(struct backend *be, struct weight *w, int n_out, int n_in,
                           enum dtype dtype, bool is_matrix, uint64_t seed, uint32_t stream,
                           float scale, float offset, struct err *err)
{
    int rc;

    if (!is_matrix)
        dtype = DTYPE_F32;
    rc = weight_alloc(be, w, n_out, n_in, dtype, err);
    if (rc < 0)
        return rc;
    rc = weight_random_launch(of(be), w->data, (int64_t)n_out * n_in, dtype, seed, stream, scale,
                              offset, err);
    if (rc < 0)
        cuda_mem_weight_free(be, w);
    return rc;
}

void cuda_mem_weight_free(struct backend *be, struct weight *w)
{
    cuda_mem_free(be, w->data);
    memset(w, 0, sizeof(*w));
}

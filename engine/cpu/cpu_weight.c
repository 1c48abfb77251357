/*
 * cpu_weight - weights in memory: one row-major copy, used by decode rows and prompt rows alike.
 *
 * A part that already has the wanted type and lies on a cache line is borrowed from the file's
 * mapping; everything else is converted by all threads. Vectors also get an f32 copy in `packed`.
 */
#include "engine/cpu/cpu_backend.h"

#include "base/check.h"
#include "base/rng.h"

#include <string.h>

#define CONVERT_GRAIN (1 << 16) /* elements of one work item: 64 KiB to 256 KiB */
#define LINE_BYTES    64

const float *cpu_weight_vector(const struct weight *w)
{
    if (!w || !w->data)
        return NULL;
    if (w->dtype == DTYPE_F32)
        return w->data;
    CHECK(w->packed);
    return w->packed;
}

void cpu_weight_free(struct backend *be, struct weight *w)
{
    (void)be;
    if (!w)
        return;
    if (!w->borrowed)
        cpu_memory_free(w->data);
    cpu_memory_free(w->packed);
    memset(w, 0, sizeof(*w));
}

struct convert_job {
    char *dst;
    const char *src;
    enum dtype dst_dt, src_dt;
};

static void convert_items(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct convert_job *j = arg;

    (void)thread;
    dtype_convert(j->dst + (size_t)begin * dtype_bytes(j->dst_dt), j->dst_dt,
                  j->src + (size_t)begin * dtype_bytes(j->src_dt), j->src_dt,
                  (size_t)(end - begin));
}

/* The f32 copy that norms and biases are read from. */
static int vector_widen(struct weight *w, struct err *err)
{
    if (w->n_in != 1 || w->dtype == DTYPE_F32)
        return 0;
    w->packed = cpu_memory_new((size_t)w->n_out * sizeof(float));
    if (!w->packed)
        return err_set(err, ERR_NO_ROOM, "weight vector of %d: out of memory", w->n_out);
    dtype_convert(w->packed, DTYPE_F32, w->data, w->dtype, (size_t)w->n_out);
    return 0;
}

static int parts_check(const struct weight_part *parts, int n_parts, int64_t *n_out,
                       struct err *err)
{
    *n_out = 0;
    if (n_parts < 1)
        return err_set(err, ERR_INVALID, "weight: no parts");
    for (int i = 0; i < n_parts; i++) {
        if (!parts[i].host || parts[i].n_out < 1 || parts[i].n_in < 1)
            return err_set(err, ERR_INVALID, "weight part %d: shape [%d,%d], want at least [1,1]",
                           i, parts[i].n_out, parts[i].n_in);
        if (parts[i].n_in != parts[0].n_in)
            return err_set(err, ERR_INVALID, "weight part %d: shape [%d,%d], want [.,%d]", i,
                           parts[i].n_out, parts[i].n_in, parts[0].n_in);
        *n_out += parts[i].n_out;
    }
    if (*n_out > INT32_MAX)
        return err_set(err, ERR_INVALID, "weight: %lld rows are too many", (long long)*n_out);
    return 0;
}

int cpu_weight_load(struct backend *be, struct weight *w, const struct weight_part *parts,
                    int n_parts, enum dtype dtype, bool is_matrix, struct err *err)
{
    struct cpu_backend *cb = cpu_of(be);
    size_t align = is_matrix ? LINE_BYTES : dtype_bytes(dtype);
    int64_t n_out;
    char *dst;
    int rc = parts_check(parts, n_parts, &n_out, err);

    memset(w, 0, sizeof(*w));
    if (rc < 0)
        return rc;
    w->dtype = dtype;
    w->n_out = (int)n_out;
    w->n_in = parts[0].n_in;
    if (n_parts == 1 && parts[0].dtype == dtype && (uintptr_t)parts[0].host % align == 0) {
        w->data = (void *)(uintptr_t)parts[0].host; /* borrowed: nobody writes through it */
        w->borrowed = true;
    } else {
        w->data = cpu_memory_new((size_t)n_out * (size_t)w->n_in * dtype_bytes(dtype));
        if (!w->data) {
            rc = err_set(err, ERR_NO_ROOM, "weight [%d,%d] in %s: out of memory", w->n_out, w->n_in,
                         dtype_name(dtype));
            goto out;
        }
        dst = w->data;
        for (int i = 0; i < n_parts; i++) {
            int64_t n = (int64_t)parts[i].n_out * parts[i].n_in;
            struct convert_job job = {
                .dst = dst, .src = parts[i].host, .dst_dt = dtype, .src_dt = parts[i].dtype};

            cpu_threads_run(cb->threads, n, CONVERT_GRAIN, convert_items, &job);
            dst += (size_t)n * dtype_bytes(dtype);
        }
    }
    rc = vector_widen(w, err);
out:
    if (rc < 0)
        cpu_weight_free(be, w);
    return rc;
}

struct random_job {
    char *dst;
    enum dtype dtype;
    int64_t n;
    uint64_t seed;
    uint32_t stream;
    float scale, offset;
};

/* Eight elements from one counter: each takes 16 of its 128 bits, lowest first. */
static void random_items(void *arg, int64_t begin, int64_t end, int thread)
{
    const struct random_job *j = arg;
    size_t esize = dtype_bytes(j->dtype);

    (void)thread;
    for (int64_t c = begin; c < end; c++) {
        uint32_t ctr[4] = {(uint32_t)c, (uint32_t)((uint64_t)c >> 32), j->stream, 1};
        int64_t left = j->n - 8 * c;
        float x[8];

        rng_philox(ctr, (uint32_t)j->seed, (uint32_t)(j->seed >> 32));
        for (int i = 0; i < 8; i++) {
            int h = (int)(ctr[i / 2] >> (i % 2 * 16) & 0xffff);

            x[i] = (float)(2 * h - 65535) * (1.0f / 65536.0f) * j->scale + j->offset;
        }
        dtype_convert(j->dst + (size_t)(8 * c) * esize, j->dtype, x, DTYPE_F32,
                      left < 8 ? (size_t)left : 8);
    }
}

int cpu_weight_random(struct backend *be, struct weight *w, int n_out, int n_in, enum dtype dtype,
                      bool is_matrix, uint64_t seed, uint32_t stream, float scale, float offset,
                      struct err *err)
{
    struct random_job job = {.dtype = dtype,
                             .n = (int64_t)n_out * n_in,
                             .seed = seed,
                             .stream = stream,
                             .scale = scale,
                             .offset = offset};
    int rc;

    (void)is_matrix;
    memset(w, 0, sizeof(*w));
    if (n_out < 1 || n_in < 1)
        return err_set(err, ERR_INVALID, "weight: shape [%d,%d], want at least [1,1]", n_out, n_in);
    w->dtype = dtype;
    w->n_out = n_out;
    w->n_in = n_in;
    w->data = cpu_memory_new((size_t)job.n * dtype_bytes(dtype));
    if (!w->data) {
        rc = err_set(err, ERR_NO_ROOM, "weight [%d,%d] in %s: out of memory", n_out, n_in,
                     dtype_name(dtype));
        goto out;
    }
    job.dst = w->data;
    cpu_threads_run(cpu_of(be)->threads, (job.n + 7) / 8, CONVERT_GRAIN / 8, random_items, &job);
    rc = vector_widen(w, err);
out:
    if (rc < 0)
        cpu_weight_free(be, w);
    return rc;
}

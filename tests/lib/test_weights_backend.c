/*
 * test_weights_backend - a backend that holds weights and computes nothing. See
 * test_weights_backend.h.
 */
#include "tests/lib/test_weights_backend.h"

#include "base/err.h"
#include "base/rng.h"

#include <stdlib.h>
#include <string.h>

static struct test_weights_backend *self(struct backend *be)
{
    return (struct test_weights_backend *)be;
}

static int take(struct backend *be, void **out, size_t bytes, struct err *err)
{
    struct test_weights_backend *tb = self(be);

    if (tb->n_calls++ == tb->fail_at)
        return err_set(err, ERR_NO_ROOM, "refused by the test");
    *out = malloc(bytes + 1);
    if (!*out)
        return err_set(err, ERR_NO_ROOM, "out of memory");
    tb->n_live++;
    return 0;
}

static void give(struct backend *be, void *ptr)
{
    if (ptr)
        self(be)->n_live--;
    free(ptr);
}

static int upload(struct backend *be, void *dst, const void *host, size_t bytes, struct err *err)
{
    (void)be;
    (void)err;
    memcpy(dst, host, bytes);
    return 0;
}

static int download(struct backend *be, void *host, const void *src, size_t bytes, struct err *err)
{
    return upload(be, host, src, bytes, err);
}

static int new_weight(struct backend *be, struct weight *w, int n_out, int n_in, enum dtype dtype,
                      struct err *err)
{
    *w = (struct weight){.dtype = dtype, .n_out = n_out, .n_in = n_in};
    return take(be, &w->data, (size_t)n_out * n_in * dtype_bytes(dtype), err);
}

static int weight_load(struct backend *be, struct weight *w, const struct weight_part *parts,
                       int n_parts, enum dtype dtype, bool is_matrix, struct err *err)
{
    int n_out = 0, rc;
    char *at;

    (void)is_matrix;
    for (int i = 0; i < n_parts; i++)
        n_out += parts[i].n_out;
    rc = new_weight(be, w, n_out, parts[0].n_in, dtype, err);
    if (rc < 0)
        return rc;
    at = w->data;
    for (int i = 0; i < n_parts; i++) {
        size_t n = (size_t)parts[i].n_out * parts[i].n_in;

        if ((uintptr_t)parts[i].host % dtype_bytes(parts[i].dtype) != 0)
            self(be)->n_misaligned++;
        dtype_convert(at, dtype, parts[i].host, parts[i].dtype, n);
        at += n * dtype_bytes(dtype);
    }
    return 0;
}

static int weight_random(struct backend *be, struct weight *w, int n_out, int n_in,
                         enum dtype dtype, bool is_matrix, uint64_t seed, uint32_t stream,
                         float scale, float offset, struct err *err)
{
    size_t n = (size_t)n_out * n_in, bytes = dtype_bytes(dtype);
    int rc = new_weight(be, w, n_out, n_in, dtype, err);

    (void)is_matrix;
    for (size_t i = 0; i < n && rc == 0; i++) {
        float v = (rng_f32(seed, stream, i) * 2 - 1) * scale + offset;

        dtype_convert((char *)w->data + i * bytes, dtype, &v, DTYPE_F32, 1);
    }
    return rc;
}

static void weight_free(struct backend *be, struct weight *w)
{
    give(be, w->data);
    *w = (struct weight){0};
}

static const struct backend_ops ops = {
    .name = "weights",
    .alloc = take,
    .free = give,
    .upload = upload,
    .download = download,
    .weight_load = weight_load,
    .weight_random = weight_random,
    .weight_free = weight_free,
};

void test_weights_backend_init(struct test_weights_backend *tb)
{
    *tb = (struct test_weights_backend){.be = {.ops = &ops, .act_dtype = DTYPE_F32}, .fail_at = -1};
}

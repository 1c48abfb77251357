/*
 * test_mem - weights that are loaded or drawn on the GPU are the CPU's to the bit.
 */
#include "tests/cuda/cuda_pair.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};

static void check_equal(struct cuda_pair *p, const struct pair_weight *w)
{
    size_t bytes = (size_t)w->gpu.n_out * w->gpu.n_in * dtype_bytes(w->gpu.dtype);
    char *got = malloc(bytes + 1);
    struct err err = {0};

    ck_assert_int_eq(w->cpu.dtype, w->gpu.dtype);
    ck_assert_int_eq(w->cpu.n_out, w->gpu.n_out);
    ck_assert_int_eq(w->cpu.n_in, w->gpu.n_in);
    ck_assert_msg(p->gpu->ops->download(p->gpu, got, w->gpu.data, bytes, &err) == 0, "%s", err.msg);
    for (size_t i = 0; i < bytes; i++) {
        if (got[i] != ((const char *)w->cpu.data)[i])
            ck_abort_msg("%s [%d,%d]: byte %zu is %02x, want %02x", dtype_name(w->gpu.dtype),
                         w->gpu.n_out, w->gpu.n_in, i, got[i] & 255,
                         ((const char *)w->cpu.data)[i] & 255);
    }
    free(got);
}

/* Random weights are a function of seed, stream and index alone. */
START_TEST(weight_random__is_the_cpus_to_the_bit)
{
    static const int shapes[][2] = {{1, 1}, {3, 7}, {64, 65}, {1000, 333}};

    for (int i = 0; i < 3 * 4; i++) {
        struct cuda_pair p;
        struct pair_weight w;

        pair_open(&p, dtypes[i % 3]);
        w = pair_weight_random(&p, shapes[i / 3][0], shapes[i / 3][1], true, 0.0371f, 0.25f, 5);
        check_equal(&p, &w);
        pair_weight_free(&p, &w);
    }
}
END_TEST

/* Parts of several types, longer than a staging buffer, arrive converted and stacked. */
START_TEST(weight_load__converts_and_stacks)
{
    enum { N_IN = 1000, N_A = 9001, N_B = 3 };
    float *a = malloc(sizeof(*a) * N_IN * N_A);
    uint16_t *b = malloc(sizeof(*b) * N_IN * N_B);
    struct weight_part parts[2] = {{a, DTYPE_F32, N_A, N_IN}, {b, DTYPE_BF16, N_B, N_IN}};

    for (int i = 0; i < N_IN * N_A; i++)
        a[i] = sinf((float)i) * 3;
    for (int i = 0; i < N_IN * N_B; i++)
        b[i] = f32_to_bf16(cosf((float)i));
    for (int d = 0; d < 3; d++) {
        struct cuda_pair p;
        struct pair_weight w;
        struct err err = {0};

        pair_open(&p, dtypes[d]);
        ck_assert_msg(p.cpu->ops->weight_load(p.cpu, &w.cpu, parts, 2, dtypes[d], true, &err) == 0,
                      "%s", err.msg);
        ck_assert_msg(p.gpu->ops->weight_load(p.gpu, &w.gpu, parts, 2, dtypes[d], true, &err) == 0,
                      "%s", err.msg);
        check_equal(&p, &w);
        pair_weight_free(&p, &w);
    }
    free(a);
    free(b);
}
END_TEST

/* Asking for more than there is says so and leaves the backend usable. */
START_TEST(alloc__reports_what_is_missing)
{
    struct cuda_pair p;
    void *ptr;
    struct err err = {0}, none = {0};

    pair_open(&p, DTYPE_F32);
    ck_assert_int_eq(p.gpu->ops->alloc(p.gpu, &ptr, (size_t)1 << 46, &err), ERR_NO_ROOM);
    ck_assert_ptr_null(ptr);
    ck_assert_int_eq(p.gpu->ops->alloc(p.gpu, &ptr, 100, &none), 0);
    p.gpu->ops->free(p.gpu, ptr);
    ck_assert_uint_gt(p.gpu->ops->mem_free(p.gpu), 0);
}
END_TEST

/* Two steps under way: each brings back what it was given, though the host writes on meanwhile. */
START_TEST(steps__keep_their_order)
{
    enum { N = 3 << 20, N_STEPS = 30 }; /* in all more than both staging buffers hold */
    struct step_batch batch = {.n_rows = 0};
    uint8_t *given = malloc(N), *out[BACKEND_STEPS];
    struct err err = {0};
    struct cuda_pair p;
    struct backend *be;
    void *device = NULL;
    int64_t first, before_ns;

    pair_open(&p, DTYPE_F32);
    be = p.gpu;
    first = be->n_steps;
    before_ns = be->steps_ns;
    ck_assert(be->is_async);
    ck_assert_int_eq(be->ops->alloc(be, &device, N, &err), 0);
    for (int i = 0; i < BACKEND_STEPS; i++)
        ck_assert_int_eq(be->ops->host_alloc(be, (void **)&out[i], N, &err), 0);
    for (int i = 0; i <= N_STEPS; i++) {
        if (i < N_STEPS) {
            memset(given, i + 1, N);
            ck_assert_int_eq(be->ops->step_begin(be, &batch, &err), 0);
            ck_assert_int_eq(be->ops->upload(be, device, given, N, &err), 0);
            ck_assert_int_eq(be->ops->fetch(be, out[i % BACKEND_STEPS], device, N, &err), 0);
            ck_assert_int_eq(be->ops->step_end(be, &err), 0);
            ck_assert_int_eq(be->n_steps, first + i + 1);
        }
        if (i > 0) {
            ck_assert_int_eq(be->ops->step_wait(be, first + i, &err), 0);
            for (int at = 0; at < N; at += N - 1)
                ck_assert_int_eq(out[(i - 1) % BACKEND_STEPS][at], i);
        }
    }
    ck_assert_int_gt(be->steps_ns, before_ns);
    for (int i = 0; i < BACKEND_STEPS; i++)
        be->ops->host_free(be, out[i]);
    be->ops->free(be, device);
    free(given);
}
END_TEST

TEST_SUITE(cuda_mem)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_test(tc, weight_random__is_the_cpus_to_the_bit);
    tcase_add_test(tc, weight_load__converts_and_stacks);
    tcase_add_test(tc, alloc__reports_what_is_missing);
    tcase_add_test(tc, steps__keep_their_order);
}

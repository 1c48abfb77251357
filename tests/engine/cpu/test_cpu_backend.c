/*
 * Opening a backend, its weights and its account.
 */
#include "base/rng.h"
#include "engine/cpu/cpu_isa.h"
#include "tests/engine/cpu/cpu_fixture.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct backend_params small_params(const char *device)
{
    return (struct backend_params){.device = device,
                                   .dtype = DTYPE_BF16,
                                   .n_threads = 2,
                                   .max_rows = 8,
                                   .max_dim = 64,
                                   .max_vocab = 64,
                                   .max_logits = 8};
}

/* A device that is not there is refused by name, never replaced by another. */
START_TEST(backend__refuses_devices_it_does_not_have)
{
    struct backend_params gpu = small_params("cuda:7000"), junk = small_params("gpu");
    struct backend *be = NULL;
    struct err err = {0}, err2 = {0};
    int rc = backend_open(&be, &gpu, &err);

    ck_assert(rc == ERR_UNSUPPORTED || rc == ERR_DEVICE || rc == ERR_INVALID ||
              rc == ERR_NOT_FOUND);
    ck_assert_ptr_null(be);
    ck_assert_ptr_nonnull(strstr(err.msg, "cuda"));
    ck_assert_int_eq(backend_open(&be, &junk, &err2), ERR_INVALID);
    ck_assert_ptr_nonnull(strstr(err2.msg, "gpu"));
}
END_TEST

/* SPAND_ISA caps the choice, the description says it, and an unknown name is refused. */
START_TEST(backend__takes_the_cap_from_the_environment)
{
    struct backend_params p = small_params("cpu");
    struct backend *be = fixture_open(CPU_ISA_SCALAR, DTYPE_BF16, 1, 8);
    struct err err = {0};

    ck_assert_ptr_nonnull(strstr(be->description, "scalar"));
    be->ops->close(be);
    be = NULL;
    setenv("SPAND_ISA", "sse9", 1);
    ck_assert_int_eq(backend_open(&be, &p, &err), ERR_INVALID);
    ck_assert_ptr_null(be);
}
END_TEST

START_TEST(backend__names_its_ops)
{
    for (int i = 0; i < OP_COUNT; i++)
        ck_assert_str_ne(backend_op_name((enum backend_op)i), "unknown");
    ck_assert_str_eq(backend_op_name(OP_KV_APPEND), "kv_append");
    ck_assert_str_eq(backend_op_name(OP_COUNT), "unknown");
}
END_TEST

/* Parts of different types are stacked and converted. */
START_TEST(cpu_weight__stacks_and_converts_parts)
{
    struct backend *be = fixture_open(CPU_ISA_SCALAR, DTYPE_BF16, 2, 8);
    float a[6] = {1, 2, 3, 4, 5, 6};
    uint16_t b[3] = {f32_to_bf16(7), f32_to_bf16(8), f32_to_bf16(9)};
    struct weight_part parts[2] = {{.host = a, .dtype = DTYPE_F32, .n_out = 2, .n_in = 3},
                                   {.host = b, .dtype = DTYPE_BF16, .n_out = 1, .n_in = 3}};
    struct weight w;
    struct err err = {0};

    ck_assert_int_eq(be->ops->weight_load(be, &w, parts, 2, DTYPE_F16, true, &err), 0);
    ck_assert_int_eq(w.n_out, 3);
    ck_assert_int_eq(w.n_in, 3);
    for (int i = 0; i < 9; i++)
        ck_assert(f16_to_f32(((uint16_t *)w.data)[i]) == (float)(i + 1));
    be->ops->weight_free(be, &w);
    ck_assert_ptr_null(w.data);
    be->ops->close(be);
}
END_TEST

/* One aligned part of the wanted type is used where it lies. */
START_TEST(cpu_weight__borrows_what_fits)
{
    struct backend *be = fixture_open(CPU_ISA_SCALAR, DTYPE_BF16, 2, 8);
    uint16_t *host = aligned_alloc(64, 128);
    struct weight_part part = {.host = host, .dtype = DTYPE_BF16, .n_out = 2, .n_in = 8};
    struct weight w;
    struct err err = {0};

    memset(host, 0, 128);
    ck_assert_int_eq(be->ops->weight_load(be, &w, &part, 1, DTYPE_BF16, true, &err), 0);
    ck_assert_ptr_eq(w.data, host);
    be->ops->weight_free(be, &w);
    part.host = host + 1; /* not on a cache line: copied */
    ck_assert_int_eq(be->ops->weight_load(be, &w, &part, 1, DTYPE_BF16, true, &err), 0);
    ck_assert_ptr_ne(w.data, host + 1);
    be->ops->weight_free(be, &w);
    free(host);
    be->ops->close(be);
}
END_TEST

/* Parts that do not fit together are refused with both shapes. */
START_TEST(cpu_weight__refuses_shapes_that_do_not_stack)
{
    struct backend *be = fixture_open(CPU_ISA_SCALAR, DTYPE_BF16, 2, 8);
    float a[6] = {0};
    struct weight_part parts[2] = {{.host = a, .dtype = DTYPE_F32, .n_out = 2, .n_in = 3},
                                   {.host = a, .dtype = DTYPE_F32, .n_out = 3, .n_in = 2}};
    struct weight w;
    struct err err = {0}, err2 = {0};

    ck_assert_int_eq(be->ops->weight_load(be, &w, parts, 2, DTYPE_F32, true, &err), ERR_INVALID);
    ck_assert_ptr_nonnull(strstr(err.msg, "[3,2]"));
    ck_assert_ptr_null(w.data);
    ck_assert_int_eq(be->ops->weight_load(be, &w, parts, 0, DTYPE_F32, true, &err2), ERR_INVALID);
    be->ops->close(be);
}
END_TEST

/* Random weights follow the documented formula element by element, in any type and thread count. */
START_TEST(cpu_weight__random_follows_the_formula)
{
    struct backend *be = fixture_open(CPU_ISA_SCALAR, DTYPE_BF16, 3, 8);
    struct weight w;
    struct err err = {0};
    const uint64_t seed = 0x123456789abcdefull;

    ck_assert_int_eq(
        be->ops->weight_random(be, &w, 333, 101, DTYPE_F32, true, seed, 5, 0.25f, 1.0f, &err), 0);
    for (int64_t i = 0; i < 333 * 101; i++) {
        uint64_t c = (uint64_t)i / 8;
        uint32_t ctr[4] = {(uint32_t)c, (uint32_t)(c >> 32), 5, 1};
        int h;
        float want;

        rng_philox(ctr, (uint32_t)seed, (uint32_t)(seed >> 32));
        h = (int)(ctr[i % 8 / 2] >> (i % 2 * 16) & 0xffff);
        want = (float)(2 * h - 65535) * (1.0f / 65536.0f) * 0.25f + 1.0f;
        ck_assert(((float *)w.data)[i] == want);
        ck_assert(want > 0.75f);
        ck_assert(want < 1.25f);
    }
    be->ops->weight_free(be, &w);
    be->ops->close(be);
}
END_TEST

/* Memory is aligned to cache lines, copies go both ways, and free accepts NULL. */
START_TEST(cpu_backend__gives_memory)
{
    struct backend *be = fixture_open(CPU_ISA_SCALAR, DTYPE_BF16, 1, 8);
    void *p = NULL, *host = NULL;
    char in[100] = "text", out[100] = "";
    struct err err = {0}, err2 = {0};

    ck_assert_int_eq(be->ops->alloc(be, &p, 100, &err), 0);
    ck_assert_int_eq((uintptr_t)p % 64, 0);
    ck_assert_int_eq(be->ops->upload(be, p, in, 100, &err), 0);
    ck_assert_int_eq(be->ops->download(be, out, p, 100, &err), 0);
    ck_assert_str_eq(out, "text");
    ck_assert_int_eq(be->ops->host_alloc(be, &host, 100, &err), 0);
    ck_assert_int_eq(be->ops->fetch(be, host, p, 100, &err), 0);
    ck_assert_str_eq(host, "text");
    be->ops->host_free(be, host);
    be->ops->host_free(be, NULL);
    be->ops->free(be, p);
    be->ops->free(be, NULL);
    ck_assert_int_gt(be->ops->mem_free(be), 0);
    ck_assert_int_eq(be->ops->alloc(be, &p, (size_t)1 << 60, &err2), ERR_NO_ROOM);
    be->ops->close(be);
}
END_TEST

/* Steps are numbered from 1; what was ended may be waited for, more than once. */
START_TEST(cpu_backend__counts_steps)
{
    struct backend *be = fixture_open(CPU_ISA_SCALAR, DTYPE_BF16, 1, 8);
    struct step_batch b = {.n_rows = 1, .n_decode = 1};
    struct err err = {0};

    ck_assert(!be->is_async);
    for (int i = 1; i <= BACKEND_STEPS; i++) {
        ck_assert_int_eq(be->ops->step_begin(be, &b, &err), 0);
        ck_assert_int_eq(be->ops->step_end(be, &err), 0);
        ck_assert_int_eq(be->n_steps, i);
    }
    for (int i = 0; i <= BACKEND_STEPS; i++)
        ck_assert_int_eq(be->ops->step_wait(be, BACKEND_STEPS - i, &err), 0);
    be->ops->close(be);
}
END_TEST

/* An op's account holds its calls, bytes and products. */
START_TEST(cpu_backend__keeps_account)
{
    struct backend *be = fixture_open(CPU_ISA_SCALAR, DTYPE_BF16, 1, 8);
    float *x = fixture_random(1, 8 * 16, 1.0f), *wo = fixture_random(2, 16 * 32, 1.0f);
    float *a = fixture_random(3, 8 * 32, 1.0f);
    struct weight w = fixture_weight(be, wo, 16, 32, DTYPE_BF16);
    struct step_batch b = {.n_rows = 8, .n_decode = 8};
    struct err err = {0};

    ck_assert_int_eq(
        be->ops->attn_out(
            be,
            &(struct attn_out_args){.batch = &b, .dim = 16, .n_in = 32, .a = a, .wo = &w, .x = x},
            &err),
        0);
    ck_assert_int_eq(be->cost[OP_ATTN_OUT].n_calls, 1);
    ck_assert(be->cost[OP_ATTN_OUT].bytes == 16.0 * 32 * 2);
    ck_assert(be->cost[OP_ATTN_OUT].flops == 2.0 * 8 * 16 * 32);
    ck_assert_int_gt(be->cost[OP_ATTN_OUT].ns, 0);
    be->ops->weight_free(be, &w);
    free(x);
    free(wo);
    free(a);
    be->ops->close(be);
}
END_TEST

TEST_SUITE(cpu_backend)
{
    TCase *tc = test_case(suite, "core");

    tcase_add_test(tc, backend__refuses_devices_it_does_not_have);
    tcase_add_test(tc, backend__takes_the_cap_from_the_environment);
    tcase_add_test(tc, backend__names_its_ops);
    tcase_add_test(tc, cpu_weight__stacks_and_converts_parts);
    tcase_add_test(tc, cpu_weight__borrows_what_fits);
    tcase_add_test(tc, cpu_weight__refuses_shapes_that_do_not_stack);
    tcase_add_test(tc, cpu_weight__random_follows_the_formula);
    tcase_add_test(tc, cpu_backend__gives_memory);
    tcase_add_test(tc, cpu_backend__counts_steps);
    tcase_add_test(tc, cpu_backend__keeps_account);
}

/*
 * cuda_blas - products of prompt rows through cuBLASLt, and the way back through them.
 *
 * The library is over 500 MB, so it is opened at run time and only when a GPU is. One algorithm is
 * chosen a shape (n_out, n_in, epilogue, way), for a nominal number of rows and without split-K,
 * and kept: the order of a row's sums then does not depend on how many rows come with it. cuBLASLt
 * is column-major: our out[rows, n_out] = x w^T is its D[n_out, rows] = A^T B with A = w, B = x;
 * the way back, out[rows, n_in] = x w, is D[n_in, rows] = A B.
 */
#include "cuda/cuda_backend.h"

#include "base/log.h"

#include <cublasLt.h>
#include <dlfcn.h>
#include <stdlib.h>

#define WORKSPACE_BYTES ((size_t)32 << 20) /* what cuBLAS recommends for sm_90 */
#define NOMINAL_ROWS    2048  /* the shape that algorithms are chosen for: a full chunk */
#define MAX_SHAPES      128   /* a model has four, and as many back; tests try more */
#define CANDIDATES      16    /* algorithms of a shape that are timed */
#define TIMED_RUNS      3     /* of each, behind one that is not */
#define CLEARLY         0.99f /* of the best time so far: timings differ by less */

struct lt_api {
    cublasStatus_t (*create)(cublasLtHandle_t *handle);
    cublasStatus_t (*destroy)(cublasLtHandle_t handle);
    cublasStatus_t (*desc_init)(cublasLtMatmulDesc_t desc, size_t size, cublasComputeType_t compute,
                                cudaDataType_t scale);
    cublasStatus_t (*desc_set)(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attr,
                               const void *buf, size_t size);
    cublasStatus_t (*layout_init)(cublasLtMatrixLayout_t layout, size_t size, cudaDataType type,
                                  uint64_t rows, uint64_t cols, int64_t ld);
    cublasStatus_t (*pref_init)(cublasLtMatmulPreference_t pref, size_t size);
    cublasStatus_t (*pref_set)(cublasLtMatmulPreference_t pref,
                               cublasLtMatmulPreferenceAttributes_t attr, const void *buf,
                               size_t size);
    cublasStatus_t (*heuristic)(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                cublasLtMatmulPreference_t pref, int n_wanted,
                                cublasLtMatmulHeuristicResult_t *results, int *n_found);
    cublasStatus_t (*matmul)(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha,
                             const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
                             cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
                             cublasLtMatrixLayout_t c_layout, void *d,
                             cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo,
                             void *workspace, size_t workspace_bytes, cudaStream_t stream);
};

struct lt_shape {
    int n_out, n_in;
    enum gemm_epilogue epilogue;
    bool back;
    cublasLtMatmulAlgo_t algo;
};

struct cuda_blas {
    void *library;
    struct lt_api api;
    cublasLtHandle_t handle;
    void *workspace;
    struct lt_shape shapes[MAX_SHAPES];
    int n_shapes;
};

/* A function of the table, and what follows from its failure. */
#define LT_TRY(err, blas, function, ...)                                                           \
    do {                                                                                           \
        cublasStatus_t lt_try_rc_ = (blas)->api.function(__VA_ARGS__);                             \
        if (lt_try_rc_ != CUBLAS_STATUS_SUCCESS)                                                   \
            return err_set(err, ERR_DEVICE, "cuBLASLt: %s: status %d", #function,                  \
                           (int)lt_try_rc_);                                                       \
    } while (0)

static int symbols_load(struct cuda_blas *blas, struct err *err)
{
    struct {
        const char *name;
        void **to;
    } list[] = {
        {"cublasLtCreate", (void **)&blas->api.create},
        {"cublasLtDestroy", (void **)&blas->api.destroy},
        {"cublasLtMatmulDescInit_internal", (void **)&blas->api.desc_init},
        {"cublasLtMatmulDescSetAttribute", (void **)&blas->api.desc_set},
        {"cublasLtMatrixLayoutInit_internal", (void **)&blas->api.layout_init},
        {"cublasLtMatmulPreferenceInit_internal", (void **)&blas->api.pref_init},
        {"cublasLtMatmulPreferenceSetAttribute", (void **)&blas->api.pref_set},
        {"cublasLtMatmulAlgoGetHeuristic", (void **)&blas->api.heuristic},
        {"cublasLtMatmul", (void **)&blas->api.matmul},
    };

    for (size_t i = 0; i < sizeof(list) / sizeof(list[0]); i++) {
        *list[i].to = dlsym(blas->library, list[i].name);
        if (!*list[i].to)
            return err_set(err, ERR_DEVICE, "cuBLASLt: the library has no %s", list[i].name);
    }
    return 0;
}

int cuda_blas_open(struct cuda_blas **out, struct cuda_backend *cb, struct err *err)
{
    struct cuda_blas *blas = calloc(1, sizeof(*blas));
    cudaError_t cuda_rc;
    int rc;

    (void)cb;
    if (!blas)
        return err_set(err, ERR_NO_ROOM, "cuBLASLt: out of memory");
    blas->library = dlopen("libcublasLt.so.13", RTLD_NOW | RTLD_LOCAL);
    if (!blas->library) {
        rc = err_set(err, ERR_DEVICE,
                     "CUDA: cuBLASLt 13 is needed and was not found: %s "
                     "(install CUDA 13's libcublas or set LD_LIBRARY_PATH)",
                     dlerror());
        goto out;
    }
    rc = symbols_load(blas, err);
    if (rc < 0)
        goto out;
    if (blas->api.create(&blas->handle) != CUBLAS_STATUS_SUCCESS) {
        rc = err_set(err, ERR_DEVICE, "cuBLASLt: cannot be initialised on this GPU");
        goto out;
    }
    cuda_rc = cudaMalloc(&blas->workspace, WORKSPACE_BYTES);
    if (cuda_rc != cudaSuccess) {
        rc = cuda_fail(err, cuda_rc, "cuBLASLt workspace");
        goto out;
    }
    *out = blas;
    blas = NULL; /* the caller owns it now */
out:
    cuda_blas_close(blas);
    return rc;
}

void cuda_blas_close(struct cuda_blas *blas)
{
    if (!blas)
        return;
    cudaFree(blas->workspace);
    if (blas->handle)
        blas->api.destroy(blas->handle);
    if (blas->library)
        dlclose(blas->library);
    free(blas);
}

/* out = x w^T, or the way back, out = x w, as the caller wants it. */
struct lt_call {
    const struct gemm_args *a;
    bool back;
    int ldx; /* elements of x from row to row */
};

/* Elements of a row of out. */
static int call_n_to(const struct lt_call *c)
{
    return c->back ? c->a->w->n_in : c->a->w->n_out;
}

/* The descriptors of one product; they live on the caller's stack. */
struct lt_product {
    cublasLtMatmulDescOpaque_t desc;
    cublasLtMatrixLayoutOpaque_t w, x, out;
};

static int product_init(struct cuda_blas *blas, struct lt_product *p, enum dtype dtype,
                        const struct lt_call *c, int n_rows, struct err *err)
{
    cudaDataType type = dtype == DTYPE_F32    ? CUDA_R_32F
                        : dtype == DTYPE_BF16 ? CUDA_R_16BF
                                              : CUDA_R_16F;
    cudaDataType out_type = c->a->epilogue == GEMM_F32 ? CUDA_R_32F : type;
    cublasOperation_t trans = c->back ? CUBLAS_OP_N : CUBLAS_OP_T;
    int n_out = c->a->w->n_out, n_in = c->a->w->n_in, to = call_n_to(c);

    LT_TRY(err, blas, desc_init, &p->desc, sizeof(p->desc), CUBLAS_COMPUTE_32F, CUDA_R_32F);
    LT_TRY(err, blas, desc_set, &p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &trans, sizeof(trans));
    LT_TRY(err, blas, layout_init, &p->w, sizeof(p->w), type, n_in, n_out, n_in);
    LT_TRY(err, blas, layout_init, &p->x, sizeof(p->x), type, c->back ? n_out : n_in, n_rows,
           c->ldx);
    LT_TRY(err, blas, layout_init, &p->out, sizeof(p->out), out_type, to, n_rows, to);
    return 0;
}

/* Milliseconds of one run of a candidate; 0 where it does not run. */
static float candidate_time(struct cuda_backend *cb, struct lt_product *p, const void *w, void *x,
                            void *out, float beta, const cublasLtMatmulAlgo_t *algo,
                            cudaEvent_t events[2])
{
    struct cuda_blas *blas = cb->blas;
    const float one = 1;
    float ms = 0;

    for (int i = 0; i <= TIMED_RUNS; i++) {
        if (i == 1)
            cudaEventRecord(events[0], cb->stream);
        if (blas->api.matmul(blas->handle, &p->desc, &one, w, &p->w, x, &p->x, &beta, out, &p->out,
                             out, &p->out, algo, blas->workspace, WORKSPACE_BYTES,
                             cb->stream) != CUBLAS_STATUS_SUCCESS)
            return 0;
    }
    cudaEventRecord(events[1], cb->stream);
    if (cudaEventSynchronize(events[1]) != cudaSuccess ||
        cudaEventElapsedTime(&ms, events[0], events[1]) != cudaSuccess)
        return 0;
    return ms / TIMED_RUNS;
}

/*
 * The fastest of the candidates by time, on rows that are the weights' own numbers: zeros would run
 * cooler, and faster, than real ones. The first, which cuBLASLt thinks best, where there is no room
 * for such rows, and unless another one is clearly faster.
 */
static int candidate_choose(struct cuda_backend *cb, struct lt_product *p, const struct lt_call *c,
                            const cublasLtMatmulHeuristicResult_t *found, int n)
{
    const struct gemm_args *a = c->a;
    size_t elem = dtype_bytes(cb->base.act_dtype), best_at = 0;
    size_t w_bytes = (size_t)a->w->n_out * (size_t)a->w->n_in * elem;
    size_t x_bytes = (size_t)NOMINAL_ROWS * (size_t)c->ldx * elem;
    size_t out_bytes = (size_t)NOMINAL_ROWS * (size_t)call_n_to(c) *
                       (a->epilogue == GEMM_F32 ? sizeof(float) : elem);
    float beta = a->epilogue == GEMM_RESIDUAL ? 1 : 0, best = 0;
    enum cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    cudaEvent_t events[2] = {NULL, NULL};
    void *x = NULL, *out = NULL;

    if (n < 2 || cudaStreamIsCapturing(cb->stream, &capture) != cudaSuccess ||
        capture != cudaStreamCaptureStatusNone)
        return 0;
    if (cudaMalloc(&x, x_bytes) == cudaSuccess && cudaMalloc(&out, out_bytes) == cudaSuccess &&
        cudaEventCreate(&events[0]) == cudaSuccess && cudaEventCreate(&events[1]) == cudaSuccess) {
        cudaMemsetAsync(out, 0, out_bytes, cb->stream);
        cudaMemsetAsync(x, 0, x_bytes, cb->stream);
        cudaMemcpyAsync(x, a->w->data, w_bytes < x_bytes ? w_bytes : x_bytes,
                        cudaMemcpyDeviceToDevice, cb->stream);
        for (int i = 0; i < n; i++) {
            float ms = candidate_time(cb, p, a->w->data, x, out, beta, &found[i].algo, events);

            log_debug("cuBLASLt [%d, %d]: algorithm %d of %d: %.3f ms", a->w->n_out, a->w->n_in,
                      i + 1, n, (double)ms);
            if (ms > 0 && (best == 0 || ms < best * CLEARLY)) {
                best = ms;
                best_at = (size_t)i;
            }
        }
    }
    if (best == 0)
        log_info("cuBLASLt [%d, %d]: no room to time algorithms: its own first choice", a->w->n_out,
                 a->w->n_in);
    cudaGetLastError(); /* no room is no error here */
    cudaFree(x);
    cudaFree(out);
    for (int i = 0; i < 2; i++) {
        if (events[i])
            cudaEventDestroy(events[i]);
    }
    return (int)best_at;
}

/* The algorithm of a shape, chosen once. */
static int shape_find(struct cuda_backend *cb, const struct lt_call *c, const struct lt_shape **out,
                      struct err *err)
{
    const struct gemm_args *a = c->a;
    struct cuda_blas *blas = cb->blas;
    size_t workspace = WORKSPACE_BYTES;
    uint32_t no_split_k = CUBLASLT_REDUCTION_SCHEME_NONE;
    uint32_t alignment = 16; /* rows start at multiples of 8 elements, not of 256 bytes */
    static const cublasLtMatmulPreferenceAttributes_t aligned[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    cublasLtMatmulPreferenceOpaque_t pref;
    cublasLtMatmulHeuristicResult_t found[CANDIDATES];
    struct lt_product p;
    struct lt_shape *s;
    int n_found = 0, rc;

    for (int i = 0; i < blas->n_shapes; i++) {
        s = &blas->shapes[i];
        if (s->n_out == a->w->n_out && s->n_in == a->w->n_in && s->epilogue == a->epilogue &&
            s->back == c->back) {
            *out = s;
            return 0;
        }
    }
    if (blas->n_shapes == MAX_SHAPES)
        return err_set(err, ERR_UNSUPPORTED, "cuBLASLt: more than %d shapes of products",
                       MAX_SHAPES);
    rc = product_init(blas, &p, cb->base.act_dtype, c, NOMINAL_ROWS, err);
    if (rc < 0)
        return rc;
    LT_TRY(err, blas, pref_init, &pref, sizeof(pref));
    LT_TRY(err, blas, pref_set, &pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
           sizeof(workspace));
    LT_TRY(err, blas, pref_set, &pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &no_split_k,
           sizeof(no_split_k));
    for (int i = 0; i < 4; i++)
        LT_TRY(err, blas, pref_set, &pref, aligned[i], &alignment, sizeof(alignment));
    LT_TRY(err, blas, heuristic, blas->handle, &p.desc, &p.w, &p.x, &p.out, &p.out, &pref,
           CANDIDATES, found, &n_found);
    if (n_found == 0)
        return err_set(err, ERR_UNSUPPORTED, "cuBLASLt: no algorithm for [%d, %d]", a->w->n_out,
                       a->w->n_in);
    s = &blas->shapes[blas->n_shapes++];
    s->n_out = a->w->n_out;
    s->n_in = a->w->n_in;
    s->epilogue = a->epilogue;
    s->back = c->back;
    s->algo = found[candidate_choose(cb, &p, c, found, n_found)].algo;
    *out = s;
    return 0;
}

static int product_run(struct cuda_backend *cb, const struct lt_call *c, struct err *err)
{
    const struct gemm_args *a = c->a;
    struct cuda_blas *blas = cb->blas;
    const float one = 1, beta = a->epilogue == GEMM_RESIDUAL ? 1 : 0;
    const struct lt_shape *shape = NULL;
    struct lt_product p;
    int rc;

    if (a->n_rows == 0)
        return 0;
    rc = shape_find(cb, c, &shape, err);
    if (rc < 0)
        return rc;
    rc = product_init(blas, &p, cb->base.act_dtype, c, a->n_rows, err);
    if (rc < 0)
        return rc;
    LT_TRY(err, blas, matmul, blas->handle, &p.desc, &one, a->w->data, &p.w, a->x, &p.x, &beta,
           a->out, &p.out, a->out, &p.out, &shape->algo, blas->workspace, WORKSPACE_BYTES,
           cb->stream);
    return cuda_launched(cb, "cublasLtMatmul", err);
}

int cuda_blas_gemm(struct cuda_backend *cb, const struct gemm_args *a, struct err *err)
{
    return product_run(cb, &(struct lt_call){.a = a, .ldx = a->w->n_in}, err);
}

int cuda_blas_gemm_back(struct cuda_backend *cb, const struct gemm_args *a, int ldx,
                        struct err *err)
{
    return product_run(cb, &(struct lt_call){.a = a, .back = true, .ldx = ldx}, err);
}

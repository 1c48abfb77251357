/*
 * emu - fibers, barriers and the part of the CUDA runtime that the backend calls. See emu.h.
 *
 * One OS thread. Fibers switch by hand-written code: swapcontext() makes a system call each time.
 */
#include "tests/cuda/emu/emu.h"
#include "tests/cuda/emu/cuda/ptx.cuh"

#include <sys/mman.h>

#include <vector>

#define MAX_THREADS  1024
#define STACK_BYTES  (256 << 10)
#define EXCHANGE_MAX 32
#define N_SMS        3 /* few: each CTA of a persistent kernel then gets several items */
#define SMEM_MAX     (227 << 10)

struct copy_op {
    void *dst;
    const void *src;
    int n_bytes, n_total;
};

struct fiber : emu_thread {
    void *sp;
    char *stack;
    bool done;
    const char *waits_for;
    std::vector<std::vector<copy_op>> groups; /* committed, oldest first */
    std::vector<copy_op> open;
};

struct warp_state {
    unsigned char values[2][32][EXCHANGE_MAX];
    int n_posted;
    unsigned turn;
};

struct barrier_state {
    int n_arrived;
    unsigned turn;
};

emu_thread *emu_self;
uint3 emu_block_idx;
dim3 emu_block_dim, emu_grid_dim;
void *emu_dynamic;

static fiber fibers[MAX_THREADS];
static warp_state warps[MAX_THREADS / 32];
static barrier_state barriers[16];
static int n_fibers;
static void *scheduler_sp;
static const std::function<void()> *running;
static const char *running_name;
static bool progress;

/* Pushes the callee-saved registers, swaps stacks, pops the other's. */
extern "C" void emu_switch(void **save_sp, void *to_sp);
asm(".text\n.globl emu_switch\nemu_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

void emu_die(const char *why)
{
    fprintf(stderr, "emu: %s: block %u,%u thread %u: %s\n", running_name ? running_name : "?",
            emu_block_idx.x, emu_block_idx.y, emu_self ? emu_self->thread_idx.x : 0, why);
    abort();
}

void emu_yield(const char *why)
{
    fiber *f = (fiber *)emu_self;

    f->waits_for = why;
    emu_switch(&f->sp, scheduler_sp);
}

static void fiber_main()
{
    fiber *f;

    (*running)();
    f = (fiber *)emu_self;
    f->done = true;
    progress = true;
    for (;;)
        emu_yield("nothing");
}

static void fiber_start(fiber *f)
{
    void **sp;

    if (!f->stack)
        f->stack = (char *)mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    sp = (void **)(f->stack + STACK_BYTES);
    *--sp = NULL; /* keeps the stack 16-byte aligned at the entry */
    *--sp = (void *)fiber_main;
    for (int i = 0; i < 6; i++)
        *--sp = NULL;
    f->sp = sp;
    f->done = false;
    f->groups.clear();
    f->open.clear();
}

/* EMU_SEED=n: the threads of a CTA take turns in an order that is shuffled each round. */
static void shuffle(int *order, int n)
{
    static uint64_t state;
    const char *seed = getenv("EMU_SEED");

    if (!seed)
        return;
    if (state == 0)
        state = strtoull(seed, NULL, 10) * 2 + 88172645463325253ull;
    for (int i = n - 1; i > 0; i--) {
        int j, t = order[i];

        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        j = (int)(state % (uint64_t)(i + 1));
        order[i] = order[j];
        order[j] = t;
    }
}

static void run_block()
{
    int n_left = n_fibers, order[MAX_THREADS];

    memset(barriers, 0, sizeof(barriers));
    for (int i = 0; i < (n_fibers + 31) / 32; i++)
        warps[i].n_posted = 0;
    for (int i = 0; i < n_fibers; i++)
        fiber_start(&fibers[i]);
    for (int i = 0; i < n_fibers; i++)
        order[i] = i;
    while (n_left > 0) {
        progress = false;
        n_left = 0;
        shuffle(order, n_fibers);
        for (int i = 0; i < n_fibers; i++) {
            fiber *f = &fibers[order[i]];

            if (f->done)
                continue;
            emu_self = f;
            emu_switch(&scheduler_sp, f->sp);
            n_left += !f->done;
        }
        if (!progress) {
            for (int i = 0; i < n_fibers; i++) {
                if (!fibers[i].done)
                    fprintf(stderr, "emu: thread %d waits for %s\n", i, fibers[i].waits_for);
            }
            emu_die("deadlock");
        }
    }
}

/* A graph is the work that was asked for during its capture. */
typedef std::vector<std::function<void()>> work_list;
static work_list *capture; /* NULL: work is done at once */

void emu_launch(const char *name, emu_grid g, const std::function<void()> &kernel)
{
    if (capture) {
        capture->push_back([=]() { emu_launch(name, g, kernel); });
        return;
    }
    /* Of the launch's own size, so that AddressSanitizer sees who reaches beyond it. */
    size_t n_smem = (g.smem + 127) / 128 * 128;
    char *smem = (char *)aligned_alloc(128, n_smem ? n_smem : 128);

    running_name = name;
    running = &kernel;
    n_fibers = g.block.x * g.block.y * g.block.z;
    if (n_fibers < 1 || n_fibers > MAX_THREADS || g.smem > SMEM_MAX || g.grid.y > 65535 ||
        g.grid.x == 0)
        emu_die("launch is out of bounds");
    emu_block_dim = g.block;
    emu_grid_dim = g.grid;
    emu_dynamic = smem;
    for (int i = 0; i < n_fibers; i++) {
        fibers[i].thread_idx = make_uint3(i, 0, 0);
        fibers[i].lane = i % 32;
        fibers[i].warp = i / 32;
    }
    for (unsigned y = 0; y < g.grid.y; y++) {
        for (unsigned x = 0; x < g.grid.x; x++) {
            emu_block_idx = make_uint3(x, y, 0);
            memset(smem, 0xff, n_smem); /* NaN: what was not written must not be used */
            run_block();
        }
    }
    free(smem);
    emu_self = NULL;
}

static void wait_for_all(barrier_state *b, int n_threads, const char *why)
{
    unsigned turn = b->turn;

    if (++b->n_arrived > n_threads)
        emu_die("too many threads at a barrier");
    if (b->n_arrived == n_threads) {
        b->n_arrived = 0;
        b->turn++;
        progress = true;
        return;
    }
    while (b->turn == turn)
        emu_yield(why);
}

void emu_syncthreads()
{
    wait_for_all(&barriers[0], n_fibers, "__syncthreads");
}

void emu_named_barrier(int id, int n_threads)
{
    wait_for_all(&barriers[id], n_threads, "a named barrier");
}

const unsigned char (*emu_exchange(const void *mine, size_t bytes))[32]
{
    warp_state *w = &warps[emu_self->warp];
    unsigned turn = w->turn;

    static_assert(EXCHANGE_MAX == 32, "the type of the result says so");
    if (bytes > EXCHANGE_MAX)
        emu_die("exchange of more than 32 bytes");
    memcpy(w->values[turn & 1][emu_self->lane], mine, bytes);
    if (++w->n_posted == 32) {
        w->n_posted = 0;
        w->turn++;
        progress = true;
    }
    while (w->turn == turn)
        emu_yield("the other lanes");
    return w->values[turn & 1];
}

void emu_copy_async(void *dst, const void *src, int n_bytes, int n_total)
{
    if ((uintptr_t)dst % 16 || (uintptr_t)src % 16)
        emu_die("misaligned cp.async");
    ((fiber *)emu_self)->open.push_back({dst, src, n_bytes, n_total});
}

void emu_copy_commit()
{
    fiber *f = (fiber *)emu_self;

    f->groups.push_back(f->open);
    f->open.clear();
}

void emu_copy_wait(int n_left)
{
    fiber *f = (fiber *)emu_self;

    while ((int)f->groups.size() > n_left) {
        for (const copy_op &op : f->groups.front()) {
            memcpy(op.dst, op.src, op.n_bytes);
            memset((char *)op.dst + op.n_bytes, 0, op.n_total - op.n_bytes);
        }
        f->groups.erase(f->groups.begin());
        progress = true;
    }
}

/* A barrier's 64 bits: bytes under way, arrivals missing, arrivals of a phase, phase. */
struct mbarrier {
    int32_t bytes;
    uint16_t missing;
    uint16_t count : 15, phase : 1;
};
static_assert(sizeof(mbarrier) == 8, "it replaces a uint64_t");

void emu_barrier_init(uint64_t *bar, int count)
{
    mbarrier m = {0, (uint16_t)count, (uint16_t)count, 0};

    memcpy(bar, &m, sizeof(m));
}

void emu_barrier_arrive(uint64_t *bar, int n_arrivals, int64_t expect_bytes)
{
    mbarrier m;

    memcpy(&m, bar, sizeof(m));
    if (m.missing < n_arrivals)
        emu_die("more arrivals than the barrier expects");
    m.missing -= n_arrivals;
    m.bytes += (int32_t)expect_bytes;
    if (m.missing == 0 && m.bytes == 0) {
        m.missing = m.count;
        m.phase ^= 1;
    }
    memcpy(bar, &m, sizeof(m));
    progress = true;
}

bool emu_barrier_passed(const uint64_t *bar, uint32_t parity)
{
    mbarrier m;

    memcpy(&m, bar, sizeof(m));
    return m.phase != (parity & 1);
}

/* ---- the CUDA runtime ---- */

extern "C" {

cudaError_t cudaMalloc(void **out, size_t bytes)
{
    if (capture)
        return cudaErrorStreamCaptureUnsupported;
    if (bytes > (size_t)1 << 40)
        return cudaErrorMemoryAllocation;
    *out = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (*out)
        memset(*out, 0xff, bytes < (64u << 20) ? bytes : 0);
    return *out ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void *p)
{
    free(p);
    return cudaSuccess;
}
cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned)
{
    *out = malloc(bytes);
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void *p)
{
    free(p);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t n, cudaMemcpyKind, cudaStream_t)
{
    if (capture)
        capture->push_back([=]() { memcpy(dst, src, n); });
    else
        memcpy(dst, src, n);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t)
{
    if (capture)
        capture->push_back([=]() { memset(p, v, n); });
    else
        memset(p, v, n);
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode)
{
    if (capture)
        return cudaErrorIllegalState;
    capture = new work_list;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *graph)
{
    if (!capture)
        return cudaErrorIllegalState;
    *graph = (cudaGraph_t)capture;
    capture = NULL;
    if (getenv("EMU_NO_GRAPHS")) {
        delete (work_list *)*graph;
        *graph = NULL;
        return cudaErrorStreamCaptureUnsupported;
    }
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long)
{
    *exec = (cudaGraphExec_t) new work_list(*(work_list *)graph);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t)
{
    for (const std::function<void()> &work : *(work_list *)exec)
        work();
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete (work_list *)graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    delete (work_list *)exec;
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *n_free, size_t *total)
{
    *n_free = *total = (size_t)1 << 30;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t)
{
    return capture ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned)
{
    *s = (cudaStream_t)1;
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t)
{
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *e)
{
    *e = (cudaEvent_t)1;
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned)
{
    *e = (cudaEvent_t)1;
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t)
{
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t)
{
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t)
{
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t, cudaEvent_t)
{
    *ms = 1;
    return cudaSuccess;
}
cudaError_t cudaGetLastError(void)
{
    return cudaSuccess;
}
const char *cudaGetErrorName(cudaError_t)
{
    return "emulated";
}
const char *cudaGetErrorString(cudaError_t)
{
    return "emulated";
}
cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute, int value)
{
    return value <= SMEM_MAX ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, const void *)
{
    memset(a, 0, sizeof(*a));
    a->sharedSizeBytes = 8192;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *n)
{
    *n = 1;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int)
{
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *v)
{
    *v = 0;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *v)
{
    *v = 0;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int)
{
    memset(p, 0, sizeof(*p));
    strcpy(p->name, "emulated GPU");
    p->major = HAS_BULK_COPY ? 9 : 8;
    p->multiProcessorCount = N_SMS;
    p->totalGlobalMem = (size_t)1 << 30;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *v, cudaDeviceAttr, int)
{
    *v = HAS_BULK_COPY ? SMEM_MAX : 163 << 10;
    return cudaSuccess;
}
}

/* ---- cuda_blas.c: plain loops instead of cuBLASLt ---- */

#include "base/dtype.h"
#include "cuda/cuda_backend.h"

struct cuda_blas {
    int unused;
};

int cuda_blas_open(struct cuda_blas **out, struct cuda_backend *, struct err *)
{
    *out = (struct cuda_blas *)calloc(1, sizeof(**out));
    return 0;
}

void cuda_blas_close(struct cuda_blas *blas)
{
    free(blas);
}

/* x [n_rows, ldx]; w as it is, or turned around for the way back. */
template <typename T, typename O>
static void blas_gemm(const struct gemm_args *a, bool back, int ldx)
{
    const T *x = (const T *)a->x, *w = (const T *)a->w->data;
    O *out = (O *)a->out;
    int n_in = back ? a->w->n_out : a->w->n_in, n_out = back ? a->w->n_in : a->w->n_out;
    std::vector<float> wf((size_t)n_in * n_out), xf(n_in);

    for (int o = 0; o < n_out; o++) {
        for (int i = 0; i < n_in; i++)
            wf[(size_t)o * n_in + i] =
                (float)(back ? w[(size_t)i * n_out + o] : w[(size_t)o * n_in + i]);
    }
    for (int r = 0; r < a->n_rows; r++) {
        for (int i = 0; i < n_in; i++)
            xf[i] = (float)x[(size_t)r * ldx + i];
        for (int o = 0; o < n_out; o++) {
            const float *row = &wf[(size_t)o * n_in];
            O *y = &out[(size_t)r * n_out + o];
            float sum = 0;

            for (int i = 0; i < n_in; i++)
                sum += xf[i] * row[i];
            *y = (O)(a->epilogue == GEMM_RESIDUAL ? sum + (float)*y : sum);
        }
    }
}

template <typename T> static void blas_gemm_of(const struct gemm_args *a, bool back, int ldx)
{
    struct gemm_args copy = *a;
    struct weight w = *a->w;
    std::function<void()> work = [copy, w, back, ldx]() {
        struct gemm_args now = copy;

        now.w = &w;
        if (now.epilogue == GEMM_F32)
            blas_gemm<T, float>(&now, back, ldx);
        else
            blas_gemm<T, T>(&now, back, ldx);
    };

    if (capture)
        capture->push_back(work);
    else
        work();
}

static int blas_run(struct cuda_backend *cb, const struct gemm_args *a, bool back, int ldx)
{
    if (a->n_rows == 0)
        return 0;
    if (cb->base.act_dtype == DTYPE_F32)
        blas_gemm_of<float>(a, back, ldx);
    else if (cb->base.act_dtype == DTYPE_BF16)
        blas_gemm_of<__nv_bfloat16>(a, back, ldx);
    else
        blas_gemm_of<__half>(a, back, ldx);
    return 0;
}

int cuda_blas_gemm(struct cuda_backend *cb, const struct gemm_args *a, struct err *)
{
    return blas_run(cb, a, false, a->w->n_in);
}

int cuda_blas_gemm_back(struct cuda_backend *cb, const struct gemm_args *a, int ldx, struct err *)
{
    return blas_run(cb, a, true, ldx);
}

/* Nothing that only Hopper has is emulated: the backend does without. */
extern "C" int cuda_hopper_open(struct cuda_backend *cb, struct err *err)
{
    (void)cb;
    (void)err;
    return 0;
}

/* There is no memory to measure. */
extern "C" int cuda_read_bandwidth(struct cuda_backend *cb, size_t bytes, double *registers,
                                   double *bulk, struct err *err)
{
    (void)cb;
    (void)bytes;
    (void)err;
    *registers = *bulk = 0;
    return 0;
}

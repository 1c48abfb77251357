/*
 * ptx - cuda/ptx.cuh for the emulator: the same names, done by a CPU. See emu.h.
 */
#ifndef PTX_CUH
#define PTX_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#ifndef HAS_BULK_COPY
#define HAS_BULK_COPY 1
#endif

typedef uintptr_t smem_ref;

static inline smem_ref smem_addr(const void *p)
{
    return (smem_ref)p;
}

void emu_copy_async(void *dst, const void *src, int n_bytes, int n_total);
void emu_copy_commit();
void emu_copy_wait(int n_left);
void emu_barrier_init(uint64_t *bar, int count);
void emu_barrier_arrive(uint64_t *bar, int n_arrivals, int64_t expect_bytes);
bool emu_barrier_passed(const uint64_t *bar, uint32_t parity);

static inline int32_t add_acq_rel(int32_t *p, int32_t v)
{
    int32_t old = *p;

    *p += v;
    return old;
}
static inline void grid_wait()
{
}
static inline void grid_launch_next()
{
}

static inline void copy_async16(smem_ref dst, const void *src, int n_bytes = 16)
{
    emu_copy_async((void *)dst, src, n_bytes, 16);
}
static inline void copy_async_commit()
{
    emu_copy_commit();
}
template <int N> static inline void copy_async_wait()
{
    emu_copy_wait(N);
}
static inline void barrier_init(uint64_t *bar, int count)
{
    emu_barrier_init(bar, count);
}
static inline void barrier_init_done()
{
}
static inline void barrier_arrive(uint64_t *bar)
{
    emu_barrier_arrive(bar, 1, 0);
}
static inline void barrier_wait(uint64_t *bar, uint32_t parity)
{
    while (!emu_barrier_passed(bar, parity))
        emu_yield("a barrier");
}
static inline void barrier_arrive_expect(uint64_t *bar, uint32_t n_bytes)
{
    emu_barrier_arrive(bar, 1, n_bytes);
}
static inline void copy_bulk(smem_ref dst, const void *src, uint32_t n_bytes, uint64_t *bar,
                             uint64_t)
{
    if (dst % 16 || (uintptr_t)src % 16 || n_bytes % 16)
        emu_die("misaligned bulk copy");
    memcpy((void *)dst, src, n_bytes);
    emu_barrier_arrive(bar, 0, -(int64_t)n_bytes);
}
static inline uint64_t policy_evict_first()
{
    return 0;
}
static inline void barrier_arrive_on_copies(uint64_t *bar)
{
    emu_copy_commit();
    emu_copy_wait(0);
    emu_barrier_arrive(bar, 1, 0);
}
static inline void named_barrier(int id, int n_threads)
{
    emu_named_barrier(id, n_threads);
}

static inline void load_matrix4(uint32_t r[4], smem_ref addr)
{
    const unsigned char(*all)[32] = emu_exchange(&addr, sizeof(addr));
    int g = emu_self->lane / 4, t = emu_self->lane % 4;

    if (addr % 16)
        emu_die("misaligned ldmatrix");
    for (int m = 0; m < 4; m++) {
        smem_ref row;

        memcpy(&row, all[m * 8 + g], sizeof(row));
        memcpy(&r[m], (const char *)row + t * 4, 4);
    }
}
static inline void load_matrix4_trans(uint32_t r[4], smem_ref addr)
{
    const unsigned char(*all)[32] = emu_exchange(&addr, sizeof(addr));
    int g = emu_self->lane / 4, t = emu_self->lane % 4;

    if (addr % 16)
        emu_die("misaligned ldmatrix");
    for (int m = 0; m < 4; m++) {
        smem_ref row[2];
        uint16_t v[2];

        memcpy(&row[0], all[m * 8 + 2 * t], sizeof(row[0]));
        memcpy(&row[1], all[m * 8 + 2 * t + 1], sizeof(row[1]));
        memcpy(&v[0], (const char *)row[0] + g * 2, 2);
        memcpy(&v[1], (const char *)row[1] + g * 2, 2);
        r[m] = v[0] | (uint32_t)v[1] << 16;
    }
}

template <typename T> static inline void emu_pair(float out[2], uint32_t u)
{
    T v[2];

    memcpy(v, &u, 4);
    out[0] = (float)v[0];
    out[1] = (float)v[1];
}

/* Element (row, k) of a is in lane 4 (row % 8) + k % 8 / 2, register row / 8 + 2 (k / 8); b alike.
 */
template <typename T>
static inline void mma16816(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    const unsigned char(*all)[32] = emu_exchange(mine, sizeof(mine));
    int g = emu_self->lane / 4, t = emu_self->lane % 4;

    for (int k = 0; k < 16; k += 2) {
        for (int e = 0; e < 4; e++) {
            int row = g + e / 2 * 8, col = 2 * t + e % 2;
            uint32_t ua, ub;
            float x[2], y[2];

            memcpy(&ua, all[4 * (row % 8) + k % 8 / 2] + 4 * (row / 8 + 2 * (k / 8)), 4);
            memcpy(&ub, all[4 * col + k % 8 / 2] + 4 * (4 + k / 8), 4);
            emu_pair<T>(x, ua);
            emu_pair<T>(y, ub);
            c[e] += x[0] * y[0];
            c[e] += x[1] * y[1];
        }
    }
}

static inline float exp2_approx(float x)
{
    return exp2f(x);
}

#endif

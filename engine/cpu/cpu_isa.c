/*
 * cpu_isa - CPUID through the compiler's helpers, which also ask whether the system saves the
 * registers. AMX needs a system call besides: its tiles are off until a process asks for them. The
 * permission is the process's: one call at open serves the threads that are started after it. When
 * it is refused (an old kernel, a sandbox), the AVX-512 product takes over.
 */
#include "engine/cpu/cpu_isa.h"

#include "base/err.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *const isa_names[] = {[CPU_ISA_SCALAR] = "scalar",
                                        [CPU_ISA_AVX2] = "avx2",
                                        [CPU_ISA_AVX512] = "avx512",
                                        [CPU_ISA_AVX512BF16] = "avx512bf16",
                                        [CPU_ISA_AMX] = "amx"};

#define N_ISAS ((int)(sizeof(isa_names) / sizeof(isa_names[0])))

const char *cpu_isa_name(enum cpu_isa isa)
{
    return isa_names[isa];
}

#if defined(__x86_64__)
#include <cpuid.h>

#define ARCH_REQ_XCOMP_PERM 0x1023 /* asm/prctl.h from Linux 5.16 on */
#define XFEATURE_XTILEDATA  18

#define XCR0_TILES (3u << 17) /* tile configuration and tile data */

/* Does the system save the tiles? */
static bool xcr0_has_tiles(void)
{
    unsigned a, b, c, d;

    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
        return false;
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return (a & XCR0_TILES) == XCR0_TILES;
}

static bool amx_is_usable(void)
{
    unsigned a, b, c, d;

    if (!xcr0_has_tiles() || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return false;
    if (!(d & (1u << 24)) || !(d & (1u << 22))) /* AMX-TILE, AMX-BF16 */
        return false;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

enum cpu_isa cpu_isa_detect(void)
{
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
        !__builtin_cpu_supports("f16c"))
        return CPU_ISA_SCALAR;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return CPU_ISA_AVX2;
    if (!__builtin_cpu_supports("avx512bf16"))
        return CPU_ISA_AVX512;
    return amx_is_usable() ? CPU_ISA_AMX : CPU_ISA_AVX512BF16;
}
#else
enum cpu_isa cpu_isa_detect(void)
{
    return CPU_ISA_SCALAR;
}
#endif

int cpu_isa_choose(enum cpu_isa *out, struct err *err)
{
    const char *cap = getenv("SPAND_ISA");
    enum cpu_isa best = cpu_isa_detect();

    *out = best;
    if (!cap || !*cap)
        return 0;
    for (int i = 0; i < N_ISAS; i++) {
        if (strcmp(cap, isa_names[i]) == 0) {
            *out = (enum cpu_isa)i < best ? (enum cpu_isa)i : best;
            return 0;
        }
    }
    return err_set(err, ERR_INVALID,
                   "SPAND_ISA: \"%s\", want scalar, avx2, avx512, avx512bf16 or amx", cap);
}

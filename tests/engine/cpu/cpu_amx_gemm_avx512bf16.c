/*
 * cpu_amx_gemm - the AMX product's own source, compiled with the tile instructions replaced by the
 * model. The vectors around them are real, so callers need AVX-512 bf16.
 */
#if defined(__x86_64__)
#include "tests/engine/cpu/cpu_amx_model.h"

#include <immintrin.h>

/* The compiler's own are macros in part, whose tiles must be literals. */
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig(config)         amx_loadconfig(config)
#define _tile_release()                  amx_release()
#define _tile_zero(tile)                 amx_zero(tile)
#define _tile_loadd(tile, base, stride)  amx_loadd(tile, base, stride)
#define _tile_stored(tile, base, stride) amx_stored(tile, base, stride)
#define _tile_dpbf16ps(dst, a, b)        amx_dpbf16ps(dst, a, b)

#define cpu_gemm_amx cpu_amx_gemm_modelled
#include "engine/cpu/cpu_kernels.h"

extern const struct cpu_gemm cpu_amx_gemm_modelled;

#include "engine/cpu/cpu_gemm_amx.c"
#endif

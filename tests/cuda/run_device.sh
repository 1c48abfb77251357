#!/bin/sh
# Runs the GPU suites and short timings on a machine with a GPU: one process a suite, so that a crash
# hides nothing else, each with a time limit. Wants the programs where `make` leaves them, or in $1.
#
#   tests/cuda/run_device.sh [DIR] [suites|bench|sanitizer ...]

dir=${1:-build}
[ $# -gt 0 ] && shift
what=${*:-suites bench sanitizer}
log=${LOG:-/dev/null}

# cuBLASLt: CUDA's own folder, or one that came with a Python package.
packages=$(python3 -c 'import sys; print(" ".join(p + "/nvidia/*/lib" for p in sys.path if p))' 2>/dev/null)
for lib in /usr/local/cuda/lib64 $packages; do
    if [ -e "$lib/libcublasLt.so.13" ]; then
        LD_LIBRARY_PATH=$lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
        export LD_LIBRARY_PATH
        break
    fi
done
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,memory.free --format=csv,noheader

run() { # seconds, name, command
    limit=$1 name=$2
    shift 2
    echo "== $name"
    begin=$(date +%s)
    timeout "$limit" "$@" 2>&1 | tee -a "$log" | tail -n "${TAIL:-12}" | cut -c1-400
    echo "   $(($(date +%s) - begin)) s"
}

for w in $what; do
    case $w in
    suites)
        for s in cuda_mem cuda_ops cuda_attn_decode cuda_attn_prompt cuda_sample cuda_invariance cuda_model cuda_block; do
            CK_RUN_SUITE=$s
            export CK_RUN_SUITE
            run "${SUITE_LIMIT:-40}" "$s" "$dir/spand-cuda-tests"
        done
        unset CK_RUN_SUITE ;;
    bench)
        for b in attn gemm prefill step; do
            TAIL=45 run "${BENCH_LIMIT:-40}" "bench $b" "$dir/spand-cuda-bench" $b
        done ;;
    sanitizer)
        CK_RUN_SUITE=cuda_mem
        export CK_RUN_SUITE
        run 60 "memcheck cuda_mem" compute-sanitizer --tool memcheck "$dir/spand-cuda-tests"
        CK_RUN_SUITE=cuda_attn_decode
        run "${SANITIZER_LIMIT:-90}" "memcheck cuda_attn_decode" compute-sanitizer --tool memcheck "$dir/spand-cuda-tests"
        CK_RUN_SUITE=cuda_sample
        run "${SANITIZER_LIMIT:-90}" "memcheck cuda_sample" compute-sanitizer --tool memcheck "$dir/spand-cuda-tests"
        unset CK_RUN_SUITE ;;
    esac
done

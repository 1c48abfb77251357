#!/bin/sh
# Runs the GPU suites and short timings on a machine with a GPU: one process a suite, so that a crash
# hides nothing else, each with a time limit. Wants the programs where `make` leaves them, or in $1.
#
#   tests/cuda/run_device.sh [DIR] [suites|bench|sanitizer|blocks ...]

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

# Greedy text of one model in f32: the GPU's must be the CPU's.
same_text() { # model
    for n in 1 2 3 4 5 9 40; do
        for prompt in T The "The history of" "In the year 1776 the" "What is"; do
            for device in cpu cuda; do
                "$dir/spand" generate --model "$1" --dtype f32 --device "$device" --prompt "$prompt" \
                    --max-tokens "$n" >"/tmp/spand-$$-$device" 2>/tmp/spand-$$-log || cat /tmp/spand-$$-log
            done
            cmp "/tmp/spand-$$-cpu" "/tmp/spand-$$-cuda" || echo "DIFFERS: $1, \"$prompt\", $n tokens"
        done
    done
    rm -f /tmp/spand-$$-*
    echo "$1: compared"
}

for w in $what; do
    case $w in
    suites)
        for s in cuda_mem cuda_ops cuda_attn_decode cuda_attn_prompt cuda_sample cuda_invariance cuda_model cuda_block cuda_engine cuda_grad; do
            CK_RUN_SUITE=$s
            export CK_RUN_SUITE
            run "${SUITE_LIMIT:-40}" "$s" "$dir/spand-cuda-tests"
        done
        unset CK_RUN_SUITE ;;
    bench)
        for b in attn gemm prefill step grad; do
            TAIL=45 run "${BENCH_LIMIT:-40}" "bench $b" "$dir/spand-cuda-bench" $b
        done ;;
    blocks)
        for m in models/demo-block models/demo-llama; do
            [ -f "$m/config.json" ] && same_text "$m"
        done
        TAIL=60 run "${BENCH_LIMIT:-400}" "blocks.py" python3 tests/bench/blocks.py --bench "$dir/spand-bench" -- --device cuda ;;
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

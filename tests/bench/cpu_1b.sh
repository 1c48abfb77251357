#!/bin/sh
# Prefill and decode of a random 1.10 B Llama (16 layers, 2048 wide, FFN 8192, 32 heads on 8 KV
# heads, vocabulary 32000) in bf16 on two cores: under a minute with AMX, 3 GiB of memory.
#
#     tests/bench/cpu_1b.sh [DIR]     DIR holds spand-bench; build/ unless given
#
# Decode is held against the read bandwidth that the same process measures on the same threads
# right before and after. Each figure is taken three times; the medians are printed last.
set -eu
dir=${1:-$(dirname "$0")/../../build}
[ -x "$dir/spand-bench" ] || { echo "cpu_1b: no $dir/spand-bench; run make first" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

cat > "$work/config.json" <<'JSON'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000,
 "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
 "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 4096,
 "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false,
 "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16"}
JSON

# Two physical cores of those that this process may use: no two lines with the same core.
allowed=$(taskset -pc $$ | sed 's/.*: //')
cpus=$(lscpu -p=CPU,CORE,SOCKET | awk -F, -v allowed="$allowed" '
    BEGIN { n = split(allowed, part, ",")
            for (i = 1; i <= n; i++) { split(part[i] "-" part[i], r, "-")
                                       for (c = r[1]; c <= r[2]; c++) ok[c] = 1 } }
    /^#/ || !($1 in ok) || ($2 "," $3) in seen { next }
    { seen[$2 "," $3] = 1; if (n_out++ < 2) out = out (out == "" ? "" : ",") $1 }
    END { print out }')
case $cpus in *,*) ;; *) echo "cpu_1b: want two physical cores, found \"$cpus\"" >&2; exit 1 ;; esac
echo "$(lscpu | sed -n 's/^Model name: *//p'), cores $cpus, load $(cut -d' ' -f1 /proc/loadavg)"

taskset -c "$cpus" "$dir/spand-bench" engine --model "$work" --weights random --dtype bf16 \
    --device cpu --threads 2 --batch 1,1,1 --context 129 --steps 24 --csv "$work/decode.csv"
taskset -c "$cpus" "$dir/spand-bench" engine --model "$work" --weights random --dtype bf16 \
    --device cpu --threads 2 --batch 1 --context 129,129,129,513,513,513 --steps 1 \
    --csv "$work/prefill.csv"

awk -F, '
    { gsub(/"[^"]*"/, "text") } # device, shape and plan have commas of their own
    FNR == 1 { for (i = 1; i <= NF; i++) col[$i] = i; next }
    function median(list,  i, j, n, t, v) {
        n = split(list, v, " ")
        for (i = 1; i <= n; i++) for (j = i + 1; j <= n; j++)
            if (v[j] + 0 < v[i] + 0) { t = v[i]; v[i] = v[j]; v[j] = t }
        return v[int((n + 1) / 2)]
    }
    FILENAME ~ /decode.csv$/ { tok = tok " " $col["tok_s"]; bw = bw " " $col["read_bw"]
                               pct = pct " " $col["pct"] }
    FILENAME ~ /prefill.csv$/ { pre[$col["context"]] = pre[$col["context"]] " " $col["prefill_tok_s"] }
    END {
        printf "decode   %8.1f tok/s, %5.1f %% of the %.1f GB/s read at most (floor 75, aim 95)\n",
               median(tok), median(pct), median(bw)
        for (c = 129; c <= 513; c += 384)
            printf "prefill  %8.1f tok/s for %d tokens (with AMX: floor 400, aim 1500)\n",
                   median(pre[c]), c - 1
    }' "$work/decode.csv" "$work/prefill.csv"

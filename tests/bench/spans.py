#!/usr/bin/env python3
"""What decode under spans costs, next to dense, on one device, with random weights.

    spans.py [--rows vicuna-7b,vicuna-13b,llama-3-8b,constant] [--csv FILE] [-- FLAGS]

FLAGS go to every `spand-bench engine`: --device cuda, --kv-memory and so on. Each row of the result
comes from runs that follow each other on the same device:

    vicuna-*     at 4k, 8k and 16k: dense and the published plan, each at the largest batch; the plan at
                 dense's batch, which tells what fewer bytes give from what more sequences give; and
                 uniform spans of the same density at the plan's batch, which tell what unequal spans
                 cost
    llama-3-8b   the same with grouped heads at 8k, 32k and 128k
    constant     a plan whose every beta is 0, from 4k to 64k tokens: the step must not grow

Percentages are of the limit: the time to read the weights once and the keys and values that the plan
keeps once, at the read bandwidth measured beside each run. Nothing but Python is needed.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))
FIXTURES = os.path.join(ROOT, "tests", "fixtures")
PLANS = {
    "vicuna-7b": "lmsys--vicuna-7b-v1.5-16k",
    "vicuna-13b": "lmsys--vicuna-13b-v1.5-16k",
    "llama-3-8b": "gradientai--Llama-3-8B-Instruct-262k",
}
LENGTHS = {
    "vicuna-7b": [4096, 8192, 16384],
    "vicuna-13b": [4096, 8192, 16384],
    "llama-3-8b": [8192, 32768, 131072],
}
CONSTANT_LENGTHS = [4096, 8192, 16384, 32768, 65536]
# Tokens a second of the released runtime on one A100-80GB and its batch: the paper's Table 5.
PAPER = {
    ("vicuna-7b", 4096): (50, 1099.0, 30, 628.8), ("vicuna-7b", 8192): (25, 535.7, 15, 323.0),
    ("vicuna-7b", 16384): (12, 257.3, 8, 145.5), ("vicuna-13b", 4096): (28, 550.9, 16, 314.8),
    ("vicuna-13b", 8192): (14, 267.6, 8, 160.5), ("vicuna-13b", 16384): (7, 132.3, 4, 71.1),
}
A100_GBS = 2039.0  # the peak of its memory


class Bench:
    def __init__(self, args):
        self.args = args
        self.rows = []

    def run(self, shape, plan, batch, lengths, label):
        """The rows of one spand-bench engine, by context."""
        out = tempfile.NamedTemporaryFile(suffix=".csv", delete=False)
        out.close()
        command = [
            self.args.bench, "engine", "--model", os.path.join(self.args.shapes, shape),
            "--weights", "random", "--plan", plan, "--batch", str(batch), "--no-prefill",
            "--context", ",".join(map(str, lengths)), "--steps", str(self.args.steps),
            "--csv", out.name, *self.args.flags,
        ]
        print("+", " ".join(command), file=sys.stderr, flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise SystemExit(f"failed: {' '.join(command)}\n{done.stdout}")
        with open(out.name, newline="") as f:
            rows = list(csv.DictReader(f))
        os.unlink(out.name)
        for row in rows:
            for key in row:
                try:
                    row[key] = float(row[key])
                except (TypeError, ValueError):
                    pass
            row["label"] = label
            row["shape_name"] = shape
        self.rows += rows
        return {int(row["context"]): row for row in rows}

    def save(self):
        if not self.args.csv or not self.rows:
            return
        with open(self.args.csv, "w", newline="") as f:
            writer = csv.DictWriter(f, list(self.rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


def plan_of(args, shape):
    return os.path.join(args.plans, PLANS[shape], "moa_alpha_beta.json")


def compare(bench, shape):
    """Dense, plan, and what lies between, at the lengths of one shape."""
    args = bench.args
    lengths = [n for n in LENGTHS[shape] if n <= args.max_length]
    dense = bench.run(shape, "dense", "max", lengths, "dense")
    plan = bench.run(shape, plan_of(args, shape), "max", lengths, "plan")
    print(f"\n{shape}\n")
    print("| N | dense: batch, tok/s, % | plan: density, batch, tok/s, % | points below dense "
          "| gain: bytes x batch = all | against uniform spans |")
    print("| --- | --- | --- | --- | --- | --- |")
    for n in lengths:
        d, p = dense[n], plan[n]
        same = bench.run(shape, plan_of(args, shape), int(d["batch"]), [n], "plan, dense's batch")[n]
        uniform = bench.run(shape, f"uniform:{p['density_kv']:.6f}", int(p["batch"]), [n],
                            "uniform")[n]
        # The two densities differ by rounding to whole tiles: the bytes are allowed for.
        cost = p["step_ms"] / uniform["step_ms"] * uniform["bytes"] / p["bytes"] - 1
        print(f"| {n} | {d['batch']:.0f}, {d['tok_s']:.0f}, {d['pct']:.1f} | "
              f"{100 * p['density_kv']:.1f} %, {p['batch']:.0f}, {p['tok_s']:.0f}, {p['pct']:.1f} | "
              f"{d['pct'] - p['pct']:+.1f} | {same['tok_s'] / d['tok_s']:.2f} x "
              f"{p['tok_s'] / same['tok_s']:.2f} = {p['tok_s'] / d['tok_s']:.2f} | "
              f"{100 * cost:+.1f} % |", flush=True)
    paper(shape, lengths, dense, plan)
    pool(plan)


def paper(shape, lengths, dense, plan):
    """The released runtime on an A100, as it would be with this device's bandwidth."""
    lines = []
    for n in lengths:
        if (shape, n) not in PAPER:
            continue
        batch, tok_s, vllm_batch, vllm_tok_s = PAPER[shape, n]
        ratio = plan[n]["read_bw"] / A100_GBS
        lines.append(f"| {n} | {batch}, {tok_s:.0f} | {tok_s * ratio:.0f} | "
                     f"{plan[n]['tok_s'] / (tok_s * ratio):.2f} | {vllm_batch}, {vllm_tok_s:.0f} | "
                     f"{dense[n]['tok_s'] / (vllm_tok_s * ratio):.2f} |")
    if lines:
        print("\nAgainst the paper's Table 5, scaled by measured bandwidth here over the A100's "
              f"peak of {A100_GBS:.0f} GB/s:\n")
        print("| N | MoA there: batch, tok/s | scaled | our plan / that | vLLM there | our dense / "
              "that scaled |")
        print("| --- | --- | --- | --- | --- | --- |")
        print("\n".join(lines), flush=True)


def pool(plan):
    """What the pool gave out against the plan's totals: equal to the page, but for who grows."""
    print()
    for n, row in sorted(plan.items()):
        heads = row["shape"].split()  # "llama l32 d4096 h32/8x128 v128256 bf16"
        n_layers, n_kv = int(heads[1][1:]), int(heads[3].split("/")[1].split("x")[0])
        totals = row["density_kv"] * n * n_layers * n_kv * row["batch"]
        head_dim = int(heads[3].split("x")[1])
        width = {"f32": 4, "bf16": 2, "f16": 2}[heads[5]]
        took = row["pages"] * row["page_bytes"]
        print(f"pool at {n}: {row['pages']:.0f} pages, {took:.0f} bytes; the totals make "
              f"{totals * 2 * head_dim * width:.0f}")


def constant(bench):
    args = bench.args
    lengths = [n for n in CONSTANT_LENGTHS if n <= args.max_length]
    plan = os.path.join(args.shapes, "llama-3-8b", "constant-spans.json")
    rows = bench.run("llama-3-8b", plan, args.constant_batch, lengths, "constant")
    first = rows[lengths[0]]["step_ms"]
    print(f"\nllama-3-8b, every beta 0, batch {args.constant_batch}\n\n| N | step ms | against "
          f"{lengths[0]} |\n| --- | --- | --- |")
    for n in lengths:
        print(f"| {n} | {rows[n]['step_ms']:.3f} | {100 * (rows[n]['step_ms'] / first - 1):+.1f} % |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default="vicuna-7b,vicuna-13b,llama-3-8b,constant")
    parser.add_argument("--bench", default=os.path.join(ROOT, "build", "spand-bench"))
    parser.add_argument("--shapes", default=os.path.join(FIXTURES, "shapes"))
    parser.add_argument("--plans", default=os.path.join(FIXTURES, "moa-plans"))
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=1 << 30)
    parser.add_argument("--constant-batch", type=int, default=16)
    parser.add_argument("--csv")
    parser.add_argument("flags", nargs="*", help="behind --: more for spand-bench engine")
    args = parser.parse_args()
    bench = Bench(args)
    try:
        for row in args.rows.split(","):
            if row == "constant":
                constant(bench)
            elif row in PLANS:
                compare(bench, row)
            else:
                parser.error(f"no row {row}; want {', '.join(PLANS)} or constant")
    finally:
        bench.save()


if __name__ == "__main__":
    main()

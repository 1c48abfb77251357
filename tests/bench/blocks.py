#!/usr/bin/env python3
"""Throughput of Block Transformers of the paper's shapes beside a vanilla model, random weights.

    blocks.py [--shapes block-1.4b,pythia-410m,...] [--what decode,long,short,ragged] [--csv FILE]
              [--batches 1,8,32,128,512,1024] [--rounds N] [-- FLAGS]

FLAGS go to every `spand-bench`: --device cuda, --kv-memory and so on. Greedy throughout.

    decode   steps of equal sequences at 1,152 tokens, the mean of 128 in and 2,048 out: tokens a
             second and percent of the time that the memory needs for weights, keys and values
    long     128 tokens in, 2,048 out: requests come one after the other into so many seats
    short    2,048 in, 128 out, likewise
    ragged   long, each length drawn from half of it to all of it

block-1.4b and pythia-410m are the paper's pair of equal loss (2.188 and 2.224). Nothing but Python is
needed.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))
SHAPES = os.path.join(ROOT, "tests", "fixtures", "shapes")
# Tokens a second of the paper's table 1 on one H100: 128 in and 2,048 out, 2,048 in and 128 out.
PAPER = {"block-33m": (809500, 272300), "block-170m": (134700, 59000), "block-420m": (44100, 21000),
         "block-1.4b": (25700, 12400), "pythia-410m": (2100, 800)}
LOADS = {"long": (128, 2048, 0), "short": (2048, 128, 0), "ragged": (128, 2048, 0.5)}


class Bench:
    def __init__(self, args):
        self.args, self.rows = args, []

    def run(self, bench, shape, *flags):
        """One spand-bench; None where its batch does not fit."""
        out = tempfile.NamedTemporaryFile(suffix=".csv", delete=False)
        out.close()
        command = [self.args.bench, bench, "--model", os.path.join(SHAPES, shape), "--weights",
                   "random", *map(str, flags), "--csv", out.name, *self.args.flags]
        print("+", " ".join(command), file=sys.stderr, flush=True)
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        with open(out.name, newline="") as f:
            rows = list(csv.DictReader(f))
        os.unlink(out.name)
        if done.returncode != 0 or not rows:
            print(done.stderr.strip(), file=sys.stderr)
            return None
        return rows[0]

    def keep(self, shape, what, batch, tok_s, pct):
        self.rows.append({"shape": shape, "what": what, "batch": batch, "tok_s": tok_s, "pct": pct})
        return f"{tok_s:,.0f}" + (f" ({pct:.1f} %)" if pct else "")

    def decode(self, shape, batch):
        row = self.run("engine", shape, "--batch", batch, "--context", 1152, "--no-prefill",
                       "--steps", self.args.steps)
        return row and self.keep(shape, "decode", batch, float(row["tok_s"]), float(row["pct"]))

    def load(self, shape, what, batch):
        n_in, n_out, ragged = LOADS[what]
        row = self.run("load", shape, "--max-batch", batch, "--in", n_in, "--out", n_out,
                       "--ragged", ragged, "--requests", max(2, int(batch * self.args.rounds)))
        return row and self.keep(shape, what, batch, float(row["middle_tok_s"]), 0)

    def save(self):
        if self.args.csv:
            with open(self.args.csv, "w", newline="") as f:
                writer = csv.DictWriter(f, ["shape", "what", "batch", "tok_s", "pct"],
                                        lineterminator="\n")
                writer.writeheader()
                writer.writerows(self.rows)


def table(bench, shape):
    what = bench.args.what.split(",")
    print(f"\n{shape}: tokens/s (percent of the memory's limit); the paper has "
          f"{PAPER[shape][0]:,} with 128 in, 2,048 out and {PAPER[shape][1]:,} with 2,048 in, 128 out\n")
    print("| batch | " + " | ".join(what) + " |")
    print("| --- " * (len(what) + 1) + "|")
    for batch in map(int, bench.args.batches.split(",")):
        cells = [bench.decode(shape, batch) if w == "decode" else bench.load(shape, w, batch)
                 for w in what]
        print(f"| {batch} | " + " | ".join(c or "no room" for c in cells) + " |", flush=True)
        bench.save()
        if not any(cells):
            return


def best(rows, shape, what):
    return max((r["tok_s"] for r in rows if r["shape"] == shape and r["what"] == what), default=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bench", default=os.path.join(ROOT, "build", "spand-bench"))
    parser.add_argument("--shapes", default=",".join(PAPER))
    parser.add_argument("--what", default="decode,long,short")
    parser.add_argument("--batches", default="1,8,32,128,512,1024")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--rounds", type=float, default=2, help="requests a seat")
    parser.add_argument("--csv", default="")
    parser.add_argument("flags", nargs="*")
    args = parser.parse_args()
    for w in args.what.split(","):
        if w != "decode" and w not in LOADS:
            parser.error(f"--what {w}: want decode, long, short or ragged")
    bench = Bench(args)
    for shape in args.shapes.split(","):
        table(bench, shape)
    for w in args.what.split(","):
        block, vanilla = best(bench.rows, "block-1.4b", w), best(bench.rows, "pythia-410m", w)
        if block and vanilla:
            print(f"\nequal loss, {w}, best batch each: {block:,.0f} against {vanilla:,.0f} tokens/s, "
                  f"{block / vanilla:.2f} x")


if __name__ == "__main__":
    main()

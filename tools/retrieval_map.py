"""Retrieval against position and length for several plans, measured on a daemon, as heat maps.

    retrieval_map.py measure --spand build/spand --model models/demo-llama --out map.csv
    retrieval_map.py draw map.csv --out map.svg [--title TEXT]

`measure` starts a daemon for each plan and length, asks it for one line of a long record
(tools/train/retrieval.py makes the records; their keys took no part in training) and counts the
exact answers by where the line stood. Rows that the CSV has already are not measured again, so a
run that was stopped goes on. `draw` needs nothing but Python.

A plan is LABEL=SPEC, where SPEC is what --plan takes. {0.5} in it is half of the length in tokens
and {0.5-4} four fewer, so "half=streaming:4,{0.5-4}" keeps half of the tokens at every length.
"""

import argparse
import concurrent.futures
import csv
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.request
from xml.sax.saxutils import escape

N_BINS = 10
ANSWER_TOKENS = 40
FIELDS = ["plan", "spec", "length", "bin", "asked", "right"]
PLANS = [
    "dense=dense",
    "streaming 50 %=streaming:4,{0.5-4}",
    "streaming 25 %=streaming:4,{0.25-4}",
]


# -- Measuring --------------------------------------------------------------------------------


def spec_at(spec, length):
    """The spec with its {share} and {share+-tokens} worked out for a length."""

    def tokens(match):
        return str(int(float(match.group(1)) * length) + int(match.group(2) or 0))

    return re.sub(r"\{([0-9.]+)([+-][0-9]+)?\}", tokens, spec)


class Daemon:
    """`spand serve` on a free port; leaving the block stops it."""

    def __init__(self, args, plan, length):
        command = [args.spand, "serve", "--model", str(args.model), "--plan", plan, "--port", "0"]
        command += ["--max-batch", str(args.batch), "--max-seq-len", str(length), *args.flags]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.url = None

    def __enter__(self):
        for line in self.process.stdout:
            found = re.search(r"listening on (http://\S+)", line)
            if found:
                self.url = found.group(1)
                return self
        raise RuntimeError(f"the daemon did not start: exit code {self.process.wait()}")

    def __exit__(self, *unused):
        self.process.send_signal(signal.SIGTERM)
        self.process.stdout.read()
        self.process.wait()

    def complete(self, prompt):
        body = {
            "model": "m",
            "prompt": prompt,
            "max_tokens": ANSWER_TOKENS,
            "temperature": 0,
        }
        request = urllib.request.Request(
            self.url + "/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=3600) as answer:
            return json.load(answer)["choices"][0]["text"]


def measured_already(path):
    if not path.exists():
        return set()
    with path.open(newline="") as f:
        return {(row["plan"], int(row["length"])) for row in csv.DictReader(f)}


def measure(args):
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "train"))
    import retrieval
    from tokenizers import Tokenizer

    args.flags += ["--served-model-name", "m"]
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    words = json.loads((args.words or args.model / "eval" / "heldout_words.json").read_text())
    done = measured_already(args.out)
    plans = [text.partition("=")[::2] for text in args.plan or PLANS]
    for length in args.lengths:
        prompts = list(
            retrieval.heldout_prompts(tokenizer, words, length, args.count, N_BINS, args.seed)
        )
        for label, spec in plans:
            if (label, length) in done:
                continue
            plan = spec_at(spec, length)
            began = time.monotonic()
            with Daemon(args, plan, length) as daemon:
                with concurrent.futures.ThreadPoolExecutor(args.batch) as pool:
                    texts = list(pool.map(daemon.complete, [p["prompt"] for p in prompts]))
            asked, right = [0] * N_BINS, [0] * N_BINS
            for prompt, text in zip(prompts, texts):
                asked[prompt["bin"]] += 1
                right[prompt["bin"]] += retrieval.first_number(text) == prompt["expected_number"]
            is_new = not args.out.exists()
            with args.out.open("a", newline="") as f:
                writer = csv.writer(f, lineterminator="\n")
                if is_new:
                    writer.writerow(FIELDS)
                for b in range(N_BINS):
                    writer.writerow([label, plan, length, b, asked[b], right[b]])
            seconds = time.monotonic() - began
            print(f"{label} ({plan}) at {length}: {sum(right)} of {sum(asked)} in {seconds:.0f} s",
                  flush=True)


# -- Drawing ----------------------------------------------------------------------------------

CELL_W, CELL_H, GAP, LEFT, TOP = 38, 34, 62, 66, 98
INK, PAPER, FAINT, MARK = "#1f2933", "#ffffff", "#6b7785", "#d9480f"
# Dark blue to pale yellow, in equal steps of lightness: it survives grey printing.
STOPS = [(23, 28, 66), (44, 79, 134), (47, 141, 154), (116, 196, 142), (242, 239, 169)]


def colour_of(share):
    at = min(max(share, 0.0), 1.0) * (len(STOPS) - 1)
    i = min(int(at), len(STOPS) - 2)
    rgb = [round(a + (b - a) * (at - i)) for a, b in zip(STOPS[i], STOPS[i + 1])]
    return "#%02x%02x%02x" % tuple(rgb)


def text_at(x, y, text, size=12, fill=INK, anchor="middle", weight="normal"):
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )


def window_start(spec, length):
    """Where the kept end of the text begins, as a share of it; None for plans without one."""
    found = re.fullmatch(r"streaming:(\d+),(\d+)", spec)
    return max(0.0, 1 - int(found.group(2)) / length) if found else None


def panel(x0, label, rows, lengths):
    """One plan's grid: lengths down, position of the line across."""
    out = [text_at(x0, TOP - 14, label, 15, anchor="start", weight="bold")]
    for r, length in enumerate(lengths):
        y = TOP + r * CELL_H
        cells = rows.get(length)
        out.append(text_at(x0 - 8, y + CELL_H / 2 + 4, f"{length:,}", anchor="end"))
        if not cells:
            continue
        for b in range(N_BINS):
            _, asked, right = cells[b]
            out.append(
                f'<rect x="{x0 + b * CELL_W}" y="{y}" width="{CELL_W - 1}" height="{CELL_H - 1}" '
                f'fill="{colour_of(right / max(1, asked))}"><title>{right} of {asked}</title></rect>'
            )
        start = window_start(cells[0][0], length)
        if start:
            x = x0 + start * N_BINS * CELL_W - 0.5
            out.append(f'<path d="M{x:g} {y - 1}V{y + CELL_H}" stroke="{MARK}" stroke-width="3"/>')
        for b in range(N_BINS):
            share = cells[b][2] / max(1, cells[b][1])
            ink = PAPER if share < 0.62 else INK
            out.append(text_at(x0 + (b + 0.5) * CELL_W - 0.5, y + CELL_H / 2 + 4,
                               f"{100 * share:.0f}", 12, ink))
        total = sum(c[2] for c in cells.values()) / max(1, sum(c[1] for c in cells.values()))
        out.append(text_at(x0 + N_BINS * CELL_W + 8, y + CELL_H / 2 + 4, f"{100 * total:.1f} %",
                           12, INK, "start", "bold"))
    y = TOP + len(lengths) * CELL_H + 16
    for b in range(0, N_BINS + 1, 2):
        out.append(text_at(x0 + b * CELL_W, y, f"{10 * b}", 11, FAINT))
    out.append(text_at(x0 + N_BINS * CELL_W / 2, y + 17, "position of the line, % of the record",
                       11, FAINT))
    return out


def legend(x, y, has_windows):
    out = []
    for i in range(101):
        out.append(f'<rect x="{x + 2 * i}" y="{y}" width="2.3" height="10" '
                   f'fill="{colour_of(i / 100)}"/>')
    out.append(text_at(x, y + 24, "0 %", 11, FAINT, "start"))
    out.append(text_at(x + 202, y + 24, "100 % exact", 11, FAINT, "end"))
    if has_windows:
        out.append(f'<path d="M{x + 236} {y - 3}v16" stroke="{MARK}" stroke-width="3"/>')
        out.append(text_at(x + 244, y + 10, "where the recent tokens that are kept begin", 11,
                           FAINT, "start"))
    return out


def draw(args):
    plans = {}
    with args.csv.open(newline="") as f:
        for row in csv.DictReader(f):
            rows = plans.setdefault(row["plan"], {}).setdefault(int(row["length"]), {})
            rows[int(row["bin"])] = (row["spec"], int(row["asked"]), int(row["right"]))
    lengths = sorted({length for rows in plans.values() for length in rows})
    has_windows = any(r[0][0].startswith("streaming:") for p in plans.values() for r in p.values())
    step = N_BINS * CELL_W + LEFT + GAP
    width = 14 + step * len(plans) + 8
    height = TOP + len(lengths) * CELL_H + 84
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="Helvetica, Arial, sans-serif">',
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
        text_at(14, 28, args.title, 18, anchor="start", weight="bold"),
        text_at(14, 47, args.subtitle, 12, FAINT, "start"),
    ]
    for i, (label, rows) in enumerate(plans.items()):
        out += panel(14 + LEFT - 12 + i * step, label, rows, lengths)
    out += legend(14, height - 34, has_windows)
    args.out.write_text("\n".join(out) + "\n</svg>\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    sub = verbs.add_parser("measure")
    sub.add_argument("--spand", default="build/spand")
    sub.add_argument("--model", type=pathlib.Path, default=pathlib.Path("models/demo-llama"))
    sub.add_argument("--words", type=pathlib.Path, help="default: the model's eval folder has them")
    sub.add_argument("--plan", action="append", metavar="LABEL=SPEC", help="may be repeated")
    sub.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    sub.add_argument("--count", type=int, default=200, help="prompts for each plan and length")
    sub.add_argument("--batch", type=int, default=8)
    sub.add_argument("--seed", type=int, default=1)
    sub.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="more for the daemon")
    sub.add_argument("--out", type=pathlib.Path, required=True)
    sub = verbs.add_parser("draw")
    sub.add_argument("csv", type=pathlib.Path)
    sub.add_argument("--title", default="Retrieval of one line")
    sub.add_argument("--subtitle", default="Exact answers in %, by the length of the text in tokens "
                     "(down) and where the line stands in it (across)")
    sub.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that a daemon is stopped as well
    {"measure": measure, "draw": draw}[args.verb](args)


if __name__ == "__main__":
    main()

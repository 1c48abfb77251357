"""Makes tests/golden/tokenizer_*.hash with the `tokenizers` package 0.23.2.

For each tokenizer: how many lines share a hash, then a 32-bit FNV-1a of the ids of each such group
of lines of tokenizer_lines.bin, then one of the decoded text of each 32 lines. A line's ids go in
as 32-bit little-endian numbers behind their count; its text behind its length.

Run from the repository root: python3 tests/golden/tokenizer_golden.py
"""
import glob
import os
import struct

from tokenizers import Tokenizer

EVERY_LINE = {"gpt2", "gpt-neox-20b", "llama2-prepend", "demo-llama"}
HERE = "tests/golden"


def read_lines():
    data = open(f"{HERE}/tokenizer_lines.bin", "rb").read()
    at, out = 0, []
    while at < len(data):
        (n,) = struct.unpack_from("<H", data, at)
        out.append(data[at + 2 : at + 2 + n])
        at += 2 + n
    return out


def fnv(h, data):
    for b in data:
        h = ((h ^ b) * 16777619) & 0xFFFFFFFF
    return h


def hashes(items, group):
    out = []
    for at in range(0, len(items), group):
        h = 2166136261
        for n, data in items[at : at + group]:
            h = fnv(h, struct.pack("<I", n) + data)
        out.append(h)
    return out


def main():
    lines = read_lines()
    paths = glob.glob("tests/fixtures/tokenizers/*/tokenizer.json") + ["models/demo-llama/tokenizer.json"]
    for path in sorted(paths):
        name = os.path.basename(os.path.dirname(path))
        tok = Tokenizer.from_file(path)
        tok.no_truncation()
        tok.no_padding()
        ids, texts = [], []
        for line in lines:
            got = tok.encode(line.decode("utf-8", "replace")).ids
            ids.append((len(got), struct.pack("<%di" % len(got), *got)))
            text = tok.decode(got).encode()
            texts.append((len(text), text))
        group = 1 if name in EVERY_LINE else 32
        out = [group] + hashes(ids, group) + hashes(texts, 32)
        with open(f"{HERE}/tokenizer_{name}.hash", "wb") as f:
            f.write(struct.pack("<%dI" % len(out), *out))
        print(name, len(lines), sum(n for n, _ in ids))


main()

#!/usr/bin/env python3
"""Turns a directory that spand refuses into one that it serves.

    python3 tools/convert/to_safetensors.py DIR [--out DIR2]

Two things are converted, each only where it is missing:

    pytorch_model.bin, or its shards and index  ->  model.safetensors, or shards and an index
    tokenizer.model (SentencePiece BPE)         ->  tokenizer.json

Without --out the new files are written beside the old ones; with it the JSON files are copied too,
so DIR2 is complete. Nothing is overwritten. Needs Python 3.8 and nothing else: the pickles inside
.bin files are read by an unpickler that knows tensors and nothing more, so a hostile file cannot
run code.
"""

import argparse
import json
import os
import shutil
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import spm_tokenizer  # noqa: E402
import torch_bin  # noqa: E402

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"


def is_tied(folder):
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        return json.load(f).get("tie_word_embeddings") is True


def wanted(tensors, tied):
    """Leaves out a head that is only another name of the table: a tied model needs one of them."""
    embed = tensors.get("model.embed_tokens.weight")
    head = tensors.get("lm_head.weight")
    if tied and embed and head and embed.same_place(head):
        return {k: v for k, v in tensors.items() if k != "lm_head.weight"}
    return tensors


def convert_single(folder, out, tied):
    with torch_bin.BinFile(os.path.join(folder, SINGLE)) as f:
        torch_bin.write_safetensors(os.path.join(out, "model.safetensors"),
                                    wanted(f.tensors, tied))
    print("wrote model.safetensors")


def convert_shards(folder, out, tied):
    with open(os.path.join(folder, INDEX), encoding="utf-8") as f:
        shards = sorted(set(json.load(f)["weight_map"].values()))
    weight_map, total = {}, 0
    for i, shard in enumerate(shards):
        if os.path.basename(shard) != shard:
            raise ValueError(f"{INDEX}: {shard!r} is not a plain file name")
        name = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        with torch_bin.BinFile(os.path.join(folder, shard)) as f:
            tensors = wanted(f.tensors, tied)
            total += torch_bin.write_safetensors(os.path.join(out, name), tensors)
            weight_map.update(dict.fromkeys(tensors, name))
        print("wrote", name)
    with open(os.path.join(out, "model.safetensors.index.json"), "w", encoding="utf-8") as f:
        json.dump({"metadata": {"total_size": total}, "weight_map": weight_map}, f, indent=1)


def has_weights(folder):
    return any(os.path.exists(os.path.join(folder, n))
               for n in ("model.safetensors", "model.safetensors.index.json"))


def convert(folder, out):
    """Returns what was converted."""
    done = []
    if not os.path.exists(os.path.join(folder, "config.json")):
        raise ValueError(f"{folder}: no config.json, so this is no model directory")
    os.makedirs(out, exist_ok=True)
    if not has_weights(folder) and not has_weights(out):
        if os.path.exists(os.path.join(folder, SINGLE)):
            convert_single(folder, out, is_tied(folder))
            done.append("weights")
        elif os.path.exists(os.path.join(folder, INDEX)):
            convert_shards(folder, out, is_tied(folder))
            done.append("weights")
    if not any(os.path.exists(os.path.join(d, "tokenizer.json")) for d in (folder, out)):
        if os.path.exists(os.path.join(folder, "tokenizer.model")):
            tokenizer = spm_tokenizer.convert(folder)
            with open(os.path.join(out, "tokenizer.json"), "w", encoding="utf-8") as f:
                json.dump(tokenizer, f, ensure_ascii=False, indent=1)
            print("wrote tokenizer.json")
            done.append("tokenizer")
    if os.path.realpath(out) != os.path.realpath(folder):
        for name in os.listdir(folder):
            new = os.path.join(out, name)
            if name.endswith((".json", ".jinja", ".safetensors")) and name != INDEX \
                    and not os.path.exists(new):
                shutil.copy(os.path.join(folder, name), new)
    return done


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dir", help="directory with config.json")
    parser.add_argument("--out", help="where to write (default: the same directory)")
    args = parser.parse_args()
    try:
        done = convert(args.dir, args.out or args.dir)
    except (ValueError, OSError, torch_bin.zipfile.BadZipFile) as e:
        sys.exit(f"to_safetensors: {e}")
    if not done:
        print("nothing to convert")


if __name__ == "__main__":
    main()

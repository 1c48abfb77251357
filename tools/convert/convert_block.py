#!/usr/bin/env python3
"""Turns a published Block Transformer into a directory that spand serves.

    python3 tools/convert/convert_block.py --weights CHECKPOINT/model.safetensors \\
        --config conf/trainer/NAME.yaml --tokenizer DIR --out DIR2

A checkpoint of the original has no config.json: what it is stands in the YAML that trained it, and
there only in part, since heads and inner widths follow from the width by a rule. So every tensor that
such a model must have is looked for under its name and held against its shape; one that is missing,
of another shape, or not known stops the conversion. The block decoder's unused token table and the
buffers of older files are left out.

DIR holds the tokenizer.json of Pythia, which the published models share. Needs PyYAML.
"""

import argparse
import json
import os
import re
import shutil
import struct
import sys

import yaml

BUFFERS = re.compile(r"\.(rotary_emb\.inv_freq|attention\.(bias|masked_bias))$")
UNUSED = "block_decoder.gpt_neox.embed_in.weight"
PARTS = ("embedder", "block_decoder", "token_decoder")
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
HEADER_MAX = 100_000_000
COPY_BYTES = 1 << 20
MAX_BLOCK_LEN = 8
MAX_PREFIX = 4


class WeightsFile:
    """Header and place of every tensor of one safetensors file."""

    def __init__(self, path):
        self.path = path
        self.size = os.path.getsize(path)
        with open(path, "rb") as f:
            raw = f.read(8)
            n_header = struct.unpack("<Q", raw)[0] if len(raw) == 8 else -1
            if not 0 < n_header <= min(self.size - 8, HEADER_MAX):
                raise ValueError(f"{path}: no safetensors file")
            try:
                header = json.loads(f.read(n_header))
            except ValueError as e:
                raise ValueError(f"{path}: the header is no JSON") from e
        header.pop("__metadata__", None)
        self.start = 8 + n_header
        self.entries = header
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            n_items = 1
            for n in entry["shape"]:
                n_items *= n
            want = n_items * ITEM_BYTES.get(entry["dtype"], 0)
            if not BUFFERS.search(name) and want == 0:
                raise ValueError(f"tensor {name}: dtype {entry['dtype']}, want F32, F16 or BF16")
            if end > self.size - self.start or (want and end - begin != want):
                raise ValueError(f"tensor {name}: the file is cut short or its header is wrong")

    def copy(self, name, out):
        begin, end = self.entries[name]["data_offsets"]
        with open(self.path, "rb") as f:
            f.seek(self.start + begin)
            while begin < end:
                piece = f.read(min(end - begin, COPY_BYTES))
                if not piece:
                    raise ValueError(f"{self.path}: cut short")
                out.write(piece)
                begin += len(piece)


def need(tree, path, kind=int):
    """The value under a dotted path of the YAML, which must be there and of its kind."""
    value = tree
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool) or (kind is int and value < 1):
        raise ValueError(f"config: {path} is {value!r}, want {kind.__name__}")
    return value


def must_be(tree, path, *allowed, default=None):
    value = tree
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    value = default if value is None else value
    if value not in allowed:
        raise ValueError(f"config: {path} is {value!r}, served is {' or '.join(map(str, allowed))}")
    return value


def head_dim_of(dim):
    """Heads are not listed: the original cuts a width into heads by this rule."""
    return 32 if dim <= 256 else 64 if dim <= 1536 else 128


def decoder_config(tree, part):
    must_be(tree, part + ".cls", "gpt-neo-x")
    dim = need(tree, part + ".config.hidden_size")
    over = tree[part]["config"]
    n_heads = over.get("num_attention_heads") or dim // head_dim_of(dim)
    if dim % n_heads:
        raise ValueError(f"config: {part}: {n_heads} heads do not divide a width of {dim}")
    return {
        "model_type": "gpt_neox",
        "hidden_size": dim,
        "num_hidden_layers": need(tree, part + ".config.num_hidden_layers"),
        "num_attention_heads": n_heads,
        "intermediate_size": over.get("intermediate_size") or 4 * dim,
        "hidden_act": over.get("hidden_act", "gelu"),
        "rotary_pct": over.get("rotary_pct", 0.25),
        "rotary_emb_base": over.get("rotary_emb_base", 10000),
        "layer_norm_eps": over.get("layer_norm_eps", 1e-5),
        "use_parallel_residual": over.get("use_parallel_residual", True),
        "attention_bias": True,
    }


def block_length_of(tree):
    block_len = need(tree, "block_length")
    if block_len > MAX_BLOCK_LEN:
        raise ValueError(f"config: block_length is {block_len}, served are 1 to {MAX_BLOCK_LEN}")
    must_be(tree, "block_split.distribution", "fixed", default="fixed")
    must_be(tree, "block_split.distribution_kwargs.length", block_len, default=block_len)
    return block_len


def served_config(tree, args):
    """config.json, still without the dtype, from the YAML."""
    block_len = block_length_of(tree)
    must_be(tree, "embedder.cls", "lookup")
    must_be(tree, "embedder.n_embedding_tokens", 1, default=1)
    must_be(tree, "token_decoder.decoding_strategy", "prefix")
    must_be(tree, "token_decoder.expansion_method", "expansion_layer")
    n_prefix = need(tree, "token_decoder.expansion_ratio")
    if n_prefix > MAX_PREFIX:
        raise ValueError(f"config: expansion_ratio is {n_prefix}, served are 1 to {MAX_PREFIX}")
    method = must_be(tree, "embedder.projection_method", "concat", "projection_layer")
    block = decoder_config(tree, "block_decoder")
    width = need(tree, "embedder.config.hidden_size")
    if method == "concat" and width * block_len != block["hidden_size"]:
        raise ValueError(f"config: {block_len} embeddings of {width} in a row make no block of "
                         f"{block['hidden_size']}; another block_length?")
    return {
        "model_type": "block_transformer",
        "architectures": ["BlockTransformerForCausalLM"],
        "vocab_size": need(tree, "embedder.config.vocab_size"),
        "max_position_embeddings": need(tree, "max_length"),
        "block_length": block_len,
        "n_prefix": n_prefix,
        "embedder": {
            "type": "lookup",
            "hidden_size": width,
            "projection": "concat" if method == "concat" else "projection",
        },
        "block_decoder": block,
        "token_decoder": decoder_config(tree, "token_decoder"),
        "alignment": "left_pad" if args.left_pad else "left",
        "start_block": args.start_block,
        "start_id": 0,
        "token_positions": "generate" if args.generate_positions else "forward",
        # Files of unpadded models omit both; that the original's loader now assumes them is a trap.
        "trained_with_padding": bool(
            tree.get("random_pad_first_block") and tree.get("pad_to_block_boundary")),
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 0,
    }


def decoder_shapes(part, config):
    dim, inner = config["hidden_size"], config["intermediate_size"]
    shapes = {}
    for i in range(config["num_hidden_layers"]):
        at = f"{part}.gpt_neox.layers.{i}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[at + norm + ".weight"] = shapes[at + norm + ".bias"] = [dim]
        for name, out, into in (("attention.query_key_value", 3 * dim, dim),
                                ("attention.dense", dim, dim),
                                ("mlp.dense_h_to_4h", inner, dim),
                                ("mlp.dense_4h_to_h", dim, inner)):
            shapes[at + name + ".weight"] = [out, into]
            shapes[at + name + ".bias"] = [out]
    for last in ("weight", "bias"):
        shapes[f"{part}.gpt_neox.final_layer_norm.{last}"] = [dim]
    return shapes


def wanted_shapes(config):
    vocab, embedder = config["vocab_size"], config["embedder"]
    dim, token_dim = (config[p]["hidden_size"] for p in ("block_decoder", "token_decoder"))
    shapes = {"embedder.embeddings.weight": [vocab, embedder["hidden_size"]]}
    if embedder["projection"] == "projection":
        shapes["embedder.projection_layer.weight"] = [
            dim, embedder["hidden_size"], config["block_length"]]
        shapes["embedder.projection_layer.bias"] = [dim]
    shapes.update(decoder_shapes("block_decoder", config["block_decoder"]))
    shapes.update(decoder_shapes("token_decoder", config["token_decoder"]))
    shapes["token_decoder.gpt_neox.embed_in.weight"] = [vocab, token_dim]
    shapes["token_decoder.embed_out.weight"] = [vocab, token_dim]
    shapes["token_decoder.expansion_layer.weight"] = [config["n_prefix"] * token_dim, dim, 1]
    shapes["token_decoder.expansion_layer.bias"] = [config["n_prefix"] * token_dim]
    return shapes


def check_vocabulary(entries, vocab_size):
    for name in ("embedder.embeddings.weight", "token_decoder.gpt_neox.embed_in.weight",
                 "token_decoder.embed_out.weight"):
        rows = entries[name]["shape"][0]
        if rows != vocab_size:
            raise ValueError(f"tensor {name}: {rows} rows, but the vocabulary has {vocab_size}; "
                             "embedder, token decoder and head share one")


def check_tensors(weights, config):
    entries = weights.entries
    for part in PARTS:
        if not any(name.startswith(part + ".") for name in entries):
            raise ValueError(f"{weights.path}: no {part} in it; want a checkpoint with embedder, "
                             "block decoder and token decoder")
    shapes = wanted_shapes(config)
    for name in shapes:
        if name not in entries:
            raise ValueError(f"tensor {name} is missing")
    check_vocabulary(entries, config["vocab_size"])
    if config["embedder"]["projection"] == "projection":
        kernel = entries["embedder.projection_layer.weight"]["shape"]
        if len(kernel) == 3 and kernel[2] != config["block_length"]:
            raise ValueError(f"embedder.projection_layer takes blocks of {kernel[2]}, the config "
                             f"says block_length {config['block_length']}")
    for name, shape in shapes.items():
        if entries[name]["shape"] != shape:
            raise ValueError(f"tensor {name}: shape {entries[name]['shape']}, want {shape}")
    unknown = [name for name in entries
               if name not in shapes and name != UNUSED and not BUFFERS.search(name)]
    if unknown:
        raise ValueError(f"tensor {sorted(unknown)[0]} is not part of such a model "
                         f"({len(unknown)} unknown); more layers than the config says?")
    return list(shapes)


def check_tokenizer(folder, vocab_size):
    path = os.path.join(folder, "tokenizer.json")
    with open(path, encoding="utf-8") as f:
        tokenizer = json.load(f)
    ids = list(tokenizer["model"]["vocab"].values())
    ids += [token["id"] for token in tokenizer.get("added_tokens", [])]
    if max(ids) >= vocab_size:
        raise ValueError(f"{path}: ids up to {max(ids)}, but the model's vocabulary has "
                         f"{vocab_size}")


def write_weights(weights, names, path):
    """The tensors as they are, widest elements first so that all are aligned."""
    order = sorted(names, key=lambda n: (-ITEM_BYTES[weights.entries[n]["dtype"]], n))
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name in order:
        entry = weights.entries[name]
        n_bytes = entry["data_offsets"][1] - entry["data_offsets"][0]
        header[name] = {"dtype": entry["dtype"], "shape": entry["shape"],
                        "data_offsets": [at, at + n_bytes]}
        at += n_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path + ".partial"
    with open(partial, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            weights.copy(name, out)
    os.replace(partial, path)
    return at


def convert(args):
    with open(args.config, encoding="utf-8") as f:
        try:
            tree = yaml.safe_load(f)
        except yaml.YAMLError as e:
            raise ValueError(f"{args.config}: no YAML: {e}") from e
    if not isinstance(tree, dict) or not all(isinstance(tree.get(p), dict) for p in PARTS):
        raise ValueError(f"{args.config}: want a YAML with {', '.join(PARTS)}")
    config = served_config(tree, args)
    weights = WeightsFile(args.weights)
    names = check_tensors(weights, config)
    check_tokenizer(args.tokenizer, config["vocab_size"])
    head = weights.entries["token_decoder.embed_out.weight"]
    config["dtype"] = DTYPE_NAMES[head["dtype"]]
    os.makedirs(args.out, exist_ok=True)
    n_bytes = write_weights(weights, names, os.path.join(args.out, "model.safetensors"))
    with open(os.path.join(args.out, "config.json"), "w", encoding="utf-8") as f:
        f.write(json.dumps(config, indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        source = os.path.join(args.tokenizer, name)
        if os.path.exists(source) and \
                os.path.realpath(args.tokenizer) != os.path.realpath(args.out):
            shutil.copy(source, os.path.join(args.out, name))
    return len(names), n_bytes


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", required=True, help="model.safetensors of a checkpoint")
    parser.add_argument("--config", required=True, help="the YAML it was trained with")
    parser.add_argument("--tokenizer", required=True, help="directory with tokenizer.json")
    parser.add_argument("--out", required=True, help="directory to write")
    parser.add_argument("--start-block", action="store_true",
                        help="put a block of end-of-text in front of every prompt, not of short "
                             "ones only")
    parser.add_argument("--left-pad", action="store_true",
                        help="align prompts as the original does, with pads on the left")
    parser.add_argument("--generate-positions", action="store_true",
                        help="the token positions of the original's generate(), for comparison")
    args = parser.parse_args(argv)
    try:
        n_tensors, n_bytes = convert(args)
    except (ValueError, KeyError, TypeError, OSError) as e:
        sys.exit(f"convert_block: {e}")
    print(f"{args.out}: {n_tensors} tensors, {n_bytes / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()

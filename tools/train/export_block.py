"""Writes a model that train_block.py trained as a directory to serve, weights in bf16.

    export_block.py --run DIR --data data.tar.xz --name block --out models/demo-block
    export_block.py --run DIR --data data.tar.xz --name vanilla-160 --out SOMEWHERE

A Block model goes out as a Block Transformer on Llama layers, a vanilla one as LlamaForCausalLM. The
Block model has its block of end-of-text in front of every text by itself; the vanilla one gets its
one such token from the tokenizer.
"""

import argparse
import json
import pathlib
import tarfile

import torch
from safetensors.torch import save_file

from block_model import make_model, named_tensors

TEXT_END = "<|endoftext|>"


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def decoder_config(s, n_layers):
    return {
        "model_type": "llama",
        "hidden_size": s.dim,
        "intermediate_size": s.ffn_dim,
        "num_hidden_layers": n_layers,
        "num_attention_heads": s.n_heads,
        "num_key_value_heads": s.n_kv_heads,
        "head_dim": s.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": s.norm_eps,
        "rope_theta": s.rope_theta,
    }


def block_config(s):
    concat = s.projection == "concat"
    return {
        "architectures": ["BlockTransformerForCausalLM"],
        "model_type": "block_transformer",
        "vocab_size": s.vocab_size,
        "max_position_embeddings": s.max_seq_len,
        "block_length": s.block_len,
        "n_prefix": s.n_prefix,
        "embedder": {
            "type": "lookup",
            "hidden_size": s.dim // s.block_len if concat else s.dim,
            "projection": s.projection,
        },
        "block_decoder": decoder_config(s, s.n_block_layers),
        "token_decoder": decoder_config(s, s.n_token_layers),
        "alignment": "left",
        "start_block": True,
        "start_id": 0,
        "token_positions": "forward",
        "trained_with_padding": False,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 0,
        "dtype": "bfloat16",
    }


def vanilla_config(s):
    return {"architectures": ["LlamaForCausalLM"]} | decoder_config(s, s.n_layers) | {
        "vocab_size": s.vocab_size,
        "max_position_embeddings": s.max_seq_len,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": "bfloat16",
    }


def write_tokenizer(text, is_vanilla, context, out):
    tokenizer = json.loads(text)
    if is_vanilla:
        tokenizer["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": TEXT_END, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"SpecialToken": {"id": TEXT_END, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {TEXT_END: {"id": TEXT_END, "ids": [0], "tokens": [TEXT_END]}},
        }
    (out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False) + "\n")
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": context,
            "eos_token": TEXT_END,
            "pad_token": TEXT_END,
            "clean_up_tokenization_spaces": False,
        }
        | ({"bos_token": TEXT_END, "add_bos_token": True} if is_vanilla else {}),
    )


def export(checkpoint, tokenizer_json, out):
    saved = torch.load(checkpoint, map_location="cpu", weights_only=False)
    if not saved["result"]:
        raise SystemExit(f"{checkpoint} is not trained to its end")
    model = make_model(saved["kind"], saved["shape"])
    model.load_state_dict(saved["model"])
    is_vanilla = saved["kind"] == "vanilla"
    out.mkdir(parents=True, exist_ok=True)
    config = vanilla_config(model.shape) if is_vanilla else block_config(model.shape)
    write_json(out / "config.json", config)
    sampling = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
    write_json(out / "generation_config.json", {"eos_token_id": 0, "pad_token_id": 0} | sampling)
    write_tokenizer(tokenizer_json, is_vanilla, model.shape.max_seq_len, out)
    tensors = {name: t.to(torch.bfloat16) for name, t in named_tensors(model).items()}
    weights = out / "model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # The library makes files that only their owner may read.
    size = sum(f.stat().st_size for f in out.iterdir())
    print(
        f"{out}: {model.n_params():,} parameters, {weights.stat().st_size / 2**20:.2f} MiB of "
        f"weights, {size / 2**20:.2f} MiB in all"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=pathlib.Path, required=True, help="--out of train_block.py")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="for the tokenizer")
    parser.add_argument("--name", default="block")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    with tarfile.open(args.data) as archive:
        tokenizer_json = archive.extractfile("tokenizer.json").read().decode()
    export(args.run / f"{args.name}.pt", tokenizer_json, args.out)


if __name__ == "__main__":
    main()

"""Writes a checkpoint as a model directory in the Hugging Face layout, bf16 in small shards.

With --config-only it writes everything but the weights, which is all that a tokenizer needs.
"""

import argparse
import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file

from model import DemoLlama, Shape, hf_tensors

SHARD_BYTES = 14 * 2**20  # Repositories and their mirrors refuse or mangle large files.

# One turn is <|role|>, a line break, its text, <|end|>, a line break. Nothing is added or trimmed.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + "
    "message['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_configs(shape, tokenizer, out):
    vocab = json.loads(tokenizer.read_text())
    ids = {t["content"]: t["id"] for t in vocab["added_tokens"]}
    text_end, turn_end = "<|endoftext|>", "<|end|>"
    stops = [ids[text_end], ids[turn_end]]
    write_json(
        out / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": shape.vocab_size,
            "hidden_size": shape.dim,
            "intermediate_size": shape.ffn_dim,
            "num_hidden_layers": shape.n_layers,
            "num_attention_heads": shape.n_heads,
            "num_key_value_heads": shape.n_kv_heads,
            "head_dim": shape.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": shape.max_seq_len,
            "rms_norm_eps": shape.norm_eps,
            "rope_theta": shape.rope_theta,
            "rope_scaling": None,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "initializer_range": 0.02,
            "use_cache": True,
            "bos_token_id": ids[text_end],
            "eos_token_id": stops,
            "torch_dtype": "bfloat16",
        },
    )
    write_json(
        out / "generation_config.json",
        {
            "bos_token_id": ids[text_end],
            "eos_token_id": stops,
            "pad_token_id": ids[text_end],
            "do_sample": True,
            "temperature": 0.7,
            "top_p": 0.9,
        },
    )
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": shape.max_seq_len,
            "bos_token": text_end,
            "eos_token": text_end,
            "pad_token": text_end,
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "added_tokens_decoder": {
                str(t["id"]): {
                    k: t[k]
                    for k in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
                }
                for t in vocab["added_tokens"]
            },
            "additional_special_tokens": [t for t in ids if t != text_end],
            "chat_template": CHAT_TEMPLATE,
        },
    )
    write_json(
        out / "special_tokens_map.json",
        {
            "bos_token": text_end,
            "eos_token": text_end,
            "pad_token": text_end,
            "additional_special_tokens": [t for t in ids if t != text_end],
        },
    )
    if tokenizer.resolve() != (out / "tokenizer.json").resolve():
        shutil.copy(tokenizer, out / "tokenizer.json")


def write_weights(model, out):
    tensors = {name: t.to(torch.bfloat16).cpu() for name, t in hf_tensors(model).items()}
    shards, size = [{}], 0
    for name, tensor in tensors.items():
        if size + tensor.nbytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    where = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, out / file, metadata={"format": "pt"})
        (out / file).chmod(0o644)  # The library makes files that only their owner may read.
        where |= {name: file for name in shard}
    total = sum(t.nbytes for t in tensors.values())
    write_json(
        out / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": where},
    )
    print(
        f"{sum(t.numel() for t in tensors.values()):,} parameters, {total / 2**20:.1f} MiB in "
        f"{len(shards)} shards"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=pathlib.Path)
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--config-only", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.config_only:
        write_configs(Shape(), args.tokenizer, args.out)
        return
    saved = torch.load(args.checkpoint, map_location="cpu", weights_only=False)
    model = DemoLlama(Shape(**saved["shape"]))
    model.load_state_dict(saved["model"])
    write_configs(model.shape, args.tokenizer, args.out)
    write_weights(model, args.out)


if __name__ == "__main__":
    main()

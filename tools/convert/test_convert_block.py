#!/usr/bin/env python3
"""Tests of convert_block.py: what it writes says what went in, and what is refused is named.

    pip install torch safetensors numpy pyyaml pytest
    python3 -m pytest tools/convert/test_convert_block.py

The served directory is held against block_reference.py, run on the checkpoint as it was published.
"""

import copy
import json
import os
import sys

import pytest
import safetensors.torch
import torch
import yaml

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.insert(0, os.path.join(HERE, "..", "..", "tests", "golden"))
import convert_block  # noqa: E402
from block_reference import BlockReference  # noqa: E402

VOCAB, DIM, LEN, PREFIXES = 40, 32, 4, 2


def yaml_of(projection):
    decoder = {"cls": "gpt-neo-x", "model_name_or_path": "EleutherAI/pythia-410m-deduped",
               "config": {"num_hidden_layers": 1, "hidden_size": DIM}}
    return {
        "name": "tiny", "block_length": LEN, "max_length": 64, "precision": "bf16",
        "block_split": {"distribution": "fixed", "distribution_kwargs": {"length": LEN}},
        "embedder": {"cls": "lookup", "n_embedding_tokens": 1, "projection_method": projection,
                     "config": {"vocab_size": VOCAB,
                                "hidden_size": DIM // LEN if projection == "concat" else DIM}},
        "block_decoder": decoder,
        "token_decoder": {**copy.deepcopy(decoder), "expansion_method": "expansion_layer",
                          "expansion_ratio": PREFIXES, "decoding_strategy": "prefix"},
    }


def published(projection):
    """Tensors as the original saves them, its unused table and an old buffer among them."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(shape, generator=generator).mul(0.3).bfloat16()
    width = DIM // LEN if projection == "concat" else DIM
    tensors = {"embedder.embeddings.weight": draw(VOCAB, width)}
    if projection != "concat":
        tensors["embedder.projection_layer.weight"] = draw(DIM, width, LEN)
        tensors["embedder.projection_layer.bias"] = draw(DIM)
    for part in ("block_decoder", "token_decoder"):
        at = f"{part}.gpt_neox.layers.0."
        for norm in (at + "input_layernorm", at + "post_attention_layernorm",
                     f"{part}.gpt_neox.final_layer_norm"):
            tensors[norm + ".weight"], tensors[norm + ".bias"] = 1 + draw(DIM), draw(DIM)
        for name, out, into in (("attention.query_key_value", 3 * DIM, DIM),
                                ("attention.dense", DIM, DIM), ("mlp.dense_h_to_4h", 4 * DIM, DIM),
                                ("mlp.dense_4h_to_h", DIM, 4 * DIM)):
            tensors[at + name + ".weight"], tensors[at + name + ".bias"] = draw(out, into), draw(out)
        tensors[f"{part}.gpt_neox.embed_in.weight"] = draw(VOCAB, DIM)
    tensors["token_decoder.embed_out.weight"] = draw(VOCAB, DIM)
    tensors["token_decoder.expansion_layer.weight"] = draw(PREFIXES * DIM, DIM, 1)
    tensors["token_decoder.expansion_layer.bias"] = draw(PREFIXES * DIM)
    tensors["block_decoder.gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(4)
    tensors["block_decoder.gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 4, 4).bool()
    return tensors


class Case:
    def __init__(self, folder, projection):
        self.folder = folder
        self.tree, self.tensors = yaml_of(projection), published(projection)
        self.n_tokens = VOCAB

    def run(self, *flags):
        paths = [str(self.folder / n) for n in ("in.safetensors", "in.yaml", "tokenizer", "out")]
        safetensors.torch.save_file(self.tensors, paths[0])
        with open(paths[1], "w") as f:
            yaml.safe_dump(self.tree, f)
        os.makedirs(paths[2], exist_ok=True)
        with open(os.path.join(paths[2], "tokenizer.json"), "w") as f:
            json.dump({"model": {"vocab": {f"t{i}": i for i in range(self.n_tokens)}}}, f)
        names = ("--weights", "--config", "--tokenizer", "--out")
        convert_block.main([a for pair in zip(names, paths) for a in pair] + list(flags))
        return paths[3]

    def refused(self):
        with pytest.raises(SystemExit) as caught:
            self.run()
        assert not (self.folder / "out").exists()
        return str(caught.value)


@pytest.fixture(params=["concat", "projection_layer"])
def case(request, tmp_path):
    return Case(tmp_path, request.param)


@pytest.fixture
def concat(tmp_path):
    return Case(tmp_path, "concat")


def test_every_tensor_arrives_unchanged(case):
    out = case.run()
    got = safetensors.torch.load_file(os.path.join(out, "model.safetensors"))
    dropped = [n for n in case.tensors if n not in got]
    assert sorted(dropped) == ["block_decoder.gpt_neox.embed_in.weight",
                               "block_decoder.gpt_neox.layers.0.attention.bias",
                               "block_decoder.gpt_neox.layers.0.attention.rotary_emb.inv_freq"]
    for name, tensor in got.items():
        assert tensor.dtype == case.tensors[name].dtype
        assert torch.equal(tensor, case.tensors[name]), name


def test_reference_reads_it_and_every_token_counts(case):
    reference = BlockReference.open(case.run())
    ids = list(range(1, 12))
    logits = reference.logits(ids)
    assert logits[LEN:].isfinite().all() and logits[:LEN].isnan().all()
    for i in range(len(ids)):
        changed = list(ids)
        changed[i] += 20
        after = reference.logits(changed)
        assert torch.equal(after[LEN:i + 1], logits[LEN:i + 1]), "a logit depends on the future"
        assert not torch.equal(after[-1], logits[-1])


def test_config_says_what_the_yaml_leaves_out(concat):
    concat.tree["random_pad_first_block"] = concat.tree["pad_to_block_boundary"] = True
    with open(os.path.join(concat.run("--left-pad", "--generate-positions"), "config.json")) as f:
        config = json.load(f)
    assert (config["alignment"], config["token_positions"]) == ("left_pad", "generate")
    assert (config["trained_with_padding"], config["start_block"]) == (True, False)
    assert (config["vocab_size"], config["max_position_embeddings"]) == (VOCAB, 64)
    assert (config["block_decoder"]["num_attention_heads"], config["dtype"]) == (1, "bfloat16")
    assert config["token_decoder"]["intermediate_size"] == 4 * DIM


@pytest.mark.parametrize("dim, n_heads", [(256, 8), (512, 8), (1024, 16), (2048, 16)])
def test_heads_follow_from_the_width(dim, n_heads):
    assert dim // convert_block.head_dim_of(dim) == n_heads


def test_missing_padding_flags_mean_no_padding(concat):
    with open(os.path.join(concat.run(), "config.json")) as f:
        assert json.load(f)["trained_with_padding"] is False


@pytest.mark.parametrize("part", convert_block.PARTS)
def test_missing_part_is_named(case, part):
    case.tensors = {n: t for n, t in case.tensors.items() if not n.startswith(part)}
    assert f"no {part} in it" in case.refused()


def test_vanilla_checkpoint_is_refused(concat):
    concat.tensors = {n.removeprefix("token_decoder."): t for n, t in concat.tensors.items()
                      if n.startswith("token_decoder.")}
    assert "no embedder in it" in concat.refused()


def test_missing_tensor_is_named(case):
    del case.tensors["token_decoder.expansion_layer.bias"]
    assert "tensor token_decoder.expansion_layer.bias is missing" in case.refused()


def test_another_block_length(case):
    case.tree["block_length"] = 2
    case.tree["block_split"]["distribution_kwargs"]["length"] = 2
    message = case.refused()
    assert "block_length" in message and "2" in message


def test_block_length_beside_its_split(concat):
    concat.tree["block_split"]["distribution_kwargs"]["length"] = 8
    assert "block_split.distribution_kwargs.length is 8" in concat.refused()


@pytest.mark.parametrize("name", ["token_decoder.gpt_neox.embed_in.weight",
                                  "token_decoder.embed_out.weight", "embedder.embeddings.weight"])
def test_vocabulary_mismatch(case, name):
    case.tensors[name] = case.tensors[name][:-8].clone()
    message = case.refused()
    assert name in message and "32 rows" in message and "40" in message


def test_tokenizer_beyond_the_vocabulary(concat):
    concat.n_tokens = VOCAB + 1
    assert "ids up to 40" in concat.refused()


def test_wrong_shape_is_told_with_both(concat):
    name = "block_decoder.gpt_neox.layers.0.mlp.dense_h_to_4h.weight"
    concat.tensors[name] = concat.tensors[name].t().contiguous()
    assert f"{name}: shape [32, 128], want [128, 32]" in concat.refused()


def test_more_layers_than_the_config_says(concat):
    concat.tensors["block_decoder.gpt_neox.layers.1.attention.dense.bias"] = torch.ones(DIM)
    assert "layers.1.attention.dense.bias is not part of such a model" in concat.refused()


@pytest.mark.parametrize("path, value", [
    ("embedder.cls", "roberta"), ("embedder.n_embedding_tokens", 3),
    ("token_decoder.decoding_strategy", "summation"), ("token_decoder.cls", "t5"),
    ("embedder.projection_method", "mean"), ("token_decoder.expansion_ratio", 9),
    ("block_decoder.config.hidden_size", None), ("max_length", "long"), ("block_length", 16)])
def test_what_is_not_served_is_named(concat, path, value):
    at = concat.tree
    *parents, last = path.split(".")
    for key in parents:
        at = at[key]
    at[last] = value
    assert last in concat.refused()


def test_float64_is_refused(concat):
    name = "token_decoder.embed_out.weight"
    concat.tensors[name] = concat.tensors[name].double()
    assert f"tensor {name}: dtype F64" in concat.refused()


@pytest.mark.parametrize("n_bytes", [0, 7, 100, -1])
def test_cut_file(concat, n_bytes):
    out = concat.run()
    whole = (concat.folder / "in.safetensors").read_bytes()
    (concat.folder / "cut").write_bytes(whole[:n_bytes])
    with pytest.raises(ValueError, match="no safetensors file|cut short"):
        convert_block.WeightsFile(str(concat.folder / "cut"))
    assert os.path.exists(out)


def test_not_a_yaml(concat):
    concat.tree = ["a", "list"]
    assert "want a YAML with embedder" in concat.refused()

#!/usr/bin/env python3
"""Tests of the Block recipe, at toy sizes on a CPU: a minute.

    pip install torch transformers tokenizers safetensors numpy pytest
    python3 -m pytest tools/train/test_block.py
"""

import io
import json
import os
import sys
import tarfile
import time

import numpy as np
import pytest
import torch
import transformers

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.insert(0, os.path.join(HERE, "..", "..", "tests", "golden"))
import block_card  # noqa: E402
import block_data  # noqa: E402
import block_eval  # noqa: E402
import export_block  # noqa: E402
import train_block  # noqa: E402
from block_model import BlockShape, block_from_vanilla, make_model  # noqa: E402
from block_reference import BlockReference  # noqa: E402

TOY = ["--tokens", "20480", "--step-tokens", "512", "--row-len", "64", "--heldout-tokens", "4096",
       "--dim", "32", "--ffn-dim", "48", "--block-layers", "1", "--token-layers", "1",
       "--vanilla-dim", "32", "--vanilla-layers", "2", "--vanilla-ffn-dim", "32",
       "--max-partners", "2", "--within", "0.0001", "--log-every", "10", "--warmup", "5",
       "--device", "cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A text whose next word is mostly certain, so that a few steps show."""
    rng = np.random.default_rng(1)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "theta", "kappa"]
    texts = []
    for _ in range(400):
        at, picked = int(rng.integers(8)), []
        for _ in range(60):
            picked.append(words[at])
            at = (at + 1) % 8 if rng.random() < 0.9 else int(rng.integers(8))
        texts.append(" ".join(picked) + ".")
    tokenizer = block_data.train_bpe(texts, 280)
    tokens = [t for text in texts for t in [0] + tokenizer.encode(text).ids]
    path = tmp_path_factory.mktemp("data") / "data.tar.xz"
    with tarfile.open(path, "w:xz") as archive:
        for name, raw in (("train.u16", np.array(tokens[4096:], dtype=np.uint16).tobytes()),
                          ("heldout.u16", np.array(tokens[:4096], dtype=np.uint16).tobytes()),
                          ("tokenizer.json", tokenizer.to_str().encode()),
                          ("manifest.json", json.dumps(
                              {"vocab_size": tokenizer.get_vocab_size(), "train_documents": 360,
                               "train_tokens": len(tokens) - 4096, "train_bytes": 100000,
                               "heldout_documents": 40, "sources": [
                                   {"package": "some-doc", "version": "1-2", "licence": "GPL-2",
                                    "train_bytes": 100000, "heldout_bytes": 9000}]}).encode())):
            entry = tarfile.TarInfo(name)
            entry.size = len(raw)
            archive.addfile(entry, io.BytesIO(raw))
    return path


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    train_block.main(["--data", str(data), "--out", str(out), "--uptrain", *TOY])
    return out


def load(path):
    return torch.load(path, map_location="cpu", weights_only=False)


def test_loss_falls(trained):
    for name in ("block", "vanilla-32", "uptrain-parent"):
        log = load(trained / f"{name}.pt")["log"]
        assert log[-1][1] < log[0][1] - 0.5, (name, log)


def test_pair_is_reported_and_a_second_width_tried(trained):
    pair = json.loads((trained / "pair.json").read_text())
    assert pair["done"] and len([n for n in pair["results"] if n.startswith("vanilla-")]) == 2
    results = pair["results"]
    assert pair["difference"] == round(
        results[pair["partner"]]["nats"] - results["block"]["nats"], 5)
    assert results["block"]["tokens_trained"] == results[pair["partner"]]["tokens_trained"]
    # A block's entry for four tokens, one for the start, and a slab for 2 + 3 positions.
    assert results["block"]["kv_bytes"] == 2 * 32 * 2 * (1024 // 4 + 1 + 5)
    assert results["vanilla-32"]["kv_bytes"] == 2 * 2 * 32 * 2 * 1024


def test_resumed_run_ends_in_the_same_bits(data, trained, tmp_path):
    args = train_block.parse_args(["--data", str(data), "--out", str(tmp_path), *TOY])
    source = train_block.Data(data, "cpu")
    args.vocab_size = source.manifest["vocab_size"]
    shape = train_block.block_shape(args)

    def run():
        return train_block.Run(args, source, "block", "block", shape, args.tokens, args.rate)

    n_calls = 1
    while not run().train(time.monotonic()):  # Each call gets as far as its first logged step.
        n_calls += 1
    assert n_calls == 4
    one, many = load(trained / "block.pt"), load(tmp_path / "block.pt")
    assert [(s, loss) for s, loss, _ in one["log"]] == [(s, loss) for s, loss, _ in many["log"]]
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, many["model"][name]), name


def exported(trained, data, name, out):
    with tarfile.open(data) as archive:
        text = archive.extractfile("tokenizer.json").read().decode()
    export_block.export(trained / f"{name}.pt", text, out)
    saved = load(trained / f"{name}.pt")
    model = make_model(saved["kind"], saved["shape"])
    model.load_state_dict({n: t.bfloat16().float() for n, t in saved["model"].items()})
    return model


@pytest.mark.parametrize("name", ["block", "uptrained"])
def test_exported_block_is_what_the_reference_computes(trained, data, tmp_path, name):
    model = exported(trained, data, name, tmp_path)
    ids = torch.randint(0, 280, (1, 24), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours = torch.nn.functional.linear(model.predicting(ids), model.embed)
    theirs = BlockReference.open(tmp_path).logits(ids[0].tolist())[:24]
    assert (ours - theirs).abs().max() < 1e-4


def test_exported_vanilla_is_what_transformers_computes(trained, data, tmp_path):
    model = exported(trained, data, "vanilla-32", tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = torch.tensor([tokenizer("alpha beta gamma").input_ids])
    assert ids[0, 0] == 0 and 0 not in ids[0, 1:]
    with torch.no_grad():
        ours = torch.nn.functional.linear(model.predicting(ids[:, 1:]), model.embed)
        assert (ours - theirs(ids).logits[0, :-1]).abs().max() < 1e-4


def test_uptraining_starts_at_the_vanilla_model():
    """The start: layers split in order, means for blocks, every prefix the context."""
    shape = {"vocab_size": 40, "dim": 32, "n_layers": 4, "n_heads": 1, "n_kv_heads": 1,
             "head_dim": 32, "ffn_dim": 48, "max_seq_len": 64}
    torch.manual_seed(4)
    vanilla = make_model("vanilla", shape)
    model = block_from_vanilla(vanilla, n_prefix=2, block_len=4)
    blocks = torch.randint(0, 40, (2, 3, 4))
    mean = vanilla.embed[blocks].mean(2).flatten(0, 1)
    assert torch.allclose(model.embed_blocks(blocks), mean, atol=1e-6)
    x = torch.randn(6, 32)
    assert torch.equal(model.expansion @ x[0], x[0].repeat(2))
    with torch.no_grad():
        lower = model.block_decoder.run(x, 2, 3)
        whole = vanilla.layers
        vanilla.layers = whole[:2]  # The lower half, then the fresh norm of ones.
        assert torch.allclose(lower, vanilla.run(x, 2, 3), atol=1e-6)
        vanilla.layers = whole[2:]
        assert torch.allclose(
            model.token_decoder.run(x, 2, 3), vanilla.run(x, 2, 3), atol=1e-5)


def test_no_block_sees_its_own_or_later_tokens():
    torch.manual_seed(5)
    model = make_model("block", BlockShape(vocab_size=40, dim=32, n_heads=1).as_dict())
    ids = torch.randint(0, 40, (1, 16))
    with torch.no_grad():
        before = model.predicting(ids)
        for i in range(16):
            changed = ids.clone()
            changed[0, i] = (changed[0, i] + 1) % 40
            after = model.predicting(changed)
            assert torch.equal(after[: i + 1], before[: i + 1])
            assert i == 15 or not torch.equal(after[i + 1:], before[i + 1:])


def test_next_width_follows_the_line_through_losses():
    args = train_block.parse_args(["--data", "-", "--out", "-"])
    args.vocab_size = 512
    losses = {w: 3 - 0.2 * np.log(train_block.outside_tables(args, w)) for w in (96, 160, 224)}
    goal = losses.pop(224)
    assert train_block.next_width(args, losses, goal) == 224
    assert train_block.next_width(args, losses | {224: goal}, goal) is None


def test_cloze_tells_words_seen_from_new_ones():
    pieces = [b"", b" cat", b" dogs", b"ty", b".", b" of", b" fish"]
    row = np.array([1, 3, 4, 2, 4, 5, 6, 4, 1, 3, 4, 2, 4] + [4] * block_eval.CLOZE_FROM
                   + [1, 3, 4, 6, 4, 2, 3, 4])
    assert [tuple(row[a:b]) for a, b in block_eval.find_words(row[:13], pieces)] == [
        (1, 3), (2,), (6,), (1, 3), (2,)]
    hits = np.ones(len(row), dtype=bool)
    hits[-5] = False
    got = block_eval.cloze([row], [hits], pieces)
    assert (got["seen_words"], got["new_words"]) == (2, 1)
    assert (got["seen_found"], got["new_found"]) == (0.5, 1.0)


def test_token_bytes_spell_the_text(data):
    with tarfile.open(data) as archive:
        text = archive.extractfile("tokenizer.json").read().decode()
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_str(text)
    pieces = block_eval.token_bytes(tokenizer)
    for sample in ("alpha beta.", "naïve 東京 \t\n 12"):
        ids = tokenizer.encode(sample).ids
        assert b"".join(pieces[i] for i in ids) == sample.encode()


def test_card_is_written_from_the_run(trained, data, tmp_path, monkeypatch):
    exported(trained, data, "block", tmp_path)
    with tarfile.open(data) as archive:
        manifest = json.loads(archive.extractfile("manifest.json").read())
    monkeypatch.setattr(sys, "argv", [
        "block_card.py", "--run", str(trained), "--data", str(data), "--model", str(tmp_path),
        "--speed", "a machine:12:34"])
    block_card.main()
    card = (tmp_path / "README.md").read_text()
    pair = json.loads((trained / "pair.json").read_text())
    assert f"**{pair['results']['block']['nats']:.4f}**" in card
    assert "| tokens/s, a machine | 12 | 34 | –| –|" in card
    assert all(source["package"] in card for source in manifest["sources"])

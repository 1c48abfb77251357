"""Writes the card of models/demo-block from what train_block.py measured.

    block_card.py --run DIR --data data.tar.xz --model models/demo-block \\
        [--speed "one H100, batch 1024, 512 in, 512 out:BLOCK:VANILLA"]

No number of the card is typed by hand but those of --speed, tokens a second that the bench told.
"""

import argparse
import json
import pathlib
import tarfile
import textwrap

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from block_model import make_model
from train_block import MATCHED

CURVE_POINTS = 12
SAMPLE_TOKENS = 120
PROMPTS = (
    "The kernel is the part of the operating system that",
    "And the LORD said unto",
    "In the morning the captain looked out over the sea and",
)

TEXT = """---
license: other
language: en
pipeline_tag: text-generation
---

# demo-block

A Block Transformer of {params:,} parameters that comes with spand, so that the architecture can be
tried, tested and measured without fetching anything. {claim}

**What it is good for:** exercising block caches, macro steps and alignment with real weights, and
showing what the architecture trades. **What it is not good for:** anything that a reader would want to
be true. It strings words of manuals, dictionaries and scripture together and knows nothing; it does
not chat. At this size every word counts for little: the pair says something about the architecture,
not about what a large one would write.

| | |
| --- | --- |
| architecture | `BlockTransformerForCausalLM` on Llama layers: RMSNorm, SwiGLU, grouped KV heads |
| block decoder | {n_block_layers} layers over blocks of {block_len} tokens, lookup embedder of width {width}, concatenated |
| token decoder | {n_token_layers} layers, {n_prefix} prefixes, head and token table one matrix |
| width | {dim}; {n_heads} query heads and {n_kv_heads} KV head of {head_dim}; inner width {ffn_dim} |
| context | {context} tokens, RoPE base {rope_theta:g} |
| alignment | from the left; a block of `<|endoftext|>` in front of every text |
| tokenizer | byte-level BPE of {vocab} tokens, digits single, nothing put in front |
| stops | `<|endoftext|>` |
| weights | bf16 safetensors, {weights_kib:.0f} KiB |

## The pair

{pair}

Loss, cloze and repetition on {heldout:,} held-out tokens in rows of {row_len}, weights rounded to bf16,
arithmetic in f32. A cloze is a word of four letters and more, found if each of its tokens is the
likeliest; "seen" words stood earlier in the same row. In the last rows a row says one passage twice,
the second time on the same places of a block or two tokens later: what is lower there than the first
time was looked up. KV bytes are those of a sequence of {sequence} tokens in bf16{slab}.

{tried}

By place in its block, a token costs the Block model {places} nats.

{reading}

## What it writes

Unedited, temperature 0.7, seed 1, cut off after {sample_tokens} tokens:

{samples}

## Training

{training}

| tokens, M | {curve_names} |
| --- |{curve_rule}
{curve}

Means over {log_every} steps, on rows trained on. From an empty folder to this one: `tools/train/README.md`.
A second run differs in its last digits.

## Data

{data_tokens:.1f} M tokens ({data_mb:.1f} MB) of {documents:,} documents, drawn by the weights of `tools/train/corpus.py`
from packages of Debian 12; {epochs} epochs of them. The tokens held out come from {held_documents} other
documents of the same packages, so they tell how well the model learned that prose and no more. The weights are
derived from texts under the licences below.

| package | version | licence | MB trained on | kB held out |
| --- | --- | --- | --- | --- |
{packages}
"""


def rows_of(pair, names, speeds):
    results = [pair["results"][name] for name in names]

    def row(title, value):
        return f"| {title} | " + " | ".join(value(r) for r in results) + " |"

    lines = [
        row("parameters", lambda r: f"{r['params']:,}"),
        row("outside the tables", lambda r: f"{r['params_outside_tables']:,}"),
        row("tokens trained on", lambda r: f"{r['tokens_trained'] / 1e6:.0f} M"),
        row("held-out loss, nats a token", lambda r: f"**{r['nats']:.4f}**"),
        row("held-out perplexity", lambda r: f"{r['perplexity']:.3f}"),
        row("bits a byte", lambda r: f"{r['bits_per_byte']:.4f}"),
        row("next token right", lambda r: f"{r['top1'] * 100:.1f} %"),
        row("cloze, words not seen before", lambda r: f"{r['cloze']['new_found'] * 100:.1f} %"),
        row("cloze, words seen before", lambda r: f"{r['cloze']['seen_found'] * 100:.1f} %"),
        row("a passage, first time", lambda r: f"{r['repeated'][0]:.3f}"),
        row("second time, same places", lambda r: f"{r['repeated'][1]:.3f}"),
        row("second time, two tokens later", lambda r: f"{r['repeated_shifted'][1]:.3f}"),
        row(f"KV bytes at {pair['sequence']} tokens", lambda r: f"{r['kv_bytes']:,}"),
    ]
    for speed in speeds:
        title, block, vanilla = speed.rsplit(":", 2)
        rest = " –|" * (len(names) - 2)
        lines.append(f"| tokens/s, {title} | {block} | {vanilla} |{rest}")
    head = "| | " + " | ".join(names) + " |\n| --- |" + " --- |" * len(names)
    return head + "\n" + "\n".join(lines)


def others_tried(pair):
    others = [
        f"inner width {name.split('-')[1]}: {r['params_outside_tables']:,} parameters, {r['nats']:.4f}"
        for name, r in pair["results"].items()
        if name.startswith("vanilla-") and name != pair["partner"]
    ]
    if not others:
        return "The first partner tried was the one."
    return "Other partners tried, same rows: " + "; ".join(others) + "."


def claim(pair):
    """What may be said of the partner's loss."""
    partner = pair["results"][pair["partner"]]
    said = (
        f"It was trained together with a vanilla Llama of {partner['params_outside_tables']:,} "
        f"parameters outside the tables, on the same {pair['tokens'] / 1e6:.0f} M tokens in the "
        "same order, "
    )
    if abs(pair["difference"]) <= MATCHED:
        said += f"to the same held-out loss within {abs(pair['difference']):.3f} nats."
    else:
        said += (
            f"whose held-out loss differs by {pair['difference']:+.3f} nats: a partner of equal "
            "loss has not been found yet."
        )
    return textwrap.fill(said + " Partners are not shipped; `tools/train` makes them again.", 100)


def reading(pair):
    block, partner = pair["results"]["block"], pair["results"][pair["partner"]]
    factor = block["params_outside_tables"] / partner["params_outside_tables"]
    kv = partner["kv_bytes"] / block["kv_bytes"]
    gain = [r["repeated"][0] - r["repeated"][1] for r in (block, partner)]
    shifted = [r["repeated_shifted"][0] - r["repeated_shifted"][1] for r in (block, partner)]
    matched = abs(pair["difference"]) <= MATCHED
    text = (
        f"So {'for equal loss' if matched else 'here, at unequal loss,'} the Block model has "
        f"{factor:.1f} times the parameters outside the "
        f"tables and {kv:.1f} times less memory for keys and values. Repeating a passage saves it "
        f"{gain[0]:.2f} nats a token where the repetition falls on the same places and "
        f"{shifted[0]:.2f} where it does not; the vanilla model {gain[1]:.2f} and {shifted[1]:.2f}."
    )
    uptrained = pair["results"].get("uptrained")
    if uptrained:
        share = uptrained["tokens_trained"] / block["tokens_trained"]
        parent = pair["results"]["uptrain-parent"]
        text += (
            f" `uptrained` began as `uptrain-parent`, a vanilla model of its layers with a loss of "
            f"{parent['nats']:.4f}, and saw {share * 100:.0f} % of the tokens."
        )
    return "\n".join(textwrap.wrap(text, 104))


@torch.no_grad()
def sample(model, tokenizer, prompt, seed=1, temperature=0.7):
    torch.manual_seed(seed)
    ids = tokenizer.encode(prompt).ids
    for _ in range(min(SAMPLE_TOKENS, model.shape.max_seq_len - len(ids) - model.shape.block_len)):
        # The next place and what fills its block up; no logit depends on what stands there.
        padded = ids + [0] * (4 - len(ids) % 4)
        hidden = model.predicting(torch.tensor([padded]))[len(ids)]
        chances = (F.linear(hidden, model.embed) / temperature).softmax(-1)
        ids.append(int(torch.multinomial(chances, 1)))
        if ids[-1] == 0:
            break
    return tokenizer.decode(ids, skip_special_tokens=False)


def curve(recipe, names):
    logs = [recipe[name]["log"] for name in names]
    n = min(map(len, logs))
    picked = sorted({round((n - 1) * (i / (CURVE_POINTS - 1)) ** 2) for i in range(CURVE_POINTS)})
    step_tokens = recipe[names[0]]["step_tokens"]
    return "\n".join(
        f"| {logs[0][i][0] * step_tokens / 1e6:.0f} | "
        + " | ".join(f"{log[i][1]:.3f}" for log in logs)
        + " |"
        for i in picked
    )


def training(pair, names):
    recipe = pair["recipe"]
    seconds = ", ".join(f"{pair['results'][n]['seconds']:.0f} s ({n})" for n in names)
    text = (
        f"On one {pair['device']}: {seconds}. {recipe['block']['steps']:,} steps of "
        f"{recipe['block']['step_tokens']:,} tokens, rows of {pair['results']['block']['row_len']}, a "
        f"quarter of which begin where a document does. PyTorch, bf16 autocast, AdamW (0.9, 0.95), "
        f"weight decay 0.1, clipping at 1, peak learning rate {recipe['block']['rate']:g} (Block) and "
        f"{recipe[pair['partner']]['rate']:g} (vanilla), warm-up, then in a line to 2 % of it. Every "
        f"token is predicted, from a block of end-of-text at the beginning of a row."
    )
    return "\n".join(textwrap.wrap(text, 104))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--speed", action="append", default=[], metavar="WHERE:BLOCK:VANILLA")
    args = parser.parse_args()
    pair = json.loads((args.run / "pair.json").read_text())
    if "partner" not in pair:
        raise SystemExit("the pair is not trained to its end")
    if abs(pair["difference"]) > MATCHED:
        print(f"the card will say that {pair['difference']:+.4f} nats are no match")
    with tarfile.open(args.data) as archive:
        manifest = json.loads(archive.extractfile("manifest.json").read())
    names = ["block", pair["partner"]]
    shown = names + [n for n in ("uptrain-parent", "uptrained") if n in pair["results"]]
    block = pair["results"]["block"]
    shape = pair["recipe"]["block"]["shape"]
    saved = torch.load(args.run / "block.pt", map_location="cpu", weights_only=False)
    model = make_model("block", saved["shape"])
    model.load_state_dict({n: t.bfloat16().float() for n, t in saved["model"].items()})
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    logs = pair["recipe"]["block"]["log"]
    card = TEXT.format(
        **{k: v for k, v in shape.items() if k not in ("vocab_size", "max_seq_len")},
        params=block["params"],
        claim=claim(pair),
        width=shape["dim"] // shape["block_len"],
        context=shape["max_seq_len"],
        vocab=shape["vocab_size"],
        weights_kib=(args.model / "model.safetensors").stat().st_size / 1024,
        pair=rows_of(pair, shown, args.speed),
        heldout=block["tokens"],
        row_len=block["row_len"],
        sequence=pair["sequence"],
        slab=", the Block model's with its start block and the slab of one block's tokens",
        tried=others_tried(pair),
        places=", ".join(f"{v:.3f}" for v in block["nats_by_place_in_4"]),
        reading=reading(pair),
        sample_tokens=SAMPLE_TOKENS,
        samples="\n\n".join(f"```\n{sample(model, tokenizer, p)}\n```" for p in PROMPTS),
        training=training(pair, names),
        curve_names=" | ".join(names),
        curve_rule=" --- |" * len(names),
        curve=curve(pair["recipe"], names),
        log_every=logs[1][0] - logs[0][0],
        data_tokens=manifest["train_tokens"] / 1e6,
        data_mb=manifest["train_bytes"] / 1e6,
        documents=manifest["train_documents"],
        held_documents=manifest["heldout_documents"],
        epochs=pair["epochs"],
        packages="\n".join(
            f"| {s['package']} | {s['version']} | {s['licence']} | {s['train_bytes'] / 1e6:.2f} | "
            f"{s['heldout_bytes'] / 1e3:.0f} |"
            for s in sorted(manifest["sources"], key=lambda s: -s["train_bytes"])
        ),
    )
    (args.model / "README.md").write_text(card)
    print(f"{args.model / 'README.md'}: {len(card):,} characters")


if __name__ == "__main__":
    main()

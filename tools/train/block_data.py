"""Packs what train_block.py reads into one file: tokens, held-out tokens and their tokenizer.

    block_data.py --corpus DIR --out data.tar.xz

A pair of models of a few hundred thousand parameters needs neither the whole corpus nor a large
vocabulary, and the machine that trains it may be one that nothing can be fetched to. So a sample of
the documents of corpus.py, drawn by its weights, gets a small byte-level BPE of its own, and tokens
and tokenizer travel as one archive:

    train.u16       documents after one another, end-of-text (id 0) in front of each
    heldout.u16     the same form, documents that are not in train.u16
    tokenizer.json  byte-level BPE, digits single, nothing put in front of a text
    manifest.json   packages with versions, licences and what was taken of each
"""

import argparse
import io
import json
import lzma
import pathlib
import random
import tarfile

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT_END = "<|endoftext|>"
BPE_SAMPLE_BYTES = 16_000_000  # A vocabulary this small is settled by far less.
# Tokens are pairs of bytes, of which the second says little: let the coder know the place.
XZ_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 2, "lp": 1, "pb": 1}]


def read_documents(path):
    with open(path) as lines:
        return [json.loads(line) for line in lines]


def train_bpe(texts, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[TEXT_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.token_to_id(TEXT_END) == 0
    return tokenizer


def take_until(texts, n_bytes):
    for text in texts:
        if n_bytes <= 0:
            return
        n_bytes -= len(text)
        yield text


def encode(tokenizer, documents, limit):
    """Documents in their order until there are limit tokens. (tokens, documents used)"""
    parts, n_tokens, n_used = [], 0, 0
    for first in range(0, len(documents), 1000):
        some = documents[first : first + 1000]
        for encoding in tokenizer.encode_batch_fast(
            [d["text"] for d in some], add_special_tokens=False
        ):
            if n_tokens >= limit:
                return np.concatenate(parts)[:limit], n_used
            parts.append(np.array([0] + encoding.ids, dtype=np.uint16))
            n_tokens += len(parts[-1])
            n_used += 1
    return np.concatenate(parts)[:limit], n_used


def source_bytes(documents):
    taken = {}
    for document in documents:
        taken[document["source"]] = taken.get(document["source"], 0) + len(
            document["text"].encode()
        )
    return taken


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=pathlib.Path, required=True, help="what corpus.py wrote")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="archive to write, .tar.xz")
    parser.add_argument("--vocab-size", type=int, default=512)
    parser.add_argument("--tokens", type=float, default=25e6, help="to train on")
    parser.add_argument("--heldout-tokens", type=float, default=1e6)
    args = parser.parse_args()

    rng = random.Random(5)
    manifest = json.loads((args.corpus / "manifest.json").read_text())
    weights = {source["package"]: source["weight"] for source in manifest}
    heaviest = max(weights.values())
    documents = read_documents(args.corpus / "train.jsonl")
    rng.shuffle(documents)
    chosen, rest = [], []
    for document in documents:
        lucky = rng.random() < weights[document["source"]] / heaviest
        (chosen if lucky else rest).append(document)
    tokenizer = train_bpe(
        take_until((d["text"] for d in chosen), BPE_SAMPLE_BYTES), args.vocab_size
    )
    train, n_used = encode(tokenizer, chosen, int(args.tokens))
    if len(train) < args.tokens:
        raise SystemExit(f"the drawn documents have {len(train)} tokens, want {args.tokens:.0f}")
    # The corpus holds too little out for tokens this short: documents nobody drew fill it up.
    spare = read_documents(args.corpus / "heldout.jsonl") + chosen[n_used:] + rest
    heldout, n_heldout = encode(tokenizer, spare, int(args.heldout_tokens))
    taken, kept = source_bytes(chosen[:n_used]), source_bytes(spare[:n_heldout])
    for source in manifest:
        source["train_bytes"] = taken.get(source["package"], 0)
        source["heldout_bytes"] = kept.get(source["package"], 0)
    about = {
        "vocab_size": tokenizer.get_vocab_size(),
        "train_tokens": len(train),
        "train_documents": n_used,
        "train_bytes": sum(taken.values()),
        "heldout_tokens": len(heldout),
        "heldout_documents": n_heldout,
        "heldout_bytes": sum(kept.values()),
        "sources": manifest,
    }
    with lzma.open(args.out, "wb", filters=XZ_FILTERS) as packed:
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name, data in (
                ("train.u16", train.tobytes()),
                ("heldout.u16", heldout.tobytes()),
                ("tokenizer.json", tokenizer.to_str(pretty=False).encode()),
                ("manifest.json", json.dumps(about, indent=1).encode()),
            ):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    print(
        f"{len(train):,} tokens of {n_used} documents, {about['train_bytes'] / len(train):.2f} "
        f"bytes a token; {len(heldout):,} held out of {n_heldout}; "
        f"{args.out.stat().st_size / 2**20:.1f} MiB"
    )


if __name__ == "__main__":
    main()

"""Measures an exported model: perplexity on held-out text, retrieval by length and position.

    evaluate.py perplexity --model DIR --corpus DIR
    evaluate.py retrieval  --model DIR --words FILE [--longeval FILE]
    evaluate.py samples    --model DIR

The model runs in transformers, so that what is measured is what any reader of the files gets. Each
verb writes one JSON object to --out, or to the standard output.
"""

import argparse
import collections
import json
import math
import pathlib
import re
import sys
import time

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import retrieval

N_BINS = 10
ANSWER_TOKENS = 40

SAMPLE_PROMPTS = [
    ("text", "The kernel is the part of the operating system that"),
    ("text", "In the morning the captain looked out over the sea and"),
    ("text", "The function returns"),
    ("chat", "What is a compiler?"),
    ("chat", "Who are you?"),
]


def load(args):
    dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[args.dtype]
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).to(args.device).eval()
    return model, AutoTokenizer.from_pretrained(args.model)


# -- Perplexity -------------------------------------------------------------------------------


@torch.inference_mode()
def perplexity(args):
    """Documents are cut into windows of the given length; each window starts with end-of-text."""
    model, tokenizer = load(args)
    raw = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    sums = collections.defaultdict(lambda: [0.0, 0, 0])
    windows = []
    with open(args.corpus / "heldout.jsonl") as lines:
        for line in lines:
            document = json.loads(line)
            ids = raw.encode(document["text"], add_special_tokens=False).ids
            sums[document["source"]][2] += len(document["text"].encode())
            for start in range(0, len(ids), args.window - 1):
                windows.append((document["source"], ids[start : start + args.window - 1]))
    windows.sort(key=lambda w: len(w[1]))
    at = 0
    while at < len(windows):
        # Rows of about one length together; the tokens of a batch stay about as many.
        n_rows = max(1, args.batch_tokens // (len(windows[min(at + 8, len(windows) - 1)][1]) + 1))
        batch = windows[at : at + n_rows]
        at += len(batch)
        longest = max(len(ids) for _, ids in batch)
        ids = torch.full((len(batch), longest + 1), 0, dtype=torch.long)
        targets = torch.full((len(batch), longest), -100, dtype=torch.long)
        for i, (_, row) in enumerate(batch):
            ids[i, 1 : len(row) + 1] = torch.tensor(row)
            targets[i, : len(row)] = torch.tensor(row)
        logits = model(ids[:, :-1].to(args.device)).logits
        for i, (source, row) in enumerate(batch):
            loss = F.cross_entropy(
                logits[i, : len(row)].float(),
                targets[i, : len(row)].to(args.device),
                reduction="sum",
            )
            sums[source][0] += loss.item()
            sums[source][1] += len(row)
    total = [sum(s[i] for s in sums.values()) for i in range(3)]

    def numbers(nats, n_tokens, n_bytes):
        return {
            "tokens": n_tokens,
            "bytes": n_bytes,
            "nats_per_token": round(nats / n_tokens, 4),
            "perplexity_per_token": round(math.exp(nats / n_tokens), 3),
            "perplexity_per_byte": round(math.exp(nats / n_bytes), 4),
            "bits_per_byte": round(nats / n_bytes / math.log(2), 4),
        }

    return {
        "dtype": args.dtype,
        "window": args.window,
        "all": numbers(*total),
        "by_source": {name: numbers(*s) for name, s in sorted(sums.items())},
    }


# -- Retrieval --------------------------------------------------------------------------------


def has_rival(prompt):
    """Whether another line's number differs from the asked one in its last digit only."""
    stem = str(prompt["expected_number"])[:4]
    numbers = re.findall(r"is <(\d+)>\n", prompt["prompt"])
    return len(stem) == 4 and sum(number.startswith(stem) for number in numbers) > 1


@torch.inference_mode()
def answers(model, tokenizer, prompts, args, chat):
    """Greedy answers. Shorter prompts of a batch are padded on the left and masked there."""
    texts = []
    bos = tokenizer.bos_token_id
    for prompt in prompts:
        if chat:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            texts.append(tokenizer.encode(text, add_special_tokens=False))
        else:
            texts.append([bos] + tokenizer.encode(prompt, add_special_tokens=False))
    out = []
    n_rows = max(1, args.batch_tokens // max(map(len, texts)))
    for start in range(0, len(texts), n_rows):
        batch = texts[start : start + n_rows]
        longest = max(map(len, batch))
        ids = torch.tensor([[bos] * (longest - len(t)) + t for t in batch], device=args.device)
        mask = torch.tensor(
            [[0] * (longest - len(t)) + [1] * len(t) for t in batch], device=args.device
        )
        made = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            temperature=None,
            top_p=None,
            max_new_tokens=ANSWER_TOKENS,
        )
        out += tokenizer.batch_decode(made[:, longest:], skip_special_tokens=False)
    return out


def measure_retrieval(args):
    model, tokenizer = load(args)
    raw = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    words = json.loads(args.words.read_text())
    result = {"dtype": args.dtype, "seed": args.seed, "table": []}
    for n_tokens in args.lengths:
        prompts = list(
            retrieval.heldout_prompts(raw, words, n_tokens, args.count, N_BINS, args.seed)
        )
        for form in args.forms:
            texts = answers(model, tokenizer, [p["prompt"] for p in prompts], args, form == "chat")
            right, asked, stopped, failures = [0] * N_BINS, [0] * N_BINS, 0, []
            rivals, rivals_right = 0, 0
            for prompt, text in zip(prompts, texts):
                found = retrieval.first_number(text)
                asked[prompt["bin"]] += 1
                right[prompt["bin"]] += found == prompt["expected_number"]
                stopped += ("<|end|>" if form == "chat" else "<|endoftext|>") in text
                rivals += has_rival(prompt)
                rivals_right += has_rival(prompt) and found == prompt["expected_number"]
                if found != prompt["expected_number"] and len(failures) < 20:
                    failures.append(
                        {
                            "key": prompt["key"],
                            "line": prompt["line"],
                            "answer": text[:90],
                            "expected": prompt["expected_number"],
                        }
                    )
            row = {
                "length": n_tokens,
                "form": form,
                "prompts": len(prompts),
                "lines": prompts[0]["n_lines"],
                "exact": round(sum(right) / len(prompts), 4),
                "exact_by_bin": [round(r / max(1, a), 3) for r, a in zip(right, asked)],
                "stopped": round(stopped / len(prompts), 4),
                "with_rival": rivals,
                "with_rival_exact": rivals_right,
                "failures": failures,
            }
            result["table"].append(row)
            print(n_tokens, form, row["exact"], row["exact_by_bin"], file=sys.stderr, flush=True)
    if args.longeval:
        items = [json.loads(line) for line in open(args.longeval)]
        result["longeval"] = {"file": args.longeval.name, "items": len(items)}
        for form in args.forms:
            texts = answers(model, tokenizer, [i["prompt"] for i in items], args, form == "chat")
            right = sum(retrieval.first_number(t) == i["expected_number"] for t, i in zip(texts, items))
            result["longeval"][form] = round(right / len(items), 4)
            print("longeval", form, right, "of", len(items), file=sys.stderr, flush=True)
    return result


# -- Samples ----------------------------------------------------------------------------------


@torch.inference_mode()
def samples(args):
    model, tokenizer = load(args)
    result = []
    for kind, prompt in SAMPLE_PROMPTS:
        for temperature in (0.0, 0.7):
            torch.manual_seed(args.seed)
            text = (
                prompt
                if kind == "text"
                else tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}],
                    tokenize=False,
                    add_generation_prompt=True,
                )
            )
            ids = tokenizer.encode(text, add_special_tokens=False)
            if kind == "text":
                ids = [tokenizer.bos_token_id] + ids
            ids = torch.tensor([ids], device=args.device)
            how = (
                {"do_sample": True, "temperature": temperature, "top_p": 0.9}
                if temperature
                else {"do_sample": False, "temperature": None, "top_p": None}
            )
            made = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=args.tokens,
                **how,
            )
            text = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=False)
            result.append(
                {"kind": kind, "prompt": prompt, "temperature": temperature, "text": text}
            )
    return {"seed": args.seed, "samples": result}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("perplexity", "retrieval", "samples"):
        sub = verbs.add_parser(verb)
        sub.add_argument("--model", type=pathlib.Path, required=True)
        sub.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        sub.add_argument("--dtype", choices=("bf16", "f32"), default="bf16")
        sub.add_argument("--out", type=pathlib.Path)
        sub.add_argument("--batch-tokens", type=int, default=65536)
        sub.add_argument("--seed", type=int, default=1)
        if verb == "perplexity":
            sub.add_argument("--corpus", type=pathlib.Path, required=True)
            sub.add_argument("--window", type=int, default=2048)
        elif verb == "retrieval":
            sub.add_argument("--words", type=pathlib.Path, required=True)
            sub.add_argument("--longeval", type=pathlib.Path)
            sub.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096])
            sub.add_argument("--forms", nargs="+", default=["raw", "chat"])
            sub.add_argument("--count", type=int, default=200)
        else:
            sub.add_argument("--tokens", type=int, default=90)
    args = parser.parse_args()
    started = time.monotonic()
    measure = {"perplexity": perplexity, "retrieval": measure_retrieval, "samples": samples}
    result = measure[args.verb](args)
    result["seconds"] = round(time.monotonic() - started, 1)
    text = json.dumps(result, indent=1) + "\n"
    if args.out:
        args.out.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()

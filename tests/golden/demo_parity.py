#!/usr/bin/env python3
"""Compares the daemon on the bundled demo model with transformers, fp32, eager, on the CPU.

Run by hand after a change to the forward pass, the tokenizer or the server: nothing is written, the
numbers are printed, and the exit code is 1 when a comparison fails.

    pip install -r tests/golden/model_requirements.txt tokenizers
    python3 tests/golden/demo_parity.py [--only tokenize,greedy,retrieval] [--retrieval 40]

greedy     text, chat and retrieval prompts: prompt ids, 128 greedy tokens and the logprobs of both.
           transformers decodes on its own with its cache. A first difference counts as a near tie,
           and not as a failure, where its two best logits are less than NEAR_TIE apart.
retrieval  the share of held-out records answered exactly by the daemon in bf16
tokenize   `spand tokenize` against the tokenizers package on random lines

SPAND names another program than build/spand.
"""

import argparse
import concurrent.futures
import contextlib
import json
import pathlib
import random
import re
import subprocess
import sys
import time

import tokenizers
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / part) for part in ("tests/e2e", "tests/golden", "tools/train")]

import daemon  # noqa: E402
import retrieval  # noqa: E402
import tokenizer_lines  # noqa: E402

MODEL = ROOT / "models" / "demo-llama"
N_NEW = 128
NEAR_TIE = 1e-4
# Of a prompt of 2,048 tokens, fp32 is off by up to 9e-5 in transformers and 1.4e-4 in the daemon,
# when both are compared with transformers in double precision.
LOGPROB_LIMIT = 5e-4
ANSWER_TOKENS = 40

TEXTS = [
    "The kernel is the part of the operating system that",
    "In the morning the captain looked out over the sea and",
    "The function returns",
    "a",
    " ",
    "\n\n\n",
    "1234567890 + 987 =",
    "NAME\n    ls - list directory contents\n\nSYNOPSIS\n    ls [OPTION]... [FILE]...\n",
    "#include <stdio.h>\n\nint main(void)\n{\n",
    "Übermäßig naïve Ελληνικά и русский 人人生而自由 \U0001f600",
    "To be, or not to be, that is the question:",
    "The word \"definition\" means",
]
CHATS = [
    [("user", "Who are you?")],
    [("user", "What is a compiler?")],
    [("system", "You answer in one word."), ("user", "What is the sea?")],
    [("user", "Hello!"), ("assistant", "Hello. What do you want to know?"), ("user", "A word?")],
    [("user", "<|end|>\n<|assistant|> not a special token")],
    [("user", "")],
]


def words():
    return json.loads((MODEL / "eval" / "heldout_words.json").read_text())


def records(n_tokens, count, seed=1):
    raw = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    return list(retrieval.heldout_prompts(raw, words(), n_tokens, count, seed=seed))


@contextlib.contextmanager
def serving(dtype):
    server = daemon.Daemon("--dtype", dtype, "--no-pin-threads")
    try:
        yield server
    finally:
        server.stop()


# -- Greedy continuations ---------------------------------------------------------------------


class Reference:
    def __init__(self):
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            MODEL, dtype=torch.float32, attn_implementation="eager").eval()

    @torch.inference_mode()
    def continuation(self, prompt, n_new):
        """Ids, logprobs, and the distances of the two best logits, decoded one by one."""
        ids, logprobs, gaps = [], [], []
        out = self.model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)
        while True:
            row = out.logits[0, -1].double()
            best = row.topk(2)
            ids.append(int(best.indices[0]))
            logprobs.append(float(row.log_softmax(-1)[ids[-1]]))
            gaps.append(float(best.values[0] - best.values[1]))
            if len(ids) == n_new:
                return ids, logprobs, gaps
            out = self.model(
                torch.tensor([ids[-1:]]), past_key_values=out.past_key_values, use_cache=True)

    @torch.inference_mode()
    def prompt_logprobs(self, prompt):
        logits = self.model(torch.tensor([prompt])).logits[0].double()
        picked = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(prompt[1:])[:, None])
        return picked[:, 0].tolist()


def greedy_cases(reference):
    """(name, path, body, the prompt's ids)"""
    tok = reference.tokenizer

    def completion(name, text):
        return name, "/v1/completions", {"prompt": text}, tok(text)["input_ids"]

    for i, text in enumerate(TEXTS):
        yield completion(f"text {i}", text)
    for i, chat in enumerate(CHATS):
        messages = [{"role": role, "content": content} for role, content in chat]
        ids = tok.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False)
        # The template's text is tokenized as a whole there; the daemon keeps contents apart.
        if "<|" in chat[0][1]:
            ids = None
        yield f"chat {i}", "/v1/chat/completions", {"messages": messages}, ids
    for n_tokens in (2048, 4096):
        for i, record in enumerate(records(n_tokens, 4, seed=3)):
            if i % 2 == 0:
                yield completion(f"record {n_tokens} {i}", record["prompt"])
                continue
            messages = [{"role": "user", "content": record["prompt"]}]
            yield (f"chat record {n_tokens} {i}", "/v1/chat/completions", {"messages": messages},
                   tok.apply_chat_template(
                       messages, add_generation_prompt=True, return_dict=False))


def chat_logprobs(choice):
    return [t["logprob"] for t in choice["logprobs"]["content"]]


def measure_greedy(server):
    reference = Reference()
    n_same = n_tokens = n_near = n_bad = 0
    worst_new = worst_echo = 0.0
    n_echo = n_prompts = 0
    least_gap = float("inf")
    common = {"model": MODEL.name, "temperature": 0, "max_tokens": N_NEW, "ignore_eos": True, "return_token_ids": True,
              "skip_special_tokens": False}
    for name, path, body, prompt in greedy_cases(reference):
        chat = path.endswith("chat/completions")
        status, got = server.post(
            path, {**common, **body, "logprobs": True if chat else 1}, timeout=600)
        assert status == 200, (name, got)
        choice = got["choices"][0]
        sent = choice["prompt_token_ids"]
        assert got["usage"]["prompt_tokens"] == len(sent), name
        n_prompts += 1
        if prompt is not None and sent != prompt:
            print(f"{name}: prompt ids differ: {sent[:20]} and {prompt[:20]}")
            n_bad += 1
        ids, logprobs, gaps = reference.continuation(sent, N_NEW)
        mine = choice["token_ids"]
        mine_logprobs = chat_logprobs(choice) if chat else choice["logprobs"]["token_logprobs"]
        same = next((i for i in range(N_NEW) if mine[i : i + 1] != ids[i : i + 1]), N_NEW)
        n_same += same
        n_tokens += N_NEW
        least_gap = min([least_gap, *gaps[: same + 1]])
        diff = max(abs(a - b) for a, b in zip(mine_logprobs[:same], logprobs)) if same else 0
        worst_new = max(worst_new, diff)
        if same < N_NEW:
            near = gaps[same] < NEAR_TIE
            n_near += near
            n_bad += not near
            print(f"{name}: token {same} is {mine[same:same + 1]}, not {ids[same]}; the best two "
                  f"logits of transformers are {gaps[same]:.2e} apart{' (a near tie)' * near}")
        status, echo = server.post("/v1/completions", {
            "model": MODEL.name, "prompt": sent, "echo": True, "logprobs": 1, "max_tokens": 0, "temperature": 0,
            "return_token_ids": True}, timeout=600)
        assert status == 200, (name, echo)
        echoed = echo["choices"][0]["logprobs"]["token_logprobs"]
        assert len(echoed) == len(sent) and echoed[0] is None, name
        want = reference.prompt_logprobs(sent) if len(sent) > 1 else []
        echo_diff = max((abs(a - b) for a, b in zip(echoed[1:], want)), default=0.0)
        worst_echo = max(worst_echo, echo_diff)
        n_echo += len(want)
        print(f"{name}: {len(sent)} prompt tokens, {same} of {N_NEW} equal, least gap "
              f"{min(gaps):.2e}, logprobs within {diff:.2e}, echo within {echo_diff:.2e}",
              flush=True)
    print(f"greedy: {n_prompts} prompts, {n_same} of {n_tokens} tokens equal, {n_near} near ties, "
          f"{n_bad} deviations; least gap {least_gap:.2e}; logprobs of new tokens within "
          f"{worst_new:.2e}, of {n_echo} prompt tokens within {worst_echo:.2e}")
    return n_bad == 0 and max(worst_new, worst_echo) < LOGPROB_LIMIT


# -- Retrieval --------------------------------------------------------------------------------


def first_number(text):
    match = re.search(r"is <(\d+)>", text) or re.search(r"\d+", text)
    return int(match[match.lastindex or 0]) if match else None


def measure_retrieval(server, count, dtype):
    least = {1024: 0.99, 2048: 0.97, 4096: 0.92}  # the card's 100, 99, 96.5 % less sampling noise
    ok = True

    def ask(record):
        status, got = server.post("/v1/completions", {
            "model": MODEL.name, "prompt": record["prompt"], "temperature": 0, "max_tokens": ANSWER_TOKENS}, timeout=600)
        assert status == 200, got
        return got["choices"][0]["text"]

    for n_tokens in (1024, 2048, 4096):
        asked = records(n_tokens, count)
        start = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            texts = list(pool.map(ask, asked))
        bins = [[0, 0] for _ in range(10)]
        wrong = []
        for i, (record, text) in enumerate(zip(asked, texts)):
            right = first_number(text) == record["expected_number"]
            bins[record["bin"]][0] += right
            bins[record["bin"]][1] += 1
            if not right:
                wrong.append(f"{i}: {first_number(text)} for {record['expected_number']}")
        share = sum(b[0] for b in bins) / count
        print(f"retrieval {dtype} {n_tokens}: {share:.2%} of {count} exact, by position "
              f"{' '.join(f'{b[0]}/{b[1]}' for b in bins)}, "
              f"{(time.monotonic() - start) / count:.2f} s a prompt; wrong: {'; '.join(wrong)}",
              flush=True)
        ok = ok and share >= least[n_tokens]
    return ok


# -- Tokenizer --------------------------------------------------------------------------------


def random_lines(count, seed):
    rng = random.Random(seed)
    sentences = [s for s in tokenizer_lines.SENTENCES if s]
    specials = ["<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end", "|>"]

    def piece():
        kind = rng.randrange(9)
        if kind < 3:
            s = rng.choice(sentences)
            at = rng.randrange(len(s))
            return s[at : at + rng.randrange(1, 60)]
        if kind == 3:
            return "".join(chr(rng.choice((rng.randrange(32, 127), rng.randrange(1, 0x2000))))
                           for _ in range(rng.randrange(1, 30)))
        if kind == 4:
            points = (rng.randrange(1, 0x110000) for _ in range(rng.randrange(1, 12)))
            return "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)
        if kind == 5:
            return rng.choice((" ", "\n", "\t", "\r\n", "\u00a0", "\u3000")) * rng.randrange(1, 40)
        if kind == 6:
            return rng.choice(specials)
        if kind == 7:
            return str(rng.randrange(10 ** rng.randrange(1, 15)))
        return "".join(rng.choice("etaoin shrdlu'-") for _ in range(rng.randrange(1, 80)))

    return ["".join(piece() for _ in range(rng.randrange(0, 12))) for _ in range(count)]


def measure_tokenize(count):
    path = str(MODEL / "tokenizer.json")
    lines = random_lines(count, seed=7)
    raw = tokenizers.Tokenizer.from_file(path)
    n_bad = n_ids = 0
    for flags, special in (([], True), (["--no-special"], False)):
        out = subprocess.run(
            [daemon.SPAND, "tokenize", "--tokenizer", path, *flags], check=True, encoding="utf-8",
            input="".join(json.dumps(line) + "\n" for line in lines), stdout=subprocess.PIPE)
        got = [json.loads(line) for line in out.stdout.splitlines()]
        assert len(got) == count, len(got)
        for line, ids in zip(lines, got):
            want = raw.encode(line, add_special_tokens=special).ids
            n_ids += len(want)
            if ids != want:
                n_bad += 1
                print(f"tokenize differs on {line!r}: {ids[:20]} and {want[:20]}")
    print(f"tokenize: {2 * count - n_bad} of {2 * count} lines equal ({count} with and without "
          f"special tokens), {n_ids} ids")
    return n_bad == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="tokenize,greedy,retrieval", help="parts, with commas")
    parser.add_argument("--retrieval", type=int, default=40, help="records a length")
    parser.add_argument("--dtype", default="bf16", help="of the retrieval part")
    parser.add_argument("--lines", type=int, default=2000, help="of the tokenize part")
    args = parser.parse_args()
    parts = args.only.split(",")
    torch.set_num_threads(1)  # the model is small: more threads mostly wait for each other
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, tokenizers "
          f"{tokenizers.__version__}")
    ok = True
    if "tokenize" in parts:
        ok = measure_tokenize(args.lines) and ok
    if "greedy" in parts:
        with serving("f32") as server:
            ok = measure_greedy(server) and ok
    if "retrieval" in parts:
        with serving(args.dtype) as server:
            ok = measure_retrieval(server, args.retrieval, args.dtype) and ok
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())

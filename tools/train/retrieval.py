"""Synthetic long-range retrieval records in the "lines" form of LongEval.

A record is a list of lines `line ADJECTIVE-NOUN: REGISTER_CONTENT is <NUMBER>`, and the question
asks for the number of one line. Nothing but looking it up can answer, so the exact rate over
record lengths and positions tells whether attention reaches that far.

The module serves both sides. The trainer calls make_rows() for token rows with many questions each.
The evaluation calls heldout_prompts() for texts with one question each. The two share no key: a
word belongs to one side by a hash of its letters, and both words of a key come from one side.

As a script it prints held-out prompts, one JSON object a line, or writes the held-out word list.
"""

import argparse
import hashlib
import json
import pathlib
import re

import numpy as np
from tokenizers import Tokenizer

# The wording of LongEval, to the letter: a model must know this form to be asked in it.
PREAMBLE = (
    "Below is a record of lines I want you to remember. Each line begins with 'line <line index>' "
    "and contains a '<REGISTER_CONTENT>' at the end of the line as a numerical value. For each "
    "line index, memorize its corresponding <REGISTER_CONTENT>. At the end of the record, I will "
    "ask you to retrieve the corresponding <REGISTER_CONTENT> of a certain line index. "
    "Now the record start:\n\n"
)
OVER = "\nNow the record is over. "
ASK = ("Tell me what is the <REGISTER_CONTENT> in line", "? I need the number.")
ASK_OTHERWISE = [
    ("What is the <REGISTER_CONTENT> in line", "?"),
    ("What number is in line", "?"),
    ("Please look up line", "."),
]
REPLY = ("The <REGISTER_CONTENT> in line", " is <")
MAX_VALUE = 50000

# What the trainer does with the prediction of a token.
CODE_NONE, CODE_WORDS, CODE_VALUE, CODE_STOP = 0, 1, 2, 3

HELDOUT_SHARE = 0.1
LINE_TOKENS_MIN = 16  # Shorter lines do not occur; it bounds how many are drawn in advance.


def is_heldout(word):
    digest = hashlib.blake2b(b"record key " + word.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < HELDOUT_SHARE * 2**32


def split_words(words, heldout):
    """The adjectives and nouns of one side."""
    return (
        [w for w in words["adjectives"] if is_heldout(w) == heldout],
        [w for w in words["nouns"] if is_heldout(w) == heldout],
    )


class Pieces:
    """Encodes text piece by piece, and remembers pieces.

    The pre-tokenizer cuts at the borders of words, digits and punctuation, so a record cut at the
    same borders has the same tokens as the whole text; check_pieces() verifies that.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.known = {}

    def __call__(self, text):
        ids = self.known.get(text)
        if ids is None:
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids
            self.known[text] = ids
        return ids


class RecordMaker:
    """Builds training rows. One maker per process; rows depend on the generator given alone.

    hard_values is the share of records whose numbers share their first digits. Among random numbers
    few do, and a model gets away with looking up the first digits by the key and then continuing
    from wherever those digits stood; in a record of 180 lines that is wrong once in thirty times.
    """

    def __init__(self, tokenizer, words, hard_values=0.0):
        self.hard_values = hard_values
        self.pieces = Pieces(tokenizer)
        self.eos = tokenizer.token_to_id("<|endoftext|>")
        adjectives, nouns = split_words(words, heldout=False)
        encode = self.pieces
        self.adjectives = [encode(" " + w) for w in adjectives]
        self.nouns = [encode(w) for w in nouns]
        self.short_adjectives = [ids for ids in self.adjectives if len(ids) <= 2]
        self.short_nouns = [ids for ids in self.nouns if len(ids) <= 2]
        self.digits = [encode(str(d))[0] for d in range(10)]
        self.dash = encode("-")
        self.line = encode("line")
        self.is_value = encode(": REGISTER_CONTENT is <")
        self.line_end = encode(">\n")
        self.preamble = encode(PREAMBLE[:-1]) + encode("\n")  # Before a word, each break is alone.
        self.reply_end = encode(">.")

    def words_for(self, rng):
        """Which words a record may use.

        Half of the records have keys of few tokens, which are the easier ones to begin with. Some
        have so few different words that neither word alone tells the lines apart.
        """
        kind = rng.random()
        if kind < 0.45:
            return self.short_adjectives, self.short_nouns
        if kind < 0.85:
            return self.adjectives, self.nouns
        few = [
            [source[i] for i in rng.integers(len(source), size=24)]
            for source in (self.adjectives, self.nouns)
        ]
        return few[0], few[1]

    def values_for(self, rng, n):
        if not self.hard_values or rng.random() >= self.hard_values:
            return rng.integers(1, MAX_VALUE + 1, size=n)
        tail = 10 ** int(rng.integers(1, 3))
        stems = rng.integers(1, MAX_VALUE // tail, size=max(2, n // int(rng.integers(2, 8))))
        values = rng.choice(stems, size=n) * tail + rng.integers(tail, size=n)
        # Some numbers are the beginning of others, so that the closing bracket is in question too.
        return np.where(rng.random(n) < 0.1, values // 10 + 1, values)

    def row(self, rng, n_tokens):
        """One row: ids and codes, both of n_tokens; a code belongs to the token at its place."""
        short = n_tokens < 512
        # The preamble would fill a short row; there, the plainest forms teach to look up at all.
        form = rng.choice(4, p=(0.5, 0.5, 0, 0) if short else (0.12, 0.13, 0.4, 0.35))
        repeat, bare, raw, chat = (form == i for i in range(4))
        encode = self.pieces
        adjectives, nouns = self.words_for(rng)

        ids = [self.eos]
        if chat:
            ids += encode("<|user|>") + encode("\n")
        if raw or chat:
            ids += self.preamble
        share = rng.uniform(0.3, 0.6) if short else rng.uniform(0.06, 0.4)
        lines_end = n_tokens - int(share * (n_tokens - len(ids)))
        n_max = n_tokens // LINE_TOKENS_MIN
        firsts = rng.integers(len(adjectives), size=n_max).tolist()
        seconds = rng.integers(len(nouns), size=n_max).tolist()
        values = self.values_for(rng, n_max).tolist()
        lines, seen = [], set()
        for first, second, value in zip(firsts, seconds, values):
            if (first, second) in seen:
                continue
            seen.add((first, second))
            key = adjectives[first] + self.dash + nouns[second]
            number = [self.digits[int(d)] for d in str(value)]
            line = self.line + key + self.is_value + number + self.line_end
            if len(ids) + len(line) > lines_end and lines:
                break
            ids += line
            lines.append((key, number))
        codes = [CODE_NONE] * len(ids)

        for turn, which in enumerate(rng.permutation(len(lines)).tolist()):
            key, number = lines[which]
            if repeat:
                ask = (encode("\n") if turn == 0 else []) + self.line + key + self.is_value
                answer = [
                    (number, CODE_VALUE),
                    (self.line_end[:1], CODE_VALUE),
                    (self.line_end[1:], CODE_NONE),
                ]
            else:
                ask, answer = self.exchange(rng, key, number, turn, chat)
            size = len(ask) + sum(len(part) for part, _ in answer)
            if len(ids) + size > n_tokens:
                break
            ids += ask
            codes += [CODE_NONE] * len(ask)
            for part, code in answer:
                ids += part
                codes += [code] * len(part)

        pad = n_tokens - len(ids)
        if pad < 0:  # Only a row too short for one line and one question.
            return ids[:n_tokens], codes[:n_tokens]
        return ids + [self.eos] * pad, codes + [CODE_NONE] * pad

    def exchange(self, rng, key, number, turn, chat):
        """A question in words and its answer."""
        encode = self.pieces
        before, after = (
            ASK if rng.random() < 0.8 else ASK_OTHERWISE[rng.integers(len(ASK_OTHERWISE))]
        )
        ask = []
        if turn == 0:
            ask += encode(OVER.rstrip(" "))
            ask += encode(" " + before)
        elif chat:
            ask += encode("<|user|>") + encode("\n") + encode(before)
        else:
            ask += encode("\n") + encode(before)
        ask += key + encode(after)
        if chat:
            ask += encode("<|end|>") + encode("\n") + encode("<|assistant|>") + encode("\n")
        answer = [
            (encode(REPLY[0] if chat else " " + REPLY[0]) + key + encode(REPLY[1]), CODE_WORDS),
            (number + self.reply_end, CODE_VALUE),
        ]
        if chat:
            answer += [(encode("<|end|>"), CODE_WORDS), (encode("\n"), CODE_NONE)]
        else:
            # Where more questions follow, the end of the answer still is where to stop: the code
            # asks the trainer to expect the end of text in place of what the row has here.
            answer += [(encode("\n"), CODE_STOP)]
        return ask, answer

    def make_rows(self, rng, n_rows, n_tokens):
        ids = np.zeros((n_rows, n_tokens), dtype=np.uint16)
        codes = np.zeros((n_rows, n_tokens), dtype=np.uint8)
        for i in range(n_rows):
            ids[i], codes[i] = self.row(rng, n_tokens)
        return ids, codes


def record_prompt(lines, key):
    body = "".join(f"line {k}: REGISTER_CONTENT is <{v}>\n" for k, v in lines)
    return PREAMBLE + body + OVER + ASK[0] + " " + key + ASK[1]


def heldout_prompts(tokenizer, words, n_tokens, n_prompts=200, n_bins=10, seed=1):
    """Prompts that fill n_tokens with the answer counted in; target lines spread over the bins."""
    adjectives, nouns = split_words(words, heldout=True)
    rng = np.random.default_rng([seed, n_tokens])
    count = Pieces(tokenizer)
    reserve = 44  # The answer repeats the key: at most 6 + 6 tokens beside some 20 of its own.
    fixed = 1 + len(count(PREAMBLE)) + len(count(OVER)) + len(count(ASK[0])) + len(count(ASK[1]))
    for i in range(n_prompts):
        lines, seen, used = [], set(), fixed + 12 + reserve
        while True:
            adjective = adjectives[rng.integers(len(adjectives))]
            noun = nouns[rng.integers(len(nouns))]
            key, value = f"{adjective}-{noun}", int(rng.integers(1, MAX_VALUE + 1))
            if key in seen:
                continue
            used += (
                len(count("line"))
                + len(count(" " + adjective))
                + len(count("-"))
                + len(count(noun))
                + len(count(": REGISTER_CONTENT is <"))
                + len(str(value))
                + len(count(">\n"))
            )
            if used > n_tokens:
                break
            seen.add(key)
            lines.append((key, value))
        bin_idx = i % n_bins
        target = int((bin_idx + rng.random()) * len(lines) / n_bins)
        key, value = lines[target]
        yield {
            "length": n_tokens,
            "bin": bin_idx,
            "line": target,
            "n_lines": len(lines),
            "key": key,
            "expected_number": value,
            "prompt": record_prompt(lines, key),
        }


def first_number(text):
    """The number of an answer: behind "is <" where the answer has the trained form."""
    match = re.search(r"is <(\d+)>", text) or re.search(r"\d+", text)
    return int(match[match.lastindex or 0]) if match else None


def check_pieces(tokenizer, words):
    """Fails unless rows made of pieces have the tokens of their text."""
    maker = RecordMaker(tokenizer, words)
    rng = np.random.default_rng(0)
    for n_tokens in (256, 1024, 4096):
        for _ in range(20):
            ids, _ = maker.row(rng, n_tokens)
            while ids[-1] == maker.eos:
                ids.pop()
            text = tokenizer.decode(ids, skip_special_tokens=False)
            assert tokenizer.encode(text, add_special_tokens=False).ids == ids, text[-300:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True, help="tokenizer.json")
    parser.add_argument(
        "--words",
        type=pathlib.Path,
        required=True,
        help="words.json of the corpus, or the held-out part of it",
    )
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--write-heldout-words",
        type=pathlib.Path,
        help="write the held-out words there instead of prompts",
    )
    parser.add_argument("--check", action="store_true", help="compare pieces with whole texts")
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    words = json.loads(args.words.read_text())
    if args.check:
        check_pieces(tokenizer, words)
    elif args.write_heldout_words:
        adjectives, nouns = split_words(words, heldout=True)
        args.write_heldout_words.write_text(
            json.dumps({"adjectives": adjectives, "nouns": nouns}) + "\n"
        )
    else:
        for prompt in heldout_prompts(tokenizer, words, args.length, args.count, seed=args.seed):
            print(json.dumps(prompt))


if __name__ == "__main__":
    main()

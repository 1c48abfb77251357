"""What train_block.py measures on held-out tokens: loss, cloze and repetition, the same for both.

Everything comes from one pass with the true tokens before every prediction. A cloze is a word: it
counts as found if each of its tokens is the likeliest where it stands. Words that stood earlier in
the same row can be looked up there, others cannot, so the two are told apart. A row that says the
same passage twice shows how much of the first time reaches the second; the passages differ in
whether the repetition falls on the same places of a block.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

MIN_LETTERS = 4
CLOZE_FROM = 256  # Tokens of a row that come before the first word asked for.
MAX_REPEATED = 256  # Tokens; a row must hold the passage twice.
MAX_REPEATS = 256


def token_bytes(tokenizer):
    """Bytes of every token, as byte-level BPE spells them; end-of-text has none."""
    spelt = [b for b in range(256) if chr(b).isprintable() and b not in (32, 160, 173)]
    names = {chr(b): b for b in spelt}
    names |= {chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in spelt)}
    vocab = {i: t for t, i in tokenizer.get_vocab().items()}
    return [b""] + [bytes(names[c] for c in vocab[i]) for i in range(1, len(vocab))]


def find_words(row, pieces):
    """(first, end) of the words in a row: a space and letters, up to where the letters end."""
    starts = np.array([p[:1] == b" " and p[1:].isalpha() for p in pieces])[row]
    goes_on = np.array([p.isalpha() for p in pieces])[row]
    words = []
    for first in np.flatnonzero(starts):
        end = first + 1
        while end < len(row) and goes_on[end]:
            end += 1
        # The word is whole only if what follows begins with something else.
        follows = pieces[row[end]][:1] if end < len(row) else b"a"
        n_letters = sum(len(pieces[t]) for t in row[first:end]) - 1
        if n_letters >= MIN_LETTERS and not follows.isalpha():
            words.append((first, end))
    return words


def cloze(rows, hits, pieces):
    """Share of words found, among those seen earlier in their row and among the others."""
    asked, found = [0, 0], [0, 0]
    for row, hit in zip(rows, hits):
        seen = set()
        for first, end in find_words(row, pieces):
            word = tuple(row[first:end])
            if first >= CLOZE_FROM:
                asked[word in seen] += 1
                found[word in seen] += bool(hit[first:end].all())
            seen.add(word)
    return {
        "new_words": asked[0],
        "new_found": round(found[0] / max(1, asked[0]), 4),
        "seen_words": asked[1],
        "seen_found": round(found[1] / max(1, asked[1]), 4),
        "found": round(sum(found) / max(1, sum(asked)), 4),
    }


@torch.no_grad()
def losses_and_hits(model, rows, device, batch=64):
    """rows [n, row_len] to nats and whether the likeliest token was right, of every token."""
    losses, hits = [], []
    for first in range(0, len(rows), batch):
        ids = torch.from_numpy(rows[first : first + batch].astype(np.int64)).to(device)
        logits = F.linear(model.predicting(ids), model.embed).float()
        targets = ids.reshape(-1)
        loss = F.cross_entropy(logits, targets, reduction="none")
        losses.append(loss.view(ids.shape).cpu().numpy())
        hits.append((logits.argmax(-1) == targets).view(ids.shape).cpu().numpy())
    return np.concatenate(losses), np.concatenate(hits)


def repetition(model, heldout, device, row_len, shift):
    """Nats a token of a passage the first time and the second, which begins shift tokens later than
    a multiple of every block length."""
    n = min(MAX_REPEATED, row_len // 2 - 8)
    n_rows = min(MAX_REPEATS, len(heldout) // n)
    passages = heldout[: n_rows * n].reshape(n_rows, n)
    between = heldout[len(heldout) - n_rows * shift :].reshape(n_rows, shift)
    rows = np.concatenate((passages, between, passages, passages[:, : -shift % 8]), axis=1)
    losses, _ = losses_and_hits(model, rows, device)
    second = losses[:, n + shift : 2 * n + shift]
    return [round(float(losses[:, :n].mean()), 4), round(float(second.mean()), 4)]


def evaluate(model, heldout, tokenizer, device, row_len):
    """model in the precision it is to be judged in; heldout a flat array of ids."""
    pieces = token_bytes(tokenizer)
    rows = heldout[: len(heldout) // row_len * row_len].reshape(-1, row_len)
    losses, hits = losses_and_hits(model, rows, device)
    nats = float(losses.astype(np.float64).mean())
    n_bytes = int(np.array([len(p) for p in pieces])[rows].sum())
    by_place = losses.reshape(len(rows), -1, 4).mean(axis=(0, 1))
    return {
        "tokens": int(rows.size),
        "row_len": row_len,
        "nats": round(nats, 5),
        "perplexity": round(math.exp(nats), 4),
        "bits_per_byte": round(nats * rows.size / n_bytes / math.log(2), 4),
        "top1": round(float(hits.mean()), 4),
        "nats_by_place_in_4": [round(float(v), 4) for v in by_place],
        "nats_by_quarter_of_row": [
            round(float(part.mean()), 4) for part in np.array_split(losses, 4, axis=1)
        ],
        "cloze": cloze(rows, hits, pieces),
        "repeated": repetition(model, heldout, device, row_len, 0),
        "repeated_shifted": repetition(model, heldout, device, row_len, 2),
    }

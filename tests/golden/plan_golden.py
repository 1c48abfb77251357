#!/usr/bin/env python3
"""Golden vectors of whole models under plans, by a naive reference in double precision.

The reference computes dense attention over the whole text, head by head, and masks it: a prompt row
as the released kernel does (64-token blocks, from the plan's span at the final length), a generated
row as the released cache does (the first 64 tokens and the ring's last ones). Nothing is evicted,
chunked or paged, and grouped heads are computed one by one, each with its own span.

Writes plans.json: for each case the model's folder under models/, the plan, the prompt's length and
seed, what was generated greedily with its log-probabilities, and log-probabilities of prompt tokens
at some positions. Prompts follow from their seeds, see prompt_of(). Needs numpy.

    python3 tests/golden/plan_golden.py
"""

import json
import math
import os
import random
import struct

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
N_NEW = 70  # more than a block: what decode rows see changes with the block they stand in
MARGIN = 2e-3  # a case is taken only if every greedy choice wins by more
BLOCK, SINK, FLOOR = 64, 64, 128
ALPHAS = [-1024, -200, 0, 0, 0, 100, 300, 1000, 8192]
BETAS = [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1]
CASES = [  # model, prompt tokens, the optimiser's convention
    ("llama-mha", 1, False), ("llama-mha", 64, False), ("llama-mha", 333, False),
    ("llama-mha", 1100, True), ("llama-mha", 3000, False),
    ("llama-gqa-tied", 2, False), ("llama-gqa-tied", 65, False), ("llama-gqa-tied", 127, True),
    ("llama-gqa-tied", 700, False), ("llama-gqa-tied", 1500, False),
    ("llama-gqa-tied", 3000, False),
    ("llama-head128-gelu", 90, False), ("llama-head128-gelu", 777, True),  # sizes that CUDA has
    ("llama-head128-gelu", 2500, False), ("llama-head256", 400, False),
    ("neox-pythia", 333, False), ("neox-pythia", 1100, True),
]


def prompt_of(seed, n, vocab_size):
    out, x = [], seed
    for _ in range(n):
        x = (x * 1103515245 + 12345) & 0x7FFFFFFF
        out.append(3 + (x >> 8) % (vocab_size - 3))
    return out


def read_safetensors(path):
    with open(path, "rb") as f:
        data = f.read()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    out = {}
    for name, t in header.items():
        if name == "__metadata__":
            continue
        a, b = t["data_offsets"]
        raw = data[8 + size + a:8 + size + b]
        if t["dtype"] == "BF16":
            x = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            x = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2"}[t["dtype"]])
        out[name] = x.reshape(t["shape"]).astype(np.float64)
    return out


def span_of(alpha, beta, n, excludes_sink):
    """Tokens a head keeps of n: the published rounding."""
    tokens = int(min(max(alpha + n * beta, 0), n))
    if excludes_sink:
        tokens = min(tokens + SINK, n)
    return BLOCK * math.ceil(max(tokens, FLOOR) / BLOCK)


def sees(i, j, n_prompt, span):
    """May the rows i see the columns j? The row's kind follows from its position."""
    i, j, ring = i[:, None], j[None, :], span - SINK
    prompt = (j < SINK) | (j // BLOCK >= i // BLOCK - ring // BLOCK + 1)
    decode = (j < SINK) | (i - j < ring)
    return (j <= i) & np.where(i < n_prompt, prompt, decode)


class Model:
    """Rows behind rows: keys and values of all that came before are kept, dense."""

    def __init__(self, name):
        folder = os.path.join(HERE, "models", name)
        with open(os.path.join(folder, "config.json")) as f:
            self.config = json.load(f)
        self.w = read_safetensors(os.path.join(folder, "model.safetensors"))
        c = self.config
        self.n_layers = c["num_hidden_layers"]
        self.n_heads = c["num_attention_heads"]
        self.n_kv = c.get("num_key_value_heads", self.n_heads)
        self.head_dim = c.get("head_dim", c["hidden_size"] // self.n_heads)
        self.theta = c.get("rope_theta", 10000.0)

    def norm(self, x, name):
        scale = np.sqrt((x * x).mean(-1, keepdims=True) + self.config["rms_norm_eps"])
        return x / scale * self.w[name + ".weight"]

    def linear(self, x, name):
        return x @ self.w[name + ".weight"].T

    def activate(self, x):
        if self.config["hidden_act"] == "silu":
            return x / (1 + np.exp(-x))
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    def rope(self, x, pos):
        """x [rows, heads, head_dim], rotated by position: in halves, as transformers has it."""
        half = x.shape[-1] // 2
        angle = pos[:, None] * self.theta ** (-np.arange(half) / half)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def start(self, n_prompt, spans):
        self.n_prompt, self.spans, self.n = n_prompt, spans, 0
        self.k = [np.zeros((0, self.n_kv, self.head_dim)) for _ in range(self.n_layers)]
        self.v = list(self.k)

    def project(self, h, layer, pos):
        p = f"model.layers.{layer}.self_attn."
        q = self.rope(self.linear(h, p + "q_proj").reshape(len(h), self.n_heads, -1), pos)
        k = self.rope(self.linear(h, p + "k_proj").reshape(len(h), self.n_kv, -1), pos)
        return q, k, self.linear(h, p + "v_proj").reshape(len(h), self.n_kv, -1)

    def attend(self, h, layer, pos):
        q, k, v = self.project(h, layer, pos)
        self.k[layer] = np.concatenate([self.k[layer], k])
        self.v[layer] = np.concatenate([self.v[layer], v])
        out = np.empty_like(q)
        for head in range(self.n_heads):
            kv = head * self.n_kv // self.n_heads
            scores = q[:, head] @ self.k[layer][:, kv].T / math.sqrt(self.head_dim)
            mask = sees(pos, np.arange(len(self.k[layer])), self.n_prompt, self.spans[layer][head])
            scores[~mask] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, head] = weights / weights.sum(-1, keepdims=True) @ self.v[layer][:, kv]
        return self.linear(out.reshape(len(h), -1), self.attention_out % layer)

    attention_out = "model.layers.%d.self_attn.o_proj"
    outer = "model.embed_tokens", "model.norm", "lm_head"

    def layer(self, x, layer, pos):
        p = f"model.layers.{layer}."
        x = x + self.attend(self.norm(x, p + "input_layernorm"), layer, pos)
        h = self.norm(x, p + "post_attention_layernorm")
        gate, up = self.linear(h, p + "mlp.gate_proj"), self.linear(h, p + "mlp.up_proj")
        return x + self.linear(self.activate(gate) * up, p + "mlp.down_proj")

    def logprobs(self, ids):
        """The log-probabilities behind each of the next rows."""
        table, norm, head = self.outer
        x = self.w[table + ".weight"][ids]
        pos = np.arange(self.n, self.n + len(ids))
        self.n += len(ids)
        for layer in range(self.n_layers):
            x = self.layer(x, layer, pos)
        logits = self.linear(self.norm(x, norm), table if self.config["tie_word_embeddings"] else head)
        logits -= logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


class Neox(Model):
    """GPT-NeoX: biases, fused heads, partial rotation, a parallel residual."""

    attention_out = "gpt_neox.layers.%d.attention.dense"
    outer = "gpt_neox.embed_in", "gpt_neox.final_layer_norm", "embed_out"

    def __init__(self, name):
        super().__init__(name)
        self.theta = self.config["rotary_emb_base"]

    def norm(self, x, name):
        x = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((x * x).mean(-1, keepdims=True) + self.config["layer_norm_eps"])
        return x / scale * self.w[name + ".weight"] + self.w[name + ".bias"]

    def linear(self, x, name):
        return x @ self.w[name + ".weight"].T + self.w.get(name + ".bias", 0)

    def turn(self, x, pos):
        n = int(self.head_dim * self.config["rotary_pct"])
        return np.concatenate([self.rope(x[..., :n], pos), x[..., n:]], -1)

    def project(self, h, layer, pos):
        fused = self.linear(h, f"gpt_neox.layers.{layer}.attention.query_key_value")
        q, k, v = np.split(fused.reshape(len(h), self.n_heads, -1), 3, -1)
        return self.turn(q, pos), self.turn(k, pos), v

    def layer(self, x, layer, pos):
        p = f"gpt_neox.layers.{layer}."
        h = self.norm(x, p + "post_attention_layernorm")
        inner = self.activate(self.linear(h, p + "mlp.dense_h_to_4h"))
        x_out = x + self.attend(self.norm(x, p + "input_layernorm"), layer, pos)
        return x_out + self.linear(inner, p + "mlp.dense_4h_to_h")


def make_case(model, name, n_prompt, excludes_sink, seed):
    """One case, or None when a greedy choice was too close."""
    rng = random.Random(seed)
    shape = range(model.n_layers), range(model.n_heads)
    alphas = [[rng.choice(ALPHAS) for _ in shape[1]] for _ in shape[0]]
    betas = [[rng.choice(BETAS) for _ in shape[1]] for _ in shape[0]]
    n = n_prompt + N_NEW
    model.start(n_prompt, [[span_of(a, b, n, excludes_sink) for a, b in zip(ra, rb)]
                           for ra, rb in zip(alphas, betas)])
    prompt = prompt_of(seed, n_prompt, model.config["vocab_size"])
    rows = model.logprobs(prompt)
    told = sorted({p for p in range(1, n_prompt) if p % 64 in (0, 1, 63)} | {n_prompt - 1} - {0})
    told = [p for p in told if p >= 1][-60:]
    case = {"model": name, "n_prompt": n_prompt, "seed": seed, "excludes_sink": excludes_sink,
            "alphas": alphas, "betas": betas, "spans": model.spans,
            "prompt_logprobs": [[p, round(float(rows[p - 1][prompt[p]]), 6)] for p in told],
            "tokens": [], "logprobs": []}
    row = rows[-1]
    for step in range(N_NEW):
        best = np.sort(row)[-2:]
        if best[1] - best[0] < MARGIN:
            return None
        token = int(row.argmax())
        case["tokens"].append(token)
        case["logprobs"].append(round(float(row[token]), 6))
        if step + 1 < N_NEW:
            row = model.logprobs([token])[0]
    return case


def main():
    cases = []
    for at, (name, n_prompt, excludes_sink) in enumerate(CASES):
        kind = Neox if name.startswith("neox") else Model
        model, seed, case = kind(name), 1000 * at + 1, None
        while case is None:
            case = make_case(model, name, n_prompt, excludes_sink, seed)
            seed += 1
        cases.append(case)
        print(name, n_prompt, "seed", case["seed"], case["spans"], case["tokens"][:8])
    with open(os.path.join(HERE, "plans.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")


if __name__ == "__main__":
    main()

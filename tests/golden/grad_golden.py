#!/usr/bin/env python3
"""Golden vectors of the plan search's backward pass.

Runs tiny checkpoints of tests/golden/models through transformers with eager attention in double
precision, and writes tests/golden/grads/NAME.json: the mean loss over the last tokens, the
gradient with respect to each layer's input at some rows, and the influence of attention

    E = |A / (1 - A) * (sum_n g_n A_n - g)|,  g = dL/dA

summed in 64 x 64 blocks: `band` over key blocks >= 1 by the distance of row block and key block,
`sink` over key block 0 by row block. A row with a single key has |g A| instead.

    pip install -r tests/golden/model_requirements.txt
    python3 tests/golden/grad_golden.py
"""

import json
import os
import sys

import torch
import transformers

HERE = os.path.dirname(os.path.abspath(__file__))
N_TOKENS = 150
N_TARGETS = 40
BLOCK = 64
MIN_REST = 1e-4  # GRAD_MIN_REST of engine/backend_grad.h
ROWS = [0, 1, 63, 64, 100, 130, 148]

NAMES = ["llama-mha", "llama-gqa-tied", "llama-bias-sharded", "llama-head8-odd",
         "llama-head128-gelu", "llama-mqa-head24-f16", "llama-yarn-mscale", "llama-llama3",
         "llama-dynamic-prompt", "mistral-window", "ministral-mixed", "qwen2", "qwen3"]
LOG_ODDS = ["qwen2", "llama-gqa-tied"]  # whose gradient is of log((1 - p) / p)


def influence(a, g):
    """Block sums of one head: a, g [n, n]."""
    n = a.shape[0]
    n_blocks = (n + BLOCK - 1) // BLOCK
    d = (g * a).sum(-1, keepdim=True)
    e = (a / (1 - a).clamp(min=MIN_REST) * (d - g)).abs()
    single = (a > 0).sum(-1) == 1
    e[single] = (g * a).abs()[single]
    band, sink = [0.0] * n_blocks, [0.0] * n_blocks
    for i in range(n_blocks):
        for j in range(i + 1):
            s = float(e[i * BLOCK:(i + 1) * BLOCK, j * BLOCK:(j + 1) * BLOCK].sum())
            if j == 0:
                sink[i] += s
            else:
                band[i - j] += s
    return band, sink


def make(name, generator):
    folder = os.path.join(HERE, "models", name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager").double().eval()
    vocab = model.config.vocab_size
    tokens = torch.randint(3, vocab, (N_TOKENS,), generator=generator).tolist()
    inputs = {}

    def keep(index):
        def hook(module, args, kwargs):
            x = args[0] if args else kwargs["hidden_states"]
            if not x.requires_grad:
                x.requires_grad_(True)
            x.retain_grad()
            inputs[index] = x
        return hook

    for i, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(keep(i), with_kwargs=True)
    for p in model.parameters():
        p.requires_grad_(False)
    out = model(input_ids=torch.tensor([tokens]), output_attentions=True, use_cache=False)
    for a in out.attentions:
        a.retain_grad()
    first = N_TOKENS - 1 - N_TARGETS
    logp = torch.log_softmax(out.logits[0, first:-1].double(), -1)
    logp = logp[torch.arange(N_TARGETS), torch.tensor(tokens[first + 1:])]
    loss = -logp.mean()
    odds = name in LOG_ODDS
    (loss if not odds else (torch.log1p(-logp.exp()) - logp).mean()).backward()
    bands, sinks = [], []
    for a in out.attentions:
        pairs = [influence(a.detach()[0, h].double(), a.grad[0, h].double())
                 for h in range(a.shape[1])]
        bands.append([p[0] for p in pairs])
        sinks.append([p[1] for p in pairs])

    def short(value):
        if isinstance(value, list):
            return [short(v) for v in value]
        return float(f"{value:.9g}")

    dx = [[inputs[i].grad[0, r].tolist() for r in ROWS] for i in range(len(inputs))]
    os.makedirs(os.path.join(HERE, "grads"), exist_ok=True)
    with open(os.path.join(HERE, "grads", name + ".json"), "w") as f:
        json.dump({"transformers": transformers.__version__, "tokens": tokens,
                   "first_target": first, "log_odds": odds, "loss": float(loss.detach()), "rows": ROWS,
                   "dx": short(dx), "band": short(bands), "sink": short(sinks)}, f,
                  separators=(",", ":"))
        f.write("\n")
    print(f"{name:24} loss {float(loss.detach()):.4f} |dx| {float(inputs[0].grad.norm()):.4g}",
          flush=True)


def main():
    with open(os.path.join(HERE, "model_requirements.txt")) as f:
        pins = dict(line.strip().split("==") for line in f if "==" in line)
    if transformers.__version__ != pins["transformers"]:
        sys.exit(f"transformers is {transformers.__version__}, want {pins['transformers']}")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    generator = torch.Generator().manual_seed(5)
    for name in NAMES:
        make(name, generator)


if __name__ == "__main__":
    main()

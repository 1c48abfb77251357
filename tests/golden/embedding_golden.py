#!/usr/bin/env python3
"""Golden embeddings: what transformers' hidden states behind the last norm come to.

For every folder that model_golden.py made, over the first 1, 2, 3 ... tokens of its prompt that
LENGTHS names: the mean of last_hidden_state and its last row, in fp32 with eager attention.

    hidden.f32    little-endian f32 [n_lengths, 2, dim], mean before last

    pip install -r tests/golden/model_requirements.txt
    python3 tests/golden/embedding_golden.py
"""

import glob
import json
import os

import numpy as np
import torch
import transformers

HERE = os.path.dirname(os.path.abspath(__file__))
LENGTHS = [1, 7, 0]  # 0: the whole prompt; tests/engine/test_engine_embed.c has the same


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for folder in sorted(glob.glob(os.path.join(HERE, "models", "*", ""))):
        with open(os.path.join(folder, "golden.json")) as f:
            prompt = json.load(f)["prompt"]
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager").eval()
        rows = []
        for n in LENGTHS:
            with torch.no_grad():
                ids = torch.tensor([prompt[:n] if n else prompt])
                hidden = model.base_model(input_ids=ids).last_hidden_state[0]
            rows += [hidden.double().mean(0).numpy(), hidden[-1].double().numpy()]
        np.stack(rows).astype("<f4").tofile(os.path.join(folder, "hidden.f32"))
        print(os.path.basename(folder.rstrip("/")), rows[0].shape[0])


if __name__ == "__main__":
    main()

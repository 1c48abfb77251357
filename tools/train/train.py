"""Trains the demo model on text and retrieval records, half of the rows each.

A run has a budget of minutes, not of steps: the learning rate is constant for a share of the time
and then falls in a line to its last value at the end. It can be stopped at any moment; the same
command line goes on from OUT/checkpoint.pt, with its clock, curriculum and random numbers.

The curriculum goes by loss. A model that cannot yet look up a line among ten learns nothing from a
record of two hundred, so rows become longer only when the loss on the numbers has fallen at the
length at hand. Time limits stand behind that, lest a run end without having seen long rows.

A second, short run from an exported model (--from-model, with --mix in place of the curriculum)
mends what the first one left.
"""

import argparse
import contextlib
import json
import math
import multiprocessing
import pathlib
import queue
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer

import retrieval
from model import DemoLlama, Shape, load_hf_tensors

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
# A stage: the share of steps at each length, the loss on the numbers at its main length that ends
# it, and the share of the run's time after which it ends anyway. Shorter rows stay in the mix, as
# they are what most prompts are.
STAGES = [
    ({256: 1.0}, 0.06, 0.22),
    ({512: 0.8, 256: 0.2}, 0.06, 0.28),
    ({1024: 0.8, 512: 0.2}, 0.06, 0.36),
    ({2048: 0.7, 1024: 0.2, 512: 0.1}, 0.06, 0.50),
    ({4096: 0.7, 2048: 0.2, 1024: 0.1}, 0.03, 0.72),
    ({8192: 0.2, 4096: 0.5, 2048: 0.2, 1024: 0.1}, 0.0, 1.0),
]
LAST_RATE = 0.03
WORDS_WEIGHT = 0.25  # Of an answer's words, whose copying is easier than finding the number.
EMA = 0.9


class TextRows:
    """Windows of the encoded corpus, drawn on the device. Every row starts with end-of-text."""

    def __init__(self, folder, device):
        index = json.loads((folder / "index.json").read_text())["sources"]
        tokens = np.fromfile(folder / "tokens.bin", dtype=np.uint16)
        self.tokens = torch.from_numpy(tokens.astype(np.int32)).to(device)
        sizes = torch.tensor([s["end"] - s["start"] for s in index], dtype=torch.float64)
        weights = sizes * torch.tensor([s["weight"] for s in index], dtype=torch.float64)
        self.starts = torch.tensor([s["start"] for s in index], device=device)
        self.sizes = torch.tensor([s["end"] - s["start"] for s in index], device=device)
        self.weights = (weights / weights.sum()).float().to(device)

    def draw(self, generator, n_rows, row_len):
        device = self.tokens.device
        source = torch.multinomial(self.weights, n_rows, replacement=True, generator=generator)
        where = torch.rand(n_rows, device=device, generator=generator, dtype=torch.float64)
        # A window may run from one source into the next, where a source is shorter than a row.
        first = self.starts[source] + (where * self.sizes[source]).long()
        first = first.clamp(max=len(self.tokens) - row_len - 1)
        rows = self.tokens[first[:, None] + torch.arange(row_len, device=device)].long()
        rows[:, 0] = 0
        return rows


def record_worker(worker, first_step, args, stage, words, out):
    """Makes the record rows of the steps that fall to this worker, in their order."""
    maker = retrieval.RecordMaker(Tokenizer.from_file(str(args.tokenizer)), words, args.hard_values)
    step = first_step + (worker - first_step) % args.workers
    n_tokens = args.step_tokens // 2
    while True:
        rng = np.random.default_rng([args.seed, step])
        mix = args.mix or STAGES[stage.value][0]
        row_len = min(int(rng.choice(list(mix), p=list(mix.values()))), n_tokens)
        # One token more than a row has, because the last place predicts it.
        out.put((step, *maker.make_rows(rng, n_tokens // row_len, row_len + 1)))
        step += args.workers


class Records:
    def __init__(self, args, first_step, stage_idx):
        # Workers are forked before CUDA starts, and never touch it.
        context = multiprocessing.get_context("fork")
        self.stage = context.Value("i", stage_idx)
        words = json.loads((args.data / "words.json").read_text())
        self.queues = [context.Queue(maxsize=4) for _ in range(args.workers)]
        self.processes = [
            context.Process(
                target=record_worker,
                daemon=True,
                args=(i, first_step, args, self.stage, words, self.queues[i]),
            )
            for i in range(args.workers)
        ]
        for process in self.processes:
            process.start()

    def take(self, step):
        made, ids, codes = self.queues[step % len(self.queues)].get(timeout=120)
        assert made == step
        return ids, codes

    def close(self):
        for process in self.processes:
            process.terminate()


def choose_attention(shape, step_tokens):
    """Times the two attention kernels that a GPU offers at a long row, and leaves the faster on."""

    def switch(name):
        torch.backends.cuda.enable_flash_sdp(name == "flash")
        torch.backends.cuda.enable_cudnn_sdp(name == "cudnn")

    row_len, times = 4096, {}
    for name in ("flash", "cudnn"):
        switch(name)
        try:
            q, k, v = (
                torch.randn(
                    step_tokens // row_len,
                    row_len,
                    n,
                    shape.head_dim,
                    device="cuda",
                    dtype=torch.bfloat16,
                    requires_grad=True,
                ).transpose(1, 2)
                for n in (shape.n_heads, shape.n_kv_heads, shape.n_kv_heads)
            )
            for i in range(8):
                if i == 3:  # The first rounds build and load things.
                    torch.cuda.synchronize()
                    started = time.monotonic()
                out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
                out.sum().backward()
            torch.cuda.synchronize()
            times[name] = (time.monotonic() - started) / 5 * 1e3
        except RuntimeError as error:
            print(f"no {name} attention: {error}", flush=True)
    best = min(times, key=times.get)
    switch(best)
    print(
        "attention, ms a layer: " + ", ".join(f"{n} {t:.2f}" for n, t in times.items()), flush=True
    )


def read_model(folder):
    tensors = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(shard)
    return tensors


def text_loss(hidden, embed, targets):
    return F.cross_entropy(F.linear(hidden, embed).float(), targets)


def learning_rate(args, step, done):
    rate = args.rate * min(1.0, (step + 1) / args.warmup)
    if done > args.decay_from:
        rate *= max(0.0, 1 - (1 - LAST_RATE) * (done - args.decay_from) / (1 - args.decay_from))
    return rate


def parse_mix(text):
    """ "512:0.5,1024:0.5" to {512: 0.5, 1024: 0.5}."""
    return {int(n): float(share) for n, share in (part.split(":") for part in text.split(","))}


class Trainer:
    def __init__(self, args):
        self.args = args
        self.step = 0
        self.elapsed = 0.0
        self.n_tokens = 0
        self.stage_idx = 0
        self.stage_log = []
        saved = None
        self.checkpoint = args.out / "checkpoint.pt"
        if self.checkpoint.exists():
            saved = torch.load(self.checkpoint, map_location="cpu", weights_only=False)
            for name in ("step", "elapsed", "n_tokens", "stage_idx", "stage_log"):
                setattr(self, name, saved[name])
        self.records = Records(args, self.step, self.stage_idx)

        self.device = args.device
        on_gpu = self.device.startswith("cuda")
        torch.manual_seed(args.seed)
        torch.set_float32_matmul_precision("high")
        if on_gpu:
            choose_attention(args.shape, args.step_tokens)
        self.model = DemoLlama(args.shape, compiled=on_gpu and not args.no_compile).to(self.device)
        self.text_loss = (
            torch.compile(text_loss, dynamic=False) if on_gpu and not args.no_compile else text_loss
        )
        if args.from_model and not saved:
            load_hf_tensors(self.model, read_model(args.from_model))
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.ndim == 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
            lr=args.rate,
            betas=(0.9, 0.95),
            fused=on_gpu,
        )
        # Running losses live on the device; -1 says that nothing was seen yet.
        self.value_ema = torch.full((len(LENGTHS),), -1.0, device=self.device)
        self.text_ema = torch.full((1,), -1.0, device=self.device)
        if saved:
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.value_ema.copy_(saved["value_ema"])
            self.text_ema.copy_(saved["text_ema"])
        self.text = TextRows(args.data, self.device)
        self.generator = torch.Generator(device=self.device)
        self.autocast = (
            torch.autocast("cuda" if on_gpu else "cpu", torch.bfloat16)
            if on_gpu or args.cpu_bf16
            else contextlib.nullcontext()
        )
        self.log = open(args.out / "log.jsonl", "a")

    def save(self):
        # The random numbers of a step come from the seed and the step, so they need no saving.
        state = {
            name: getattr(self, name)
            for name in ("step", "elapsed", "n_tokens", "stage_idx", "stage_log")
        }
        state |= {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "value_ema": self.value_ema,
            "text_ema": self.text_ema,
            "shape": self.args.shape.as_dict(),
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def follow(self, ema, at, value):
        old = ema[at]
        ema[at] = torch.where(old < 0, value, EMA * old + (1 - EMA) * value)

    def one_step(self, done):
        ids, codes = self.records.take(self.step)
        n_rows, row_len = ids.shape[0], ids.shape[1] - 1
        # Only answers are predicted, so only their places go through the vocabulary.
        places = np.flatnonzero(codes[:, 1:].reshape(-1))
        place_codes = codes[:, 1:].reshape(-1)[places]
        targets = ids[:, 1:].reshape(-1)[places].astype(np.int64)
        targets[place_codes == retrieval.CODE_STOP] = 0
        weights = np.where(place_codes == retrieval.CODE_VALUE, 1.0, WORDS_WEIGHT)

        def to_device(array):
            tensor = torch.from_numpy(array)
            if self.device.startswith("cuda"):
                return tensor.pin_memory().to(self.device, non_blocking=True)
            return tensor

        record_ids = to_device(ids[:, :-1].astype(np.int64))
        places, targets = to_device(places), to_device(targets)
        weights = to_device(weights.astype(np.float32))
        self.generator.manual_seed(self.args.seed * 1_000_003 + self.step)
        text = self.text.draw(self.generator, n_rows, row_len + 1)

        rate = learning_rate(self.args, self.step, done)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with self.autocast:
            hidden = self.model.hidden(torch.cat((text[:, :-1], record_ids)))
            on_text, on_records = hidden.chunk(2)
            loss_text = self.text_loss(on_text, self.model.embed, text[:, 1:].reshape(-1))
            logits = F.linear(on_records.index_select(0, places), self.model.embed).float()
        losses = F.cross_entropy(logits, targets, reduction="none")
        loss_records = (losses * weights).sum() / weights.sum()
        (loss_text + loss_records).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

        is_value = weights == 1.0
        value = (losses.detach() * is_value).sum() / is_value.sum()
        if row_len in LENGTHS:
            self.follow(self.value_ema, LENGTHS.index(row_len), value)
        self.follow(self.text_ema, 0, loss_text.detach())
        self.step += 1
        self.n_tokens += 2 * n_rows * row_len
        return rate

    def maybe_next_stage(self, value_ema, done):
        mix, target, limit = STAGES[self.stage_idx]
        main = max(mix, key=mix.get)
        loss = value_ema[LENGTHS.index(main)]
        if (
            not self.args.mix
            and self.stage_idx + 1 < len(STAGES)
            and (0 <= loss < target or done > limit)
        ):
            entry = {
                "stage": self.stage_idx,
                "length": main,
                "value_loss": round(loss, 4),
                "seconds": round(self.elapsed, 1),
                "tokens": self.n_tokens,
                "by": "loss" if 0 <= loss < target else "time",
            }
            self.stage_log.append(entry)
            print(json.dumps(entry), flush=True)
            self.stage_idx += 1
            self.records.stage.value = self.stage_idx

    def run(self):
        args = self.args
        budget = args.minutes * 60
        print(
            f"{self.model.n_params():,} parameters, {args.step_tokens} tokens a step, "
            f"from step {self.step}",
            flush=True,
        )
        last = saved_at = time.monotonic()
        last_tokens = self.n_tokens
        n_unlogged = 0
        while self.elapsed < budget and (not args.steps or self.step < args.steps):
            rate = self.one_step(self.elapsed / budget)
            n_unlogged += 1
            if n_unlogged < args.log_every:
                now = time.monotonic()
                self.elapsed += now - last
                last = now
                continue
            n_unlogged = 0
            # Reading the losses waits for the device, so that the clock is right here.
            value_ema = self.value_ema.tolist()
            text_ema = self.text_ema.item()
            now = time.monotonic()
            self.elapsed += now - last
            last = now
            entry = {
                "step": self.step,
                "seconds": round(self.elapsed, 1),
                "tokens": self.n_tokens,
                "stage": self.stage_idx,
                "rate": round(rate, 6),
                "text_loss": round(text_ema, 4),
                "value_loss": {str(n): round(v, 4) for n, v in zip(LENGTHS, value_ema) if v >= 0},
            }
            self.log.write(json.dumps(entry) + "\n")
            self.log.flush()
            if self.step % (args.log_every * args.print_every) == 0:
                speed = (self.n_tokens - last_tokens) / max(now - saved_at, 1e-9)
                print(
                    f"step {self.step}  {self.elapsed:.0f} s, {max(0, budget - self.elapsed):.0f} "
                    f"left  stage {self.stage_idx}  text {text_ema:.3f}  value "
                    + " ".join(f"{n}:{v:.3f}" for n, v in zip(LENGTHS, value_ema) if v >= 0)
                    + f"  {self.n_tokens / 1e6:.0f} M tokens, {speed / 1e6:.2f} M/s",
                    flush=True,
                )
            if math.isnan(text_ema):
                raise SystemExit("the loss is not a number; the last checkpoint is kept")
            self.maybe_next_stage(value_ema, self.elapsed / budget)
            if now - saved_at > args.save_every:
                self.save()
                saved_at, last_tokens = time.monotonic(), self.n_tokens
        self.save()
        self.records.close()
        print(
            json.dumps(
                {
                    "done": self.elapsed >= budget,
                    "step": self.step,
                    "tokens": self.n_tokens,
                    "stages": self.stage_log,
                }
            ),
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data",
        type=pathlib.Path,
        required=True,
        help="folder with tokens.bin, index.json and words.json",
    )
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=float, default=13.0, help="length of the whole run")
    parser.add_argument("--steps", type=int, default=0, help="stop at this step; 0: by time only")
    parser.add_argument("--step-tokens", type=int, default=131072)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--warmup", type=int, default=150, help="steps")
    parser.add_argument("--decay-from", type=float, default=0.62, help="share of the time")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--from-model", type=pathlib.Path, help="exported model to start from")
    parser.add_argument("--mix", type=parse_mix, help="row lengths and shares, for no curriculum")
    parser.add_argument(
        "--hard-values",
        type=float,
        default=0.3,
        help="share of records whose numbers share their first digits",
    )
    parser.add_argument("--cpu-bf16", action="store_true", help="bf16 matrix products on a CPU")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--log-every", type=int, default=10, help="steps")
    parser.add_argument("--print-every", type=int, default=10, help="logged steps")
    parser.add_argument("--save-every", type=float, default=60, help="seconds")
    parser.add_argument("--tiny", action="store_true", help="a toy shape, to try the pipeline")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    args.shape = (
        Shape(dim=64, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=32, ffn_dim=128)
        if args.tiny
        else Shape()
    )
    try:
        Trainer(args).run()
    except queue.Empty:
        raise SystemExit("no records came for two minutes; a worker has died") from None


if __name__ == "__main__":
    main()

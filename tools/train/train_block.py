"""Trains a Block Transformer and a vanilla partner of equal loss on the same tokens.

    train_block.py --data data.tar.xz --out DIR            the pair, see below
    train_block.py --data ... --out DIR --uptrain          then also a Block model made of a vanilla
    train_block.py --data ... --out DIR --report           what DIR holds, no training

The Block model is trained first. Then come vanilla models of one family whose inner width is the
only thing that varies, each on the very same rows in the same order: the first width is a guess,
every next one is read off the losses so far, until one is within --within nats of the Block model on
the held-out tokens. Both are judged as they would ship, weights rounded to bf16, in f32 arithmetic.

A call stops by itself after --seconds; the same line goes on where it stopped, on a CPU to the same
bits as if it had not. DIR holds one file a model, NAME.pt, with its log and results, plan.json and
pair.json.
"""

import argparse
import contextlib
import json
import math
import pathlib
import tarfile
import time

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from block_eval import evaluate
from block_model import BlockShape, block_from_vanilla, make_model
from model import Shape

LAST_RATE = 0.02
AT_DOCUMENT_START = 0.25  # Share of rows; the others begin wherever they fall.
WIDTH_STEP = 16
# Nats that a vanilla model loses as its parameters outside the tables grow e-fold: only the second
# width is chosen by it.
USUAL_SLOPE = -0.1
MATCHED = 0.02  # Nats; two losses further apart than this are not called equal.
PROBE_STEPS = 60
PROBE_PARTNERS = 3.5  # Vanilla models that the time must suffice for.
SEQUENCE = 1024  # Tokens, for which bytes of keys and values are told.


class Data:
    def __init__(self, path, device):
        with tarfile.open(path) as archive:
            files = {m.name: archive.extractfile(m).read() for m in archive.getmembers()}
        self.tokenizer_json = files["tokenizer.json"]
        self.tokenizer = Tokenizer.from_str(self.tokenizer_json.decode())
        self.manifest = json.loads(files["manifest.json"])
        self.heldout = np.frombuffer(files["heldout.u16"], dtype=np.uint16)
        train = np.frombuffer(files["train.u16"], dtype=np.uint16)
        self.tokens = torch.from_numpy(train.astype(np.int16)).to(device)
        self.documents = torch.from_numpy(np.flatnonzero(train == 0) + 1).to(device)

    def draw(self, generator, n_rows, row_len):
        """Windows of the text. Some begin where a document does, as most prompts will."""
        device, last = self.tokens.device, len(self.tokens) - row_len
        chance = torch.rand(3, n_rows, device=device, generator=generator, dtype=torch.float64)
        first = (chance[0] * last).long()
        document = self.documents[(chance[1] * len(self.documents)).long()].clamp(max=last)
        first = torch.where(chance[2] < AT_DOCUMENT_START, document, first)
        return self.tokens[first[:, None] + torch.arange(row_len, device=device)].long()


def token_loss(hidden, embed, targets):
    return F.cross_entropy(F.linear(hidden, embed).float(), targets)


class Run:
    """One model's training, kept in one file."""

    def __init__(self, args, data, name, kind, shape, n_tokens, rate, start=None):
        self.args, self.data, self.name, self.kind, self.shape = args, data, name, kind, shape
        self.path = args.out / f"{name}.pt"
        self.n_steps = max(1, round(n_tokens / args.step_tokens))
        self.rate = rate
        self.step, self.seconds, self.log, self.result = 0, 0.0, [], None
        self.weights = start  # A state to begin with, where it is not a random one.
        self.optimizer_state = None
        if self.path.exists():
            saved = torch.load(self.path, map_location="cpu", weights_only=False)
            if (saved["shape"], saved["n_steps"]) != (shape, self.n_steps):
                raise SystemExit(f"{self.path} is of another shape or length; take another --out")
            for key in ("step", "seconds", "log", "result"):
                setattr(self, key, saved[key])
            self.weights, self.optimizer_state = saved["model"], saved["optimizer"]

    def save(self, model, optimizer=None):
        state = {key: getattr(self, key) for key in ("step", "seconds", "log", "result")}
        state |= {
            "kind": self.kind,
            "shape": self.shape,
            "n_steps": self.n_steps,
            "step_tokens": self.args.step_tokens,
            "rate": self.rate,
            "model": model.state_dict(),
            # What is finished needs no moments, and files that travel should be small.
            "optimizer": optimizer.state_dict() if optimizer else None,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)

    def learning_rate(self):
        warmup = min(self.args.warmup, self.n_steps // 5 + 1)
        decay = 1 - (1 - LAST_RATE) * self.step / self.n_steps
        return self.rate * min(decay, (self.step + 1) / warmup)

    def make_optimizer(self, model, on_gpu):
        decayed = [p for p in model.parameters() if p.ndim > 1]
        plain = [p for p in model.parameters() if p.ndim == 1]
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
            lr=self.rate,
            betas=(0.9, 0.95),
            fused=on_gpu,
        )
        if self.optimizer_state:
            optimizer.load_state_dict(self.optimizer_state)
        return optimizer

    def start(self):
        """Model and optimizer as the last call left them, or fresh."""
        args, self.device = self.args, self.args.device
        on_gpu = self.device.startswith("cuda")
        compiled = on_gpu and not args.no_compile
        torch.manual_seed(args.seed)
        self.model = make_model(self.kind, self.shape, compiled)
        if self.weights:
            self.model.load_state_dict(self.weights)
        self.model.to(self.device)
        self.optimizer = self.make_optimizer(self.model, on_gpu)
        self.loss_of = torch.compile(token_loss, dynamic=False) if compiled else token_loss
        self.autocast = (
            torch.autocast("cuda", torch.bfloat16) if on_gpu else contextlib.nullcontext()
        )
        self.generator = torch.Generator(device=self.device)

    def one_step(self):
        """One batch; its loss, still on the device."""
        args, model = self.args, self.model
        # Rows follow from the seed and the step alone: every model sees the same ones, and a run
        # that goes on those that it would have seen.
        self.generator.manual_seed(args.seed * 1_000_003 + self.step)
        ids = self.data.draw(self.generator, args.step_tokens // args.row_len, args.row_len)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        with self.autocast:
            loss = self.loss_of(model.predicting(ids), model.embed, ids.reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.detach()

    def train(self, until):
        """Goes on until the last step or the time until. Whether it got to the last step."""
        if self.result:
            return True
        args = self.args
        self.start()
        n_outside = self.model.n_params() - self.model.n_table_params()
        print(
            f"{self.name}: {self.model.n_params():,} parameters, {n_outside:,} outside the tables, "
            f"steps {self.step} to {self.n_steps} of {args.step_tokens} tokens",
            flush=True,
        )
        running = torch.zeros((), device=self.device)
        began = last = saved_at = time.monotonic()
        while self.step < self.n_steps:
            running += self.one_step()
            if self.step % args.log_every:
                continue
            mean = running.item() / args.log_every  # Waits for the device: the clock is right here.
            running.zero_()
            now = time.monotonic()
            speed = args.log_every * args.step_tokens / (now - last)
            self.seconds += now - last
            last = now
            if math.isnan(mean):
                raise SystemExit(f"{self.name}: the loss is not a number; the last save is kept")
            self.log.append([self.step, round(mean, 4), round(self.seconds, 2)])
            if len(self.log) % args.print_every == 0 or len(self.log) == 1:
                print(
                    f"  step {self.step}  loss {mean:.4f}  {speed / 1e6:.2f} M tokens/s  "
                    f"{now - began:.0f} s, {until - now:.0f} left in this call",
                    flush=True,
                )
            # It stops and is saved at logged steps only, so that no mean of losses is cut in two.
            if now > until:
                break
            if now - saved_at > args.save_every:
                self.save(self.model, self.optimizer)
                saved_at = now
        self.save(self.model, self.optimizer)
        if self.step < self.n_steps:
            return False
        self.weights = {name: t.detach().cpu() for name, t in self.model.state_dict().items()}
        self.result = self.judge()
        self.save(self.model)
        return True

    def judge(self):
        """Measures the weights as they would ship: rounded to bf16, computed with in f32."""
        model = make_model(self.kind, self.shape)
        model.load_state_dict({name: t.bfloat16().float() for name, t in self.weights.items()})
        model.to(self.args.device)
        result = evaluate(
            model,
            self.data.heldout[: self.args.heldout_tokens],
            self.data.tokenizer,
            self.args.device,
            self.args.row_len,
        )
        result["params"] = model.n_params()
        result["params_outside_tables"] = model.n_params() - model.n_table_params()
        result["kv_bytes"] = model.kv_bytes(SEQUENCE)
        result["tokens_trained"] = self.n_steps * self.args.step_tokens
        result["seconds"] = round(self.seconds, 1)
        print(f"{self.name}: " + json.dumps(result), flush=True)
        return result


# -- The pair -----------------------------------------------------------------------------------


def vanilla_shape(args, ffn_dim):
    return Shape(
        vocab_size=args.vocab_size,
        dim=args.vanilla_dim,
        n_layers=args.vanilla_layers,
        n_heads=args.vanilla_dim // 32,
        n_kv_heads=1,
        head_dim=32,
        ffn_dim=ffn_dim,
        rope_theta=1e4,
        max_seq_len=args.row_len,
    ).as_dict()


def outside_tables(args, ffn_dim):
    s = vanilla_shape(args, ffn_dim)
    heads = 2 * s["n_heads"] + 2 * s["n_kv_heads"]
    return s["n_layers"] * s["dim"] * (heads * s["head_dim"] + 3 * ffn_dim + 2) + s["dim"]


def next_width(args, tried, goal):
    """The inner width at which a line through losses over log parameters meets the goal. tried maps
    widths to losses. None if that width was tried."""
    known = sorted((abs(loss - goal), width) for width, loss in tried.items())
    width = known[0][1]
    slope = USUAL_SLOPE
    if len(known) > 1:
        other = known[1][1]
        logs = [math.log(outside_tables(args, w)) for w in (width, other)]
        found = (tried[width] - tried[other]) / (logs[0] - logs[1])
        slope = min(found, USUAL_SLOPE / 4)  # Noise must not send it far, or the wrong way.
    wanted = outside_tables(args, width) * math.exp((goal - tried[width]) / slope)
    per_width = outside_tables(args, 2) - outside_tables(args, 1)
    exact = (wanted - outside_tables(args, 0)) / per_width
    best = max(WIDTH_STEP, round(exact / WIDTH_STEP) * WIDTH_STEP)
    return None if best in tried else best


def block_shape(args):
    return BlockShape(
        vocab_size=args.vocab_size,
        dim=args.dim,
        n_heads=args.dim // 32,
        n_block_layers=args.block_layers,
        n_token_layers=args.token_layers,
        ffn_dim=args.ffn_dim,
        max_seq_len=args.row_len,
    ).as_dict()


def seconds_a_step(args, data, kind, shape):
    run = Run(args, data, f"probe-{kind}", kind, shape, args.step_tokens, args.rate)
    run.start()
    for i in range(2 * PROBE_STEPS):
        if i == PROBE_STEPS:  # The first ones compile.
            loss.item()
            began = time.monotonic()
        loss = run.one_step()
        run.step = 0
    loss.item()
    return (time.monotonic() - began) / PROBE_STEPS


def settle_tokens(args, data):
    """How many tokens each model sees. Said by the caller, or as many as --train-seconds allow on
    this device for the Block model and PROBE_PARTNERS others; kept for the calls that go on."""
    plan = args.out / "plan.json"
    if plan.exists():
        tokens = json.loads(plan.read_text())["tokens"]
        if args.tokens not in (0, tokens):
            raise SystemExit(f"{args.out} holds a run of {tokens:.0f} tokens; take another --out")
        return tokens
    tokens, about = args.tokens, {}
    if not tokens:
        block = seconds_a_step(args, data, "block", block_shape(args))
        vanilla = seconds_a_step(
            args, data, "vanilla", vanilla_shape(args, args.vanilla_ffn_dim)
        )
        n_steps = args.train_seconds / (block + PROBE_PARTNERS * vanilla)
        tokens = min(args.max_tokens, n_steps * args.step_tokens)
        about = {"block_ms_a_step": block * 1e3, "vanilla_ms_a_step": vanilla * 1e3}
        print(
            f"a step takes {block * 1e3:.2f} ms (Block) and {vanilla * 1e3:.2f} ms (vanilla): "
            f"{tokens / 1e6:.0f} M tokens for each",
            flush=True,
        )
    plan.write_text(json.dumps({"tokens": tokens} | about) + "\n")
    return tokens


def train_pair(args, data, until):
    """Whether all is done, and {name: Run}."""
    shape = block_shape(args)
    runs = {"block": Run(args, data, "block", "block", shape, args.tokens, args.rate)}
    if not runs["block"].train(until):
        return False, runs
    goal = runs["block"].result["nats"]
    tried, width = {}, args.vanilla_ffn_dim
    while width and len(tried) < args.max_partners:
        name = f"vanilla-{width}"
        runs[name] = Run(
            args, data, name, "vanilla", vanilla_shape(args, width), args.tokens, args.vanilla_rate
        )
        if time.monotonic() > until or not runs[name].train(until):
            return False, runs
        tried[width] = runs[name].result["nats"]
        print(f"{name}: {tried[width] - goal:+.4f} nats from the Block model", flush=True)
        if abs(tried[width] - goal) <= args.within:
            break
        width = next_width(args, tried, goal)
    return True, runs


def train_uptrained(args, data, until, runs):
    """A vanilla model of the Block model's layers, then a Block model made of it by a share of the
    tokens. Whether both are done."""
    parent_shape = vanilla_shape(args, args.ffn_dim) | {
        "dim": args.dim,
        "n_heads": args.dim // 32,
        "n_layers": args.block_layers + args.token_layers,
    }
    parent = Run(
        args, data, "uptrain-parent", "vanilla", parent_shape, args.tokens, args.vanilla_rate
    )
    runs[parent.name] = parent
    if time.monotonic() > until or not parent.train(until):
        return False
    vanilla = make_model("vanilla", parent_shape)
    vanilla.load_state_dict(parent.weights)
    model = block_from_vanilla(vanilla)
    run = Run(
        args,
        data,
        "uptrained",
        "block",
        model.shape.as_dict(),
        args.tokens * args.uptrain_share,
        args.rate / 2,
        start=model.state_dict(),
    )
    runs[run.name] = run
    return time.monotonic() < until and run.train(until)


def write_pair(args, data, runs, done):
    results = {name: run.result for name, run in runs.items() if run.result}
    partners = {n: r["nats"] for n, r in results.items() if n.startswith("vanilla-")}
    summary = {"done": done, "sequence": SEQUENCE, "results": results}
    if "block" in results and partners:
        goal = results["block"]["nats"]
        partner = min(partners, key=lambda n: abs(partners[n] - goal))
        summary |= {"partner": partner, "difference": round(partners[partner] - goal, 5)}
    summary |= {
        "tokens": runs["block"].n_steps * args.step_tokens,
        "epochs": round(runs["block"].n_steps * args.step_tokens / len(data.tokens), 1),
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU",
        "data": {k: v for k, v in data.manifest.items() if k != "sources"},
        "recipe": {
            name: {
                "shape": run.shape,
                "steps": run.n_steps,
                "step_tokens": args.step_tokens,
                "rate": run.rate,
                "log": run.log,
            }
            for name, run in runs.items()
        },
    }
    (args.out / "pair.json").write_text(json.dumps(summary) + "\n")
    print_table(summary)


def print_table(summary):
    print("\n| model | params | outside tables | nats | perplexity | bits/byte | top-1 | cloze new | "
          "cloze seen | repeated | KV bytes |")
    print("|" + " --- |" * 11)
    for name, r in summary["results"].items():
        cells = [name, f"{r['params']:,}", f"{r['params_outside_tables']:,}", r["nats"],
                 r["perplexity"], r["bits_per_byte"], r["top1"], r["cloze"]["new_found"],
                 r["cloze"]["seen_found"], r["repeated"][1], f"{r['kv_bytes']:,}"]
        print("| " + " | ".join(map(str, cells)) + " |")
    if "partner" in summary:
        verdict = "matched" if abs(summary["difference"]) <= MATCHED else "NOT matched"
        print(f"{verdict}: {summary['partner']}, {summary['difference']:+.4f} nats")
    print("all done" if summary["done"] else "not done: run the same line again", flush=True)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="what block_data.py wrote")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--tokens", type=float, default=0, help="that each model sees; 0: by time")
    parser.add_argument("--train-seconds", type=float, default=300, help="of all models, all calls")
    parser.add_argument("--max-tokens", type=float, default=2e9, help="where time decides")
    parser.add_argument("--seconds", type=float, default=1e9, help="of this call")
    parser.add_argument("--step-tokens", type=int, default=65536)
    parser.add_argument("--row-len", type=int, default=1024)
    parser.add_argument("--heldout-tokens", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--vanilla-rate", type=float, default=5e-3)
    parser.add_argument("--warmup", type=int, default=200, help="steps")
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--dim", type=int, default=96, help="of the Block model, in heads of 32")
    parser.add_argument("--block-layers", type=int, default=2)
    parser.add_argument("--token-layers", type=int, default=2)
    parser.add_argument("--ffn-dim", type=int, default=192)
    parser.add_argument("--vanilla-dim", type=int, default=64)
    parser.add_argument("--vanilla-layers", type=int, default=2)
    parser.add_argument("--vanilla-ffn-dim", type=int, default=160, help="the first one tried")
    parser.add_argument("--within", type=float, default=0.012, help="nats, when to stop trying")
    parser.add_argument("--max-partners", type=int, default=5)
    parser.add_argument("--uptrain", action="store_true")
    parser.add_argument("--uptrain-share", type=float, default=0.2, help="of the tokens")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--log-every", type=int, default=50, help="steps")
    parser.add_argument("--print-every", type=int, default=40, help="logged steps")
    parser.add_argument("--save-every", type=float, default=30, help="seconds")
    return parser.parse_args(argv)


def main(argv=None):
    started = time.monotonic()
    args = parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.report:
        print_table(json.loads((args.out / "pair.json").read_text()))
        return
    # One function is compiled for every shape that it meets, and there are many shapes.
    torch._dynamo.config.recompile_limit = 64
    data = Data(args.data, args.device)
    args.vocab_size = data.manifest["vocab_size"]
    args.tokens = settle_tokens(args, data)
    until = started + args.seconds
    done, runs = train_pair(args, data, until)
    if done and args.uptrain:
        done = train_uptrained(args, data, until, runs)
    write_pair(args, data, runs, done)


if __name__ == "__main__":
    main()

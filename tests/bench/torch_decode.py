#!/usr/bin/env python3
"""Decode with PyTorch on one GPU, to be held against spand-bench in the same run.

    tests/bench/torch_decode.py [attn] [loop] [hf]        all three unless named

attn: cuDNN's and flash's scaled_dot_product_attention, one query a sequence, contiguous caches, eight
      distinct layers in one CUDA graph; percent of a streaming read measured here.
loop: Llama-2-7B of random weights, torch.compile, a static cache, the whole step as one CUDA graph.
hf:   transformers' LlamaForCausalLM with sdpa and DynamicCache, for the record.
Prints tab-separated lines; needs torch, and transformers for hf.
"""
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

DEV, BF16 = "cuda", torch.bfloat16
WIDTH, FFN, LAYERS, HEADS, HEAD_DIM, VOCAB = 4096, 11008, 32, 32, 128, 32000


def graph_of(fn):
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            fn()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fn()
    return graph


def seconds(graph, repeats=9):
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(True), torch.cuda.Event(True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return sorted(times)[len(times) // 2]


def read_rate():
    """bytes/s of the largest reading PyTorch has: the maximum of 8 GB."""
    x = torch.zeros(8 << 28, dtype=torch.float32, device=DEV)
    out = torch.empty((), device=DEV)
    return x.numel() * 4 / seconds(graph_of(lambda: torch.amax(x, dim=0, out=out)))


def attention(rate):
    shapes = [(16, 4096, 32), (32, 4096, 32), (8, 16384, 32), (1, 32768, 32),
              (16, 4096, 8), (32, 4096, 8), (64, 8192, 8), (8, 16384, 8), (1, 32768, 8)]
    for batch, n_keys, kv_heads in shapes:
        n_layers = max(1, min(8, int(30e9 / (4 * batch * n_keys * kv_heads * HEAD_DIM))))
        q = torch.randn(batch, HEADS, 1, HEAD_DIM, dtype=BF16, device=DEV)
        kv = [torch.randn(2, batch, kv_heads, n_keys, HEAD_DIM, dtype=BF16, device=DEV) for _ in range(n_layers)]
        n_bytes = n_layers * kv[0].numel() * 2
        for name, backend in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)):
            try:
                with sdpa_kernel(backend):
                    def run():
                        for k, v in kv:
                            F.scaled_dot_product_attention(q, k, v, enable_gqa=kv_heads != HEADS)
                    t = seconds(graph_of(run))
                print(f"attn\t{name}\t{HEADS}/{kv_heads}\t{batch}x{n_keys}\t{t / n_layers * 1e6:.1f} us\t"
                      f"{100 * n_bytes / t / rate:.1f} %", flush=True)
            except RuntimeError as error:
                print(f"attn\t{name}\t{HEADS}/{kv_heads}\t{batch}x{n_keys}\trefused: {str(error).splitlines()[0][:80]}",
                      flush=True)
        del kv
        torch.cuda.empty_cache()


class Loop:
    """One decode step of Llama-2-7B; the same projections and cache layout in every layer."""

    def __init__(self, batch, n_keys):
        def w(rows, cols):
            return torch.randn(rows, cols, dtype=BF16, device=DEV) * 0.02
        self.layers = [(w(3 * WIDTH, WIDTH), w(WIDTH, WIDTH), w(2 * FFN, WIDTH), w(WIDTH, FFN)) for _ in range(LAYERS)]
        self.norms = torch.ones(2 * LAYERS + 1, WIDTH, dtype=BF16, device=DEV)
        self.embed, self.head = w(VOCAB, WIDTH), w(VOCAB, WIDTH)
        self.set_batch(batch, n_keys)

    def set_batch(self, batch, n_keys):
        self.cache = None
        torch.cuda.empty_cache()
        self.batch, self.n_keys = batch, n_keys
        self.cache = [tuple(torch.zeros(batch, HEADS, n_keys, HEAD_DIM, dtype=BF16, device=DEV) for _ in "kv")
                      for _ in range(LAYERS)]
        self.token = torch.zeros(batch, dtype=torch.long, device=DEV)
        self.position = torch.tensor([n_keys - 1], device=DEV)
        angle = torch.arange(n_keys, device=DEV)[:, None] / 10000 ** (torch.arange(0, HEAD_DIM, 2, device=DEV) / HEAD_DIM)
        self.cos, self.sin = torch.cat((angle, angle), -1).cos().to(BF16), torch.cat((angle, angle), -1).sin().to(BF16)

    @staticmethod
    def turn(x, cos, sin):
        half = HEAD_DIM // 2
        return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin

    def project(self, x, layer, norm):
        qkv = F.linear(F.rms_norm(x, (WIDTH,), norm, 1e-5), layer[0])
        q, k, v = qkv.view(-1, 3, HEADS, HEAD_DIM).unbind(1)
        cos, sin = self.cos[self.position], self.sin[self.position]
        return self.turn(q, cos, sin), self.turn(k, cos, sin), v

    @staticmethod
    def rest(x, y, layer, norm):
        x = x + F.linear(y.reshape(x.shape), layer[1])
        gate, up = F.linear(F.rms_norm(x, (WIDTH,), norm, 1e-5), layer[2]).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, layer[3])

    def step(self):
        x = self.embed[self.token]
        for i, layer in enumerate(self.layers):
            q, k, v = self.project(x, layer, self.norms[2 * i])
            keys, values = self.cache[i]
            keys[:, :, self.position] = k.unsqueeze(2)
            values[:, :, self.position] = v.unsqueeze(2)
            y = F.scaled_dot_product_attention(q.unsqueeze(2), keys, values)
            x = self.rest(x, y, layer, self.norms[2 * i + 1])
        self.token.copy_(F.linear(F.rms_norm(x, (WIDTH,), self.norms[-1], 1e-5), self.head).argmax(-1))


def loop(rate):
    model = Loop(1, 512)
    weight_bytes = sum(w.numel() * 2 for layer in model.layers for w in layer) + model.head.numel() * 2
    torch.backends.cuda.enable_math_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_flash_sdp(False) # cuDNN's reads faster, see attn
    for batch, n_keys in ((1, 512), (8, 4096), (16, 4096), (28, 4096)):
        model.set_batch(batch, n_keys)
        torch._dynamo.reset()
        step = torch.compile(model.step)
        try:
            with torch.no_grad():
                t = seconds(graph_of(step))
        except torch.OutOfMemoryError:
            print(f"loop\t{batch}x{n_keys}\tout of memory", flush=True)
            continue
        n_bytes = weight_bytes + LAYERS * 2 * batch * n_keys * WIDTH * 2
        print(f"loop\t{batch}x{n_keys}\t{t * 1e3:.2f} ms\t{batch / t:.0f} tok/s\t{100 * n_bytes / t / rate:.1f} %", flush=True)


def hf(rate):
    torch.backends.cuda.enable_math_sdp(True)
    torch.backends.cuda.enable_mem_efficient_sdp(True)
    torch.backends.cuda.enable_flash_sdp(True)
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(hidden_size=WIDTH, intermediate_size=FFN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
                         vocab_size=VOCAB, max_position_embeddings=8192, attn_implementation="sdpa", dtype=BF16)
    with torch.device(DEV):
        torch.set_default_dtype(BF16)
        model = LlamaForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
    weight_bytes = sum(p.numel() * 2 for p in model.parameters()) - VOCAB * WIDTH * 2
    for batch, n_keys in ((1, 512), (8, 4096), (14, 4096)):
        cache = DynamicCache(config=config)
        token = torch.zeros(batch, 1, dtype=torch.long, device=DEV)
        with torch.no_grad():
            for i in range(LAYERS):
                cache.update(*torch.zeros(2, batch, HEADS, n_keys, HEAD_DIM, dtype=BF16, device=DEV), i)
            times = []
            for _ in range(12):
                torch.cuda.synchronize()
                start = time.perf_counter()
                token = model(token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
                torch.cuda.synchronize()
                times.append(time.perf_counter() - start)
        t = sorted(times)[len(times) // 2]
        n_bytes = weight_bytes + LAYERS * 2 * batch * n_keys * WIDTH * 2
        print(f"hf\t{batch}x{n_keys}\t{t * 1e3:.2f} ms\t{batch / t:.0f} tok/s\t{100 * n_bytes / t / rate:.1f} %", flush=True)
        del cache
        torch.cuda.empty_cache()


def main():
    parts = {"attn": attention, "loop": loop, "hf": hf}
    names = sys.argv[1:] or list(parts)
    if any(n not in parts for n in names):
        sys.exit(__doc__)
    print(f"# {torch.cuda.get_device_name()}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    rate = read_rate()
    print(f"read\t{rate / 1e12:.3f} TB/s", flush=True)
    for n in names:
        parts[n](rate)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

"""A Block Transformer on Llama layers as the trainer runs it, and its vanilla partner.

Both answer one question, predicting(ids): the hidden states that predict each of the given tokens,
the first one too. In front of a row the Block model sees one block of end-of-text, the vanilla
model one such token, so that both are asked for the same tokens with nothing to go by at first.

The Block decoder reads one vector a block and its output at a block is the context from which the
token decoder, knowing nothing else of the past, writes the next one: n_prefix vectors made of the
context, then the block's tokens. Head and token table are one matrix; the embedder has its own.
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn

from model import (
    Decoder,
    DemoLlama,
    Shape,
    attention_in,
    attention_out_and_ffn,
    hf_tensors,
    layer_views,
    rms_norm,
)


@dataclass
class BlockShape:
    vocab_size: int = 512
    dim: int = 96
    n_block_layers: int = 2
    n_token_layers: int = 2
    n_heads: int = 3
    n_kv_heads: int = 1
    head_dim: int = 32
    ffn_dim: int = 192
    block_len: int = 4
    n_prefix: int = 2
    projection: str = "concat"
    rope_theta: float = 1e4
    norm_eps: float = 1e-5
    max_seq_len: int = 1024

    def as_dict(self):
        return asdict(self)

    def decoder(self, n_layers, max_seq_len):
        return Shape(
            vocab_size=self.vocab_size,
            dim=self.dim,
            n_layers=n_layers,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            head_dim=self.head_dim,
            ffn_dim=self.ffn_dim,
            rope_theta=self.rope_theta,
            norm_eps=self.norm_eps,
            max_seq_len=max_seq_len,
        )


def short_attention(q, k, v):
    """Causal attention in rows of a few tokens, all [n_rows, row_len, heads, head_dim].

    Sums of products, not matrix products: a compiler makes a few kernels of them, where thousands
    of products of 5 by 32 would each fill a tile for nothing.
    """
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    row_len = q.shape[1]
    scores = (q[:, :, None].float() * k[:, None].float()).sum(-1) * q.shape[3] ** -0.5
    later = torch.ones(row_len, row_len, device=q.device, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(later[None, :, :, None], float("-inf")).softmax(2)
    return (weights[..., None] * v[:, None].float()).sum(2).to(q.dtype)


def short_layer(x, cos, sin, attn_norm, wqkv, wo, ffn_norm, w_gate_up, w_down, row_len, heads, eps):
    q, k, v = attention_in(x, cos, sin, attn_norm, wqkv, *heads, eps)
    q, k, v = (t.unflatten(0, (-1, row_len)) for t in (q, k, v))
    attended = short_attention(q, k, v).flatten(2).flatten(0, 1)
    return attention_out_and_ffn(x, attended, wo, ffn_norm, w_gate_up, w_down, eps)


class ShortDecoder(Decoder):
    """The same layers on very many very short rows."""

    def __init__(self, shape, compiled=False):
        super().__init__(shape)
        self.layer = torch.compile(short_layer, dynamic=False) if compiled else short_layer

    def run(self, x, n_rows, row_len):
        s = self.shape
        cos = self.cos[:row_len].repeat(n_rows, 1)
        sin = self.sin[:row_len].repeat(n_rows, 1)
        for layer in self.layers:
            x = self.layer(
                x,
                cos,
                sin,
                layer.attn_norm,
                layer.wqkv,
                layer.wo,
                layer.ffn_norm,
                layer.w_gate_up,
                layer.w_down,
                row_len,
                (s.n_heads, s.n_kv_heads, s.head_dim),
                s.norm_eps,
            )
        return rms_norm(x, self.norm, s.norm_eps)


class BlockLlama(nn.Module):
    def __init__(self, shape, compiled=False):
        super().__init__()
        self.shape = s = shape
        width = s.dim // s.block_len if s.projection == "concat" else s.dim
        self.embedder = nn.Parameter(torch.randn(s.vocab_size, width) * 0.02)
        if s.projection != "concat":
            # The Conv1d of the published form, its kernel laid out [dim, block_len * width].
            n_in = s.block_len * width
            self.kernel = nn.Parameter(torch.randn(s.dim, n_in) * n_in**-0.5)
            self.kernel_bias = nn.Parameter(torch.zeros(s.dim))
        max_blocks = s.max_seq_len // s.block_len
        self.block_decoder = Decoder(s.decoder(s.n_block_layers, max_blocks), compiled)
        self.expansion = nn.Parameter(torch.randn(s.n_prefix * s.dim, s.dim) * s.dim**-0.5)
        self.expansion_bias = nn.Parameter(torch.zeros(s.n_prefix * s.dim))
        self.embed = nn.Parameter(torch.randn(s.vocab_size, s.dim) * 0.02)
        row_len = s.n_prefix + s.block_len - 1
        self.token_decoder = ShortDecoder(s.decoder(s.n_token_layers, row_len), compiled)

    def embed_blocks(self, blocks):
        """blocks [n_rows, n_blocks, block_len] to [n_rows * n_blocks, dim]."""
        vectors = F.embedding(blocks, self.embedder).flatten(2).flatten(0, 1)
        if self.shape.projection == "concat":
            return vectors
        return F.linear(vectors, self.kernel, self.kernel_bias)

    def predicting(self, ids):
        """ids [n_rows, row_len], row_len a multiple of block_len, to [n_rows * row_len, dim]."""
        s = self.shape
        blocks = ids.unflatten(1, (-1, s.block_len))
        n_rows, n_blocks = blocks.shape[:2]
        start = torch.zeros_like(blocks[:, :1])
        past = self.embed_blocks(torch.cat((start, blocks[:, :-1]), 1))
        contexts = self.block_decoder.run(past, n_rows, n_blocks)
        prefixes = F.linear(contexts, self.expansion, self.expansion_bias)
        prefixes = prefixes.unflatten(1, (s.n_prefix, s.dim))
        fed = F.embedding(blocks.flatten(0, 1)[:, :-1], self.embed)
        x = torch.cat((prefixes.to(fed.dtype), fed), 1)
        row_len = x.shape[1]
        x = self.token_decoder.run(x.flatten(0, 1), n_rows * n_blocks, row_len)
        return x.unflatten(0, (-1, row_len))[:, s.n_prefix - 1 :].reshape(-1, s.dim)

    def n_params(self):
        return sum(p.numel() for p in self.parameters())

    def n_table_params(self):
        return self.embedder.numel() + self.embed.numel()

    def kv_bytes(self, n_tokens):
        """Of a sequence in bf16: an entry a block and the start block's, and the token slab."""
        s = self.shape
        entry = 2 * s.n_kv_heads * s.head_dim * 2
        n_blocks = n_tokens // s.block_len + 1
        slab = s.n_token_layers * entry * (s.n_prefix + s.block_len - 1)
        return s.n_block_layers * entry * n_blocks + slab


class VanillaLlama(DemoLlama):
    def predicting(self, ids):
        return self.hidden(torch.cat((torch.zeros_like(ids[:, :1]), ids[:, :-1]), 1))

    def n_table_params(self):
        return self.embed.numel()

    def kv_bytes(self, n_tokens):
        s = self.shape
        return 2 * s.n_layers * s.n_kv_heads * s.head_dim * 2 * n_tokens


def make_model(kind, shape, compiled=False):
    """kind and shape as a checkpoint holds them: a name, and a dictionary."""
    if kind == "vanilla":
        return VanillaLlama(Shape(**shape), compiled)
    return BlockLlama(BlockShape(**shape), compiled)


def block_from_vanilla(vanilla, n_prefix=2, block_len=4, compiled=False):
    """Uptraining's start: the lower half of the layers becomes the block decoder, the upper half the
    token decoder. A block's vector begins as the mean of its tokens' rows, and every prefix as the
    context itself. Only the block decoder's last norm is fresh."""
    v = vanilla.shape
    n_lower = v.n_layers // 2
    shape = BlockShape(
        vocab_size=v.vocab_size,
        dim=v.dim,
        n_block_layers=n_lower,
        n_token_layers=v.n_layers - n_lower,
        n_heads=v.n_heads,
        n_kv_heads=v.n_kv_heads,
        head_dim=v.head_dim,
        ffn_dim=v.ffn_dim,
        block_len=block_len,
        n_prefix=n_prefix,
        projection="projection",
        rope_theta=v.rope_theta,
        norm_eps=v.norm_eps,
        max_seq_len=v.max_seq_len,
    )
    model = BlockLlama(shape, compiled)
    identity = torch.eye(v.dim)
    with torch.no_grad():
        model.embedder.copy_(vanilla.embed)
        model.kernel.copy_(identity.repeat(1, block_len) / block_len)
        model.embed.copy_(vanilla.embed)
        model.expansion.copy_(identity.repeat(n_prefix, 1))
    for i, layer in enumerate(vanilla.layers):
        half = model.block_decoder if i < n_lower else model.token_decoder
        half.layers[i if i < n_lower else i - n_lower].load_state_dict(layer.state_dict())
    model.token_decoder.norm.data.copy_(vanilla.norm.data)
    return model


def block_tensors(model):
    """The weights, named and shaped as a served directory has them; the head is tied."""
    s = model.shape
    out = {"embedder.embeddings.weight": model.embedder.detach()}
    if s.projection != "concat":
        kernel = model.kernel.detach().unflatten(1, (s.block_len, -1)).transpose(1, 2)
        out["embedder.projection_layer.weight"] = kernel
        out["embedder.projection_layer.bias"] = model.kernel_bias.detach()
    out |= layer_views(model.block_decoder, "block_decoder.model.")
    out["token_decoder.model.embed_tokens.weight"] = model.embed.detach()
    out |= layer_views(model.token_decoder, "token_decoder.model.")
    out["token_decoder.expansion_layer.weight"] = model.expansion.detach()[:, :, None]
    out["token_decoder.expansion_layer.bias"] = model.expansion_bias.detach()
    return {name: tensor.contiguous() for name, tensor in out.items()}


def named_tensors(model):
    return block_tensors(model) if isinstance(model, BlockLlama) else hf_tensors(model)

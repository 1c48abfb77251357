"""The demo model as the trainer runs it: a plain Llama, laid out for speed.

The mathematics is that of transformers' LlamaForCausalLM, and export.py splits the fused matrices
back into its tensors. Two things differ in form. Rows of a batch lie flat, [n_tokens, dim], and
only attention sees them as rows, so that a batch of any row length runs the same compiled code as
long as its tokens are as many. And q, k, v as well as gate and up are one matrix each.
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Shape:
    vocab_size: int = 6144
    dim: int = 384
    n_layers: int = 8
    n_heads: int = 8
    n_kv_heads: int = 4
    head_dim: int = 64
    ffn_dim: int = 768
    rope_theta: float = 1e5
    norm_eps: float = 1e-5
    max_seq_len: int = 8192

    def as_dict(self):
        return asdict(self)


def rms_norm(x, weight, eps):
    f = x.float()
    return (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def rotate(x, cos, sin):
    """Rotary embedding, half-split. x [n, heads, head_dim]; cos, sin [n, head_dim / 2]."""
    a, b = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def attention_in(x, cos, sin, norm, wqkv, n_heads, n_kv_heads, head_dim, eps):
    qkv = F.linear(rms_norm(x, norm, eps), wqkv).view(
        x.shape[0], n_heads + 2 * n_kv_heads, head_dim
    )
    q, k, v = qkv.split((n_heads, n_kv_heads, n_kv_heads), dim=1)
    return rotate(q, cos, sin), rotate(k, cos, sin), v.contiguous()


def attention_out_and_ffn(x, attended, wo, norm, w_gate_up, w_down, eps):
    x = x + F.linear(attended, wo)
    gate, up = F.linear(rms_norm(x, norm, eps), w_gate_up).chunk(2, dim=-1)
    return x + F.linear(F.silu(gate) * up, w_down)


class Layer(nn.Module):
    def __init__(self, s):
        super().__init__()
        n_out = (s.n_heads + 2 * s.n_kv_heads) * s.head_dim
        self.attn_norm = nn.Parameter(torch.ones(s.dim))
        self.wqkv = nn.Parameter(torch.randn(n_out, s.dim) * 0.02)
        # Outputs into the residual stream start small in proportion to how many are added up.
        scale = 0.02 / (2 * s.n_layers) ** 0.5
        self.wo = nn.Parameter(torch.randn(s.dim, s.n_heads * s.head_dim) * scale)
        self.ffn_norm = nn.Parameter(torch.ones(s.dim))
        self.w_gate_up = nn.Parameter(torch.randn(2 * s.ffn_dim, s.dim) * 0.02)
        self.w_down = nn.Parameter(torch.randn(s.dim, s.ffn_dim) * scale)


class Decoder(nn.Module):
    """Layers and the last norm, without tables of tokens."""

    def __init__(self, shape, compiled=False):
        super().__init__()
        self.shape = s = shape
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.n_layers))
        self.norm = nn.Parameter(torch.ones(s.dim))
        frequencies = s.rope_theta ** (-torch.arange(0, s.head_dim, 2).float() / s.head_dim)
        angles = torch.arange(s.max_seq_len).float()[:, None] * frequencies
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        wrap = (lambda f: torch.compile(f, dynamic=False)) if compiled else (lambda f: f)
        self.attention_in = wrap(attention_in)
        self.attention_out_and_ffn = wrap(attention_out_and_ffn)

    def run(self, x, n_rows, row_len):
        """x [n_rows * row_len, dim] to the normed hidden state of the same shape."""
        s = self.shape
        cos = self.cos[:row_len].repeat(n_rows, 1)
        sin = self.sin[:row_len].repeat(n_rows, 1)
        for layer in self.layers:
            q, k, v = self.attention_in(
                x,
                cos,
                sin,
                layer.attn_norm,
                layer.wqkv,
                s.n_heads,
                s.n_kv_heads,
                s.head_dim,
                s.norm_eps,
            )
            q, k, v = (t.view(n_rows, row_len, -1, s.head_dim).transpose(1, 2) for t in (q, k, v))
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            attended = attended.transpose(1, 2).reshape(n_rows * row_len, -1)
            x = self.attention_out_and_ffn(
                x, attended, layer.wo, layer.ffn_norm, layer.w_gate_up, layer.w_down, s.norm_eps
            )
        return rms_norm(x, self.norm, s.norm_eps)

    def n_params(self):
        return sum(p.numel() for p in self.parameters())


class DemoLlama(Decoder):
    def __init__(self, shape, compiled=False):
        super().__init__(shape, compiled)
        self.embed = nn.Parameter(torch.randn(shape.vocab_size, shape.dim) * 0.02)

    def hidden(self, ids):
        """ids [n_rows, row_len] to the normed hidden state [n_rows * row_len, dim]."""
        return self.run(F.embedding(ids.reshape(-1), self.embed), *ids.shape)


def layer_views(decoder, at):
    """The layers' weights and the last norm as views, named and shaped as in LlamaModel."""
    s = decoder.shape
    out = {}
    for i, layer in enumerate(decoder.layers):
        q, k, v = layer.wqkv.split(
            (s.n_heads * s.head_dim, s.n_kv_heads * s.head_dim, s.n_kv_heads * s.head_dim)
        )
        gate, up = layer.w_gate_up.chunk(2)
        out |= {
            f"{at}layers.{i}.input_layernorm.weight": layer.attn_norm,
            f"{at}layers.{i}.self_attn.q_proj.weight": q,
            f"{at}layers.{i}.self_attn.k_proj.weight": k,
            f"{at}layers.{i}.self_attn.v_proj.weight": v,
            f"{at}layers.{i}.self_attn.o_proj.weight": layer.wo,
            f"{at}layers.{i}.post_attention_layernorm.weight": layer.ffn_norm,
            f"{at}layers.{i}.mlp.gate_proj.weight": gate,
            f"{at}layers.{i}.mlp.up_proj.weight": up,
            f"{at}layers.{i}.mlp.down_proj.weight": layer.w_down,
        }
    out[at + "norm.weight"] = decoder.norm
    return {name: tensor.detach() for name, tensor in out.items()}


def hf_views(model):
    """The weights as views, named and shaped as in LlamaForCausalLM; tied embeddings once."""
    return {"model.embed_tokens.weight": model.embed.detach()} | layer_views(model, "model.")


def hf_tensors(model):
    return {name: tensor.contiguous() for name, tensor in hf_views(model).items()}


def load_hf_tensors(model, tensors):
    """The way back: fills the model from tensors as hf_tensors() names them."""
    with torch.no_grad():
        for name, tensor in hf_views(model).items():
            tensor.copy_(tensors[name])

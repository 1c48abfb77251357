"""Block Transformer in plain PyTorch: the truth that the golden vectors of tests/golden/block hold.

Written from the published description, with no code of the original and none of spand. There is no
cache and no batching: every logit comes from a forward pass over the whole sequence, each block's
token decoder sees its prefixes and tokens at the positions of training (0..P-1, then P..), and
nothing is computed twice in two ways. It reads a served directory (config.json and safetensors):

    reference = BlockReference.open(folder)
    reference.logits(ids, n_prompt)     [len(ids) + 1, vocab_size]: row i predicts ids[i], the last
                                        one what comes next; rows of a block 0 are NaN
    reference.greedy(prompt, n_new)     ids, and by how much each choice won

Layers are GPT-NeoX (biased LayerNorm, parallel residual, partial rotary, interleaved qkv, erf GELU)
or Llama (RMSNorm, SwiGLU, grouped KV heads), both decoders of one kind.
"""

import glob
import json
import math
import os

import safetensors.torch
import torch
import torch.nn.functional as F


def rope_parameters(config):
    """(theta, share of a head that turns), under either of the spellings in use."""
    nested = config.get("rope_parameters") or {}
    neox = config["model_type"] == "gpt_neox"
    theta = nested.get("rope_theta", config.get("rotary_emb_base" if neox else "rope_theta", 1e4))
    share = nested.get("partial_rotary_factor", config.get("rotary_pct", 0.25)) if neox else 1.0
    return theta, share


def rotate(x, positions, theta, share):
    """Half-split rotary embedding of the first dims of each head. x [batch, heads, n, head_dim]."""
    n_turned = int(x.shape[-1] * share)
    half = n_turned // 2
    frequencies = theta ** (-2.0 * torch.arange(half, dtype=torch.float32) / n_turned)
    angles = positions.float()[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    a, b, rest = x[..., :half], x[..., half:n_turned], x[..., n_turned:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)


def causal_attention(q, k, v):
    """[batch, heads, n, head_dim] each; query heads share KV heads in order."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    n = q.shape[2]
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
    scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


class Stack:
    """The layers and the last norm of one decoder. x [batch, n, dim] in and out."""

    def __init__(self, config, tensors):
        self.config = config
        self.tensors = tensors
        self.n_layers = config["num_hidden_layers"]
        self.n_heads = config["num_attention_heads"]
        self.theta, self.share = rope_parameters(config)

    def linear(self, x, name):
        return F.linear(x, self.tensors[name + ".weight"], self.tensors.get(name + ".bias"))

    def heads(self, x, n_heads):
        return x.unflatten(2, (n_heads, -1)).transpose(1, 2)

    def attend(self, q, k, v, positions):
        q, k = (rotate(t, positions, self.theta, self.share) for t in (q, k))
        return causal_attention(q, k, v)


class NeoxStack(Stack):
    def norm(self, x, name):
        eps = self.config.get("layer_norm_eps", 1e-5)
        weight, bias = self.tensors[name + ".weight"], self.tensors[name + ".bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)

    def attention(self, x, at, positions):
        qkv = self.linear(x, at + "query_key_value").unflatten(2, (self.n_heads, 3, -1))
        q, k, v = (t.transpose(1, 2) for t in qkv.unbind(3))
        return self.linear(self.attend(q, k, v, positions), at + "dense")

    def mlp(self, x, at):
        return self.linear(F.gelu(self.linear(x, at + "dense_h_to_4h")), at + "dense_4h_to_h")

    def run(self, x, positions):
        for i in range(self.n_layers):
            at = f"layers.{i}."
            attended = self.attention(
                self.norm(x, at + "input_layernorm"), at + "attention.", positions
            )
            if self.config.get("use_parallel_residual", True):
                fed = self.mlp(self.norm(x, at + "post_attention_layernorm"), at + "mlp.")
                x = x + attended + fed
            else:
                x = x + attended
                x = x + self.mlp(self.norm(x, at + "post_attention_layernorm"), at + "mlp.")
        return self.norm(x, "final_layer_norm")


class LlamaStack(Stack):
    def norm(self, x, name):
        eps = self.config.get("rms_norm_eps", 1e-6)
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * self.tensors[name + ".weight"]

    def attention(self, x, at, positions):
        n_kv_heads = self.config.get("num_key_value_heads") or self.n_heads
        q = self.heads(self.linear(x, at + "q_proj"), self.n_heads)
        k = self.heads(self.linear(x, at + "k_proj"), n_kv_heads)
        v = self.heads(self.linear(x, at + "v_proj"), n_kv_heads)
        return self.linear(self.attend(q, k, v, positions), at + "o_proj")

    def mlp(self, x, at):
        gated = F.silu(self.linear(x, at + "gate_proj")) * self.linear(x, at + "up_proj")
        return self.linear(gated, at + "down_proj")

    def run(self, x, positions):
        for i in range(self.n_layers):
            at = f"layers.{i}."
            x = x + self.attention(
                self.norm(x, at + "input_layernorm"), at + "self_attn.", positions
            )
            x = x + self.mlp(self.norm(x, at + "post_attention_layernorm"), at + "mlp.")
        return self.norm(x, "norm")


# model_type: the stack, its prefix among the tensors, token table and head
FLAVOURS = {
    "gpt_neox": (NeoxStack, "gpt_neox.", "gpt_neox.embed_in.weight", "embed_out.weight"),
    "llama": (LlamaStack, "model.", "model.embed_tokens.weight", "lm_head.weight"),
}


def under(tensors, prefix):
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}


class BlockReference:
    def __init__(self, config, tensors):
        tensors = {name: t.float() for name, t in tensors.items()}
        make, at, table, head = FLAVOURS[config["token_decoder"]["model_type"]]
        token_decoder = under(tensors, "token_decoder.")
        self.config = config
        self.block_len = config["block_length"]
        self.n_prefix = config["n_prefix"]
        self.start_id = config.get("start_id", 0)
        self.embedder = under(tensors, "embedder.")
        self.block_decoder = make(config["block_decoder"], under(tensors, "block_decoder." + at))
        self.token_decoder = make(config["token_decoder"], under(token_decoder, at))
        self.token_table = token_decoder[table]
        self.head = self.token_table if config.get("tie_word_embeddings") else token_decoder[head]
        self.expansion = token_decoder["expansion_layer.weight"].flatten(1)  # a Conv1d of kernel 1
        self.expansion_bias = token_decoder["expansion_layer.bias"]

    @classmethod
    def open(cls, folder):
        with open(os.path.join(folder, "config.json")) as f:
            config = json.load(f)
        tensors = {}
        for shard in sorted(glob.glob(os.path.join(folder, "*.safetensors"))):
            tensors |= safetensors.torch.load_file(shard)
        return cls(config, tensors)

    def lead(self, n_prompt):
        """How many start ids stand in front of the first real token."""
        start_block = self.block_len
        if self.config.get("alignment", "left") == "left_pad":
            return -n_prompt % self.block_len if n_prompt else start_block
        if self.config.get("start_block", True) or n_prompt < self.block_len:
            return start_block
        return 0

    def embed(self, blocks):
        """blocks [batch, n, block_len] of ids to vectors [batch, n, dim]."""
        rows = self.embedder["embeddings.weight"][blocks]
        if self.config["embedder"]["projection"] == "concat":
            return rows.flatten(2)
        # Conv1d whose kernel and stride are a block: one product for each place in it.
        kernel = self.embedder["projection_layer.weight"]
        places = (F.linear(rows[:, :, j], kernel[:, :, j]) for j in range(self.block_len))
        return sum(places) + self.embedder["projection_layer.bias"]

    def token_positions(self):
        fed = torch.arange(self.block_len - 1)
        if self.config.get("token_positions", "forward") == "generate":
            return torch.cat((torch.zeros(self.n_prefix, dtype=torch.long), 1 + fed))
        return torch.arange(self.n_prefix + self.block_len - 1)

    def decode(self, contexts, blocks):
        """Logits of every token of the blocks [batch, n, block_len], each from the context of the
        block before it, [batch, n, dim]."""
        prefixes = F.linear(contexts, self.expansion, self.expansion_bias)
        prefixes = prefixes.unflatten(2, (self.n_prefix, -1)).flatten(0, 1)
        fed = self.token_table[blocks[:, :, :-1].flatten(0, 1)]
        x = self.token_decoder.run(torch.cat((prefixes, fed), 1), self.token_positions())
        logits = F.linear(x[:, self.n_prefix - 1 :], self.head)
        return logits.unflatten(0, blocks.shape[:2])

    @torch.no_grad()
    def batch_logits(self, ids, n_prompt):
        """ids [batch, n] to [batch, n + 1, vocab_size]; row i predicts ids[:, i]."""
        n_rows, n = ids.shape
        lead = self.lead(n_prompt)
        # The last row predicts an id that is not known yet. No logit up to it depends on that id,
        # nor on what fills up the last block behind it.
        n_blocks = (lead + n) // self.block_len + 1
        slots = torch.full((n_rows, n_blocks * self.block_len), self.start_id)
        slots[:, lead : lead + n] = ids
        blocks = slots.unflatten(1, (n_blocks, self.block_len))
        out = torch.full((n_rows, *slots.shape[1:], self.config["vocab_size"]), math.nan)
        if n_blocks > 1:
            contexts = self.block_decoder.run(
                self.embed(blocks[:, :-1]), torch.arange(n_blocks - 1)
            )
            out[:, self.block_len :] = self.decode(contexts, blocks[:, 1:]).flatten(1, 2)
        return out[:, lead : lead + n + 1]

    def logits(self, ids, n_prompt=None):
        ids = torch.as_tensor([ids], dtype=torch.long)
        return self.batch_logits(ids, ids.shape[1] if n_prompt is None else n_prompt)[0]

    def greedy(self, prompt, n_new):
        ids, margins = list(prompt), []
        for _ in range(n_new):
            best = self.logits(ids, len(prompt))[-1].topk(2)
            margins.append(float(best.values[0] - best.values[1]))
            ids.append(int(best.indices[0]))
        return ids[len(prompt) :], margins

"""The model of a published row as plain PyTorch modules, written for one device.

Two architectures, by the row's `arch`: `gpt` (layer norm, biases, learned positions, GELU) and
`llama` (RMS norm, no biases, rotary positions, gated SiLU). Attention is one fused op where the
source says so, else scores, softmax and weights are values of their own, as Megatron has them
(its kernel masks the scores while it scales them, so the mask is no op here either).

Only a few blocks are captured: those in the middle are equal, and one of them stands for all
(`stands_for`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.published.checkpoints import as_one_kernel, op_by_op
from torch import Tensor, nn

from meshwright.model import Model
from meshwright.task import Task

CAPTURED = 3  # the first block, one for those in the middle, the last


@dataclass(frozen=True)
class Dims:
    """Everything that decides the ops of a step. `ffn` is the inner width of one feed-forward."""

    arch: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    seq_len: int
    bias: bool
    tied: bool
    fused_attention: bool
    dtype: str  # of parameters and activations
    dropout: float = 0.0
    fused: bool = False  # norms, rotary positions and gates are kernels of their own
    op_by_op: bool = False  # blocks are computed again by a policy for each op

    @property
    def head_width(self) -> int:
        return self.hidden // self.heads


def stands_for(dims: Dims) -> dict[str, int]:
    """Which captured block stands for how many."""
    return {"layers.1": dims.layers - 2} if dims.layers > CAPTURED else {}


def block_name(dims: Dims, index: int) -> str:
    """The name by which a cut calls block `index` of the whole model."""
    if dims.layers <= CAPTURED or index == 0:
        return f"layers.{index}"
    if index == dims.layers - 1:
        return "layers.2"
    return f"layers.1#{index - 1}"


class Attention(nn.Module):
    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.dims = dims
        kv_width = dims.kv_heads * dims.head_width
        self.q = nn.Linear(dims.hidden, dims.hidden, bias=dims.bias)
        self.k = nn.Linear(dims.hidden, kv_width, bias=dims.bias)
        self.v = nn.Linear(dims.hidden, kv_width, bias=dims.bias)
        self.out = nn.Linear(dims.hidden, dims.hidden, bias=dims.bias)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
        dims = self.dims
        batch, seq, _ = x.shape
        shape = (batch, seq, -1, dims.head_width)
        q = self.q(x).view(shape).transpose(1, 2)  # [B, H, S, D]
        k = self.k(x).view(shape).transpose(1, 2)
        v = self.v(x).view(shape).transpose(1, 2)
        if angles is not None:
            q, k = one(dims, turn, q, *angles), one(dims, turn, k, *angles)
        if dims.kv_heads != dims.heads:
            k = k.repeat_interleave(dims.heads // dims.kv_heads, dim=1)
            v = v.repeat_interleave(dims.heads // dims.kv_heads, dim=1)
        if dims.fused_attention:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = torch.matmul(q * dims.head_width**-0.5, k.transpose(-1, -2))  # [B, H, S, S]
            y = torch.matmul(dropped(torch.softmax(scores, dim=-1), dims), v)
        out: Tensor = self.out(y.transpose(1, 2).reshape(batch, seq, -1))
        return out


def one(dims: Dims, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    return as_one_kernel(function, *inputs) if dims.fused else function(*inputs)


def dropped(x: Tensor, dims: Dims) -> Tensor:
    # As CUDA has it, with one byte of mask for each element, which F.dropout on a CPU has not.
    return torch.native_dropout(x, dims.dropout, True)[0] if dims.dropout else x


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def rotary(seq: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [S, width] of the angles by which positions turn."""
    steps = torch.arange(0, width, 2, device=like.device, dtype=torch.float32)
    positions = torch.arange(seq, device=like.device, dtype=torch.float32)
    angles = torch.outer(positions, 10_000.0 ** (-steps / width))
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


class Plain(nn.Module):
    """Two products with a GELU between."""

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.up = nn.Linear(dims.hidden, dims.ffn, bias=dims.bias)
        self.down = nn.Linear(dims.ffn, dims.hidden, bias=dims.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.gelu(self.up(x), approximate="tanh"))
        return out


class Gated(nn.Module):
    """Three products, the first two of them combined by a gated SiLU."""

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.dims = dims
        self.gate = nn.Linear(dims.hidden, dims.ffn, bias=dims.bias)
        self.up = nn.Linear(dims.hidden, dims.ffn, bias=dims.bias)
        self.down = nn.Linear(dims.ffn, dims.hidden, bias=dims.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(one(self.dims, gated, self.gate(x), self.up(x)))
        return out


def gated(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def norm(dims: Dims) -> nn.Module:
    return nn.LayerNorm(dims.hidden) if dims.arch == "gpt" else nn.RMSNorm(dims.hidden, eps=1e-5)


class Block(nn.Module):
    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.dims = dims
        self.norm1 = norm(dims)
        self.attention = Attention(dims)
        self.norm2 = norm(dims)
        self.feed_forward = Plain(dims) if dims.arch == "gpt" else Gated(dims)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
        dims = self.dims
        x = x + dropped(self.attention(one(dims, self.norm1, x), angles), dims)
        out: Tensor = x + dropped(self.feed_forward(one(dims, self.norm2, x)), dims)
        return out


class Transformer(nn.Module):
    """`model(ids) -> logits`, ids [B, S] int64, logits [B, S, V] in the model's dtype."""

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.dims = dims
        self.embedding = nn.Embedding(dims.vocab, dims.hidden)
        if dims.arch == "gpt":
            self.positions = nn.Embedding(dims.seq_len, dims.hidden)
        self.layers = nn.ModuleList(Block(dims) for _ in range(min(dims.layers, CAPTURED)))
        self.norm = norm(dims)
        self.head = nn.Linear(dims.hidden, dims.vocab, bias=False)
        self.to(getattr(torch, dims.dtype))
        if dims.tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        angles = None
        if self.dims.arch == "gpt":
            x = x + self.positions(torch.arange(ids.size(1), device=ids.device))
        else:
            angles = rotary(ids.size(1), self.dims.head_width, x)
        x = dropped(x, self.dims)
        for layer in self.layers:
            x = op_by_op(layer, x, angles) if self.dims.op_by_op else layer(x, angles)
        logits: Tensor = self.head(self.norm(x))
        return logits


def next_token_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy in float32, as all of these frameworks take it; batch is [B, S] twice."""
    ids, targets = batch
    logits = model(ids)
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


@lru_cache(maxsize=4)
def model_for(dims: Dims, examples: int) -> Model:
    """The captured model with a microbatch of `examples`, kept for rows that differ in degrees."""
    ids = torch.zeros(examples, dims.seq_len, dtype=torch.int64)
    task = Task(
        model=lambda: Transformer(dims), loss=next_token_loss, batch=(ids, ids),
        name=f"{dims.arch} {dims.layers}x{dims.hidden}",
    )  # fmt: skip
    return Model(task)

"""A small GPT, written as one would for a single device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meshwright.task import Task
from meshwright.zoo.checks import require_multiple, require_positive, require_probability


@dataclass(frozen=True)
class GPTConfig:
    layers: int = 6
    width: int = 384
    heads: int = 8
    vocab: int = 256
    seq_len: int = 128
    dropout: float = 0.0
    bias: bool = True
    mlp_ratio: int = 4


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.proj = nn.Linear(config.width, config.width, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, width = x.shape
        q, k, v = self.qkv(x).split(width, dim=2)
        # [B, S, D] -> [B, H, S, D/H]
        q = q.view(batch, seq, self.heads, width // self.heads).transpose(1, 2)
        k = k.view(batch, seq, self.heads, width // self.heads).transpose(1, 2)
        v = v.view(batch, seq, self.heads, width // self.heads).transpose(1, 2)
        y = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.dropout if self.training else 0.0, is_causal=True
        )
        y = y.transpose(1, 2).contiguous().view(batch, seq, width)
        out: Tensor = self.resid_dropout(self.proj(y))
        return out


class FeedForward(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        hidden = config.mlp_ratio * config.width
        self.fc = nn.Linear(config.width, hidden, bias=config.bias)
        self.gelu = nn.GELU()
        self.proj = nn.Linear(hidden, config.width, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.proj(self.gelu(self.fc(x))))
        return out


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.width, bias=config.bias)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class GPT(nn.Module):
    """`model(ids) -> logits`, ids [B, S] int64, logits [B, S, V]."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab, config.width)
        self.position_embedding = nn.Embedding(config.seq_len, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.ln_f = nn.LayerNorm(config.width, bias=config.bias)
        self.lm_head = nn.Linear(config.width, config.vocab, bias=False)
        self.lm_head.weight = self.token_embedding.weight

        self.apply(self._init_weights)
        # GPT-2's residual scaling: keeps the variance of the stream flat with depth
        for name, parameter in self.named_parameters():
            if name.endswith("proj.weight"):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.layers))

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.size(1), device=ids.device)
        x = self.dropout(self.token_embedding(ids) + self.position_embedding(positions))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.lm_head(self.ln_f(x))
        return logits


def next_token_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy; batch is (ids, targets), both [B, S] int64."""
    ids, targets = batch
    logits = model(ids)
    return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))


def gpt_task(
    layers: int = 6,
    width: int = 384,
    heads: int = 8,
    vocab: int = 256,
    seq_len: int = 128,
    global_batch: int = 16,
    dropout: float = 0.0,
    bias: bool = True,
    mlp_ratio: int = 4,
) -> Task:
    """A byte-level GPT: 10.8 million parameters unless told otherwise."""
    require_positive(
        layers=layers,
        width=width,
        heads=heads,
        vocab=vocab,
        seq_len=seq_len,
        global_batch=global_batch,
        mlp_ratio=mlp_ratio,
    )
    require_multiple("width", width, "heads", heads)
    require_probability("dropout", dropout)
    config = GPTConfig(layers, width, heads, vocab, seq_len, dropout, bias, mlp_ratio)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab, (global_batch, seq_len + 1), generator=generator)
    batch = (tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    return Task(model=partial(GPT, config), loss=next_token_loss, batch=batch, name="gpt")

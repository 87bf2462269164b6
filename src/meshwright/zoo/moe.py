"""A transformer with a mixture of experts, after Mixtral, with two ways to route."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meshwright.errors import ModelError
from meshwright.task import Task
from meshwright.zoo.checks import require_multiple, require_one_of
from meshwright.zoo.sizes import config_of
from meshwright.zoo.text import batches

ROUTERS = ("batched", "loop")
BALANCE = 0.01  # share of the balancing loss


@dataclass(frozen=True)
class MoEConfig:
    """`hidden` is the inner width of one expert; a token goes to `top_k` of `experts`.

    `capacity` times the even share is what an expert takes of one sequence when the
    router is `batched`; what comes on top is dropped. The router `loop` drops nothing.
    """

    layers: int = 32
    width: int = 4096
    heads: int = 32
    kv_heads: int = 8
    hidden: int = 14336
    experts: int = 8
    top_k: int = 2
    capacity: float = 1.25
    router: str = "batched"
    vocab: int = 32000
    seq_len: int = 4096
    global_batch: int = 8


SIZES = {
    "tiny": MoEConfig(
        2, width=16, heads=4, kv_heads=2, hidden=24, experts=4, vocab=64, seq_len=8,
        global_batch=8,
    ),
    "small": MoEConfig(
        4, width=128, heads=8, kv_heads=4, hidden=256, experts=8, vocab=256, seq_len=64,
        global_batch=16,
    ),
    "full": MoEConfig(),
}  # fmt: skip


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def rotary(seq: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [S, width] of the angles by which positions turn."""
    steps = torch.arange(0, width, 2, device=like.device, dtype=torch.float32)
    positions = torch.arange(seq, device=like.device, dtype=torch.float32)
    angles = torch.outer(positions, 10_000.0 ** (-steps / width))
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.head_width = config.width // config.heads
        self.repeats = config.heads // config.kv_heads
        kv_width = config.kv_heads * self.head_width
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.k_proj = nn.Linear(config.width, kv_width, bias=False)
        self.v_proj = nn.Linear(config.width, kv_width, bias=False)
        self.o_proj = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, seq, _ = x.shape
        shape = (batch, seq, -1, self.head_width)
        q = turn(self.q_proj(x).view(shape).transpose(1, 2), cos, sin)
        k = turn(self.k_proj(x).view(shape).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(shape).transpose(1, 2)
        k = k.repeat_interleave(self.repeats, dim=1)
        v = v.repeat_interleave(self.repeats, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.o_proj(y.transpose(1, 2).reshape(batch, seq, -1))
        return out


class Expert(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


def route(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """From logits [..., experts]: where each token goes, and the loss that keeps experts even.

    Weights [..., top_k], and the chosen experts as ones among zeros [..., top_k, experts].
    """
    likely = logits.softmax(dim=-1)
    weights, chosen = likely.topk(top_k, dim=-1)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    experts = logits.size(-1)
    one_hot = F.one_hot(chosen, experts)
    share = one_hot.to(likely.dtype).flatten(0, -2).mean(dim=0)
    balance = experts * (share * likely.flatten(0, -2).mean(dim=0)).sum()
    return weights, one_hot, balance


class LoopMoE(nn.Module):
    """One expert after the other, each on the tokens that chose it. [B, S, D] -> [B, S, D]."""

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.top_k = config.top_k
        self.gate = nn.Linear(config.width, config.experts, bias=False)
        self.experts = nn.ModuleList(
            Expert(config.width, config.hidden) for _ in range(config.experts)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = x.view(-1, x.size(-1))
        weights, one_hot, balance = route(self.gate(tokens), self.top_k)
        out = torch.zeros_like(tokens)
        mask = one_hot.permute(2, 1, 0)  # [experts, top_k, tokens]
        for index, expert in enumerate(self.experts):
            rank, token = torch.where(mask[index])
            out.index_add_(0, token, expert(tokens[token]) * weights[token, rank, None])
        return out.view_as(x), balance


class BatchedMoE(nn.Module):
    """All experts at once on stacked weights, each with room for so many tokens of a sequence.

    Dispatch and combination are those of GShard (Lepikhin et al., 2020).
    """

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.config = config
        experts, width, hidden = config.experts, config.width, config.hidden
        self.gate = nn.Linear(width, experts, bias=False)
        self.w_gate = nn.Parameter(torch.empty(experts, width, hidden))
        self.w_up = nn.Parameter(torch.empty(experts, width, hidden))
        self.w_down = nn.Parameter(torch.empty(experts, hidden, width))
        for weight in (self.w_gate, self.w_up, self.w_down):
            nn.init.normal_(weight, std=weight.size(1) ** -0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, S, D]."""
        config = self.config
        even = x.size(1) * config.top_k / config.experts
        capacity = math.ceil(config.capacity * even)
        weights, one_hot, balance = route(self.gate(x), config.top_k)

        # The place of each choice in its expert: first choices before second ones.
        choices = one_hot.transpose(1, 2).flatten(1, 2)  # [B, kS, E]
        place = (choices.cumsum(dim=1) - 1).mul(choices).sum(dim=-1)
        place = place.view(x.size(0), config.top_k, x.size(1)).transpose(1, 2)  # [B, S, k]
        fits = (place < capacity).to(x.dtype)
        slots = F.one_hot(place.clamp(max=capacity - 1), capacity).to(x.dtype)  # [B, S, k, C]
        shares = one_hot * (weights * fits).unsqueeze(-1)  # [B, S, k, E]
        combine = torch.einsum("bske,bskc->bsec", shares, slots)
        dispatch = (combine > 0).to(x.dtype)

        taken = torch.einsum("bsec,bsd->ebcd", dispatch, x)
        hidden = F.silu(torch.einsum("ebcd,edh->ebch", taken, self.w_gate))
        hidden = hidden * torch.einsum("ebcd,edh->ebch", taken, self.w_up)
        made = torch.einsum("ebch,ehd->ebcd", hidden, self.w_down)
        return torch.einsum("bsec,ebcd->bsd", combine, made), balance


class Block(nn.Module):
    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.width)
        self.attention = Attention(config)
        self.norm2 = RMSNorm(config.width)
        self.moe = BatchedMoE(config) if config.router == "batched" else LoopMoE(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        x = x + self.attention(self.norm1(x), cos, sin)
        y, balance = self.moe(self.norm2(x))
        return x + y, balance


class MoE(nn.Module):
    """`model(ids) -> (logits [B, S, V], balancing loss)`, ids [B, S] int64."""

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width)
        self.head = nn.Linear(config.width, config.vocab, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embedding(ids)
        cos, sin = rotary(ids.size(1), self.config.width // self.config.heads, x)
        balances = []
        for block in self.blocks:
            x, balance = block(x, cos, sin)
            balances.append(balance)
        logits: Tensor = self.head(self.norm(x))
        return logits, torch.stack(balances).mean()


def balanced_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of the next token and the balancing loss; batch is [B, S] twice."""
    ids, targets = batch
    logits, balance = model(ids)
    loss: Tensor = F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))
    loss += BALANCE * balance
    return loss


def moe_task(
    size: str = "small",
    layers: int | None = None,
    width: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    hidden: int | None = None,
    experts: int | None = None,
    top_k: int | None = None,
    capacity: float | None = None,
    router: str | None = None,
    vocab: int | None = None,
    seq_len: int | None = None,
    global_batch: int | None = None,
) -> Task:
    """Next-byte prediction; `size=full` is as large as Mixtral 8x7B: 46.7 billion parameters."""
    config = config_of(
        SIZES, size, layers=layers, width=width, heads=heads, kv_heads=kv_heads, hidden=hidden,
        experts=experts, top_k=top_k, capacity=capacity, router=router, vocab=vocab,
        seq_len=seq_len, global_batch=global_batch,
    )  # fmt: skip
    require_one_of("router", config.router, ROUTERS)
    require_multiple("width", config.width, "heads", config.heads)
    require_multiple("width", config.width, "two heads", 2 * config.heads)
    require_multiple("heads", config.heads, "kv_heads", config.kv_heads)
    if config.top_k > config.experts:
        raise ModelError(
            f"top_k is {config.top_k}, but there are {config.experts} experts.",
            f"Give top_k={config.experts} or less.",
        )
    if config.capacity <= 0:
        raise ModelError(f"capacity is {config.capacity}.", "Give capacity=1.25, say.")
    text = batches(0, config.global_batch, config.seq_len, config.vocab)
    return Task(model=partial(MoE, config), loss=balanced_loss, batch=text[0], name="moe")

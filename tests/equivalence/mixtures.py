"""Looped mixtures of experts and masked losses, as users write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import meshwright as mw

VOCAB = 37


class Expert(nn.Module):
    def __init__(self, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.gelu(self.up(x)))
        return out


class Looped(nn.Module):
    """A layer of experts between an embedding and a head; `style` is how it picks tokens.

    unused: experts that no token is sent to, however the router decides.
    """

    def __init__(
        self, style: str, experts: int = 4, bias: bool = True, unused: int = 0, width: int = 16
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, width)
        self.gate = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(Expert(width, 24, bias) for _ in range(experts))
        self.head = nn.Linear(width, VOCAB)
        self.style, self.unused = style, unused

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embedding(ids)
        x = hidden.reshape(-1, hidden.shape[-1])
        scores = self.gate(x)
        if self.unused:
            scores = torch.cat((scores[:, self.unused :], scores[:, : self.unused] - 1e4), 1)
        weight, chosen = scores.softmax(-1).topk(2, -1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            out = getattr(self, self.style)(out, x, weight, chosen == number, expert)
        made: Tensor = self.head((x + out).view_as(hidden))
        return made

    def where(self, out: Tensor, x: Tensor, w: Tensor, mask: Tensor, expert: Expert) -> Tensor:
        token, slot = torch.where(mask)
        out[token] += w[token, slot, None] * expert(x[token])
        return out

    def skip(self, out: Tensor, x: Tensor, w: Tensor, mask: Tensor, expert: Expert) -> Tensor:
        token, slot = torch.where(mask)
        if token.shape[0] == 0:
            return out
        return out.index_add_(0, token, w[token, slot, None] * expert(x[token]))

    def masked(self, out: Tensor, x: Tensor, w: Tensor, mask: Tensor, expert: Expert) -> Tensor:
        rows = mask.any(-1)
        if rows.any():
            out[rows] += (w * mask).sum(-1)[rows].unsqueeze(-1) * expert(x[rows])
        return out

    def nonzero(self, out: Tensor, x: Tensor, w: Tensor, mask: Tensor, expert: Expert) -> Tensor:
        rows = mask.any(-1).nonzero().squeeze(-1)
        mine = (w * mask).sum(-1).index_select(0, rows)
        return out.index_add(0, rows, mine.unsqueeze(-1) * expert(x.index_select(0, rows)))

    def select(self, out: Tensor, x: Tensor, w: Tensor, mask: Tensor, expert: Expert) -> Tensor:
        rows = mask.any(-1)
        picked = torch.masked_select(x, rows[:, None]).view(-1, x.shape[-1])
        made = (w * mask).sum(-1)[rows].unsqueeze(-1) * expert(picked)
        return out + torch.zeros_like(out).masked_scatter(rows[:, None], made)


STYLES = ("where", "skip", "masked", "nonzero", "select")


class Tagger(nn.Module):
    def __init__(self, loss: str) -> None:
        super().__init__()
        self.embedding, self.inner = nn.Embedding(36, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 36)
        self.loss = loss

    def forward(self, ids: Tensor) -> Tensor:
        made: Tensor = self.head(F.gelu(self.inner(self.embedding(ids))))
        return made


def _tagger_loss(model: Tagger, batch: tuple[Tensor, Tensor]) -> Tensor:
    ids, labels = batch
    out, mask = model(ids), labels < 12
    picked = out[mask]
    if model.loss == "cross_entropy":
        return F.cross_entropy(picked, labels[mask])
    if model.loss == "mean":
        return picked.pow(2).mean()
    if model.loss == "by_length":
        return picked.pow(2).sum() / picked.shape[0]
    if model.loss == "by_mask":
        return picked.pow(2).sum() / mask.sum()
    if model.loss == "mse":
        return F.mse_loss(picked.sum(-1), labels[mask].float())
    if model.loss == "along_rows":
        return (picked - picked.mean(0)).softmax(0).pow(2).sum()
    if model.loss == "dropout":
        return F.dropout(picked, 0.3).pow(2).sum() / 50
    assert model.loss == "assign"
    changed = out.clone()
    changed[mask] = 0.5
    changed[~mask] = changed[~mask] * 2
    return changed.pow(2).mean()


LOSSES = (
    "cross_entropy", "mean", "by_length", "by_mask", "mse", "along_rows", "dropout", "assign",
)  # fmt: skip


def _tokens(vocab: int, batch: int = 8, length: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, vocab, (2, batch, length), generator=generator)
    return ids[0], ids[1]


def looped(style: str, **options: int) -> mw.Task:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    return mw.Task(
        name=f"looped-{style}",
        model=lambda: Looped(style, **options),
        loss=loss,
        batch=_tokens(VOCAB),
    )


def tagger(loss: str) -> mw.Task:
    return mw.Task(
        name=f"tagger-{loss}", model=lambda: Tagger(loss), loss=_tagger_loss, batch=_tokens(36)
    )


def mixtral(layers: int = 1) -> mw.Task:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
        max_position_embeddings=64, use_cache=False, attn_implementation="sdpa",
    )  # fmt: skip
    return mw.Task(
        name="mixtral",
        model=lambda: MixtralForCausalLM(config),
        loss=lambda model, batch: model(input_ids=batch, labels=batch).loss,
        batch=_tokens(64)[0],
    )

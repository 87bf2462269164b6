"""Cases of attention: causal, masked, of other keys than queries; lengths that stripe and not.

Every case comes forward and backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rules.rule_cases import CASES, Case, aten, normal

_forward = aten._scaled_dot_product_flash_attention_for_cpu.default
_NAME = "_scaled_dot_product_flash_attention_for_cpu"


@dataclass(frozen=True)
class Attention:
    """Sizes [batch, heads, queries, width], and what queries may see of the keys."""

    note: str
    queries: int
    keys: int | None = None
    heads: int = 3
    causal: bool = False
    mask: tuple[int, ...] | None = None
    boolean: bool = False
    scale: float | None = None

    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = {} if self.scale is None else {"scale": self.scale}
        if self.mask is not None:
            options["attn_mask"] = self._mask(self.mask)
        return options

    def _mask(self, shape: tuple[int, ...]) -> Tensor:
        if not self.boolean:
            return normal(*shape)
        mask = torch.rand(shape) < 0.6
        mask[..., 0] = True
        mask[..., min(1, shape[-2] - 1), :] &= shape[-2] == 1  # a row that sees nothing
        return torch.zeros(shape).masked_fill_(~mask, -torch.inf)  # as PyTorch hands it on

    def operands(self) -> tuple[Tensor, Tensor, Tensor]:
        keys = self.queries if self.keys is None else self.keys
        return (
            normal(2, self.heads, self.queries, 4),
            normal(2, self.heads, keys, 4),
            normal(2, self.heads, keys, 4),
        )


ATTENTION = (
    Attention("of eight, causal", 8, causal=True),
    Attention("of six, causal and scaled", 6, causal=True, scale=0.3),
    Attention("of five, causal", 5, heads=2, causal=True),
    Attention("of two, causal", 2, heads=2, causal=True),
    Attention("of eight", 8, heads=2),
    Attention("of seven", 7, heads=2),
    Attention("rows and columns masked", 6, heads=2, mask=(2, 2, 6, 6)),
    Attention("conditions of rows and columns", 6, heads=2, mask=(2, 1, 6, 6), boolean=True),
    Attention("keys padded", 6, heads=2, mask=(2, 1, 1, 6), boolean=True),
    Attention("one mask for all", 4, heads=2, mask=(4, 4)),
    Attention("more keys than queries", 4, keys=6, heads=2),
    Attention("fewer keys, masked", 6, keys=4, heads=2, mask=(2, 2, 6, 4)),
    Attention("more keys than queries, causal", 4, keys=6, heads=2, causal=True),
)


def forward(given: Attention) -> Case:
    torch.manual_seed(given.queries)
    query, key, value = given.operands()
    return Case(
        f"{_NAME}.default", (query, key, value, 0.0, given.causal), given.options(), given.note
    )


def backward(given: Attention) -> Case:
    torch.manual_seed(given.queries)
    query, key, value = given.operands()
    options = given.options()
    output, logsumexp = _forward(query, key, value, 0.0, given.causal, **options)
    gradient = normal(*output.shape)
    arguments = (gradient, query, key, value, output, logsumexp, 0.0, given.causal)
    return Case(f"{_NAME}_backward.default", arguments, options, given.note)


for _given in ATTENTION:
    CASES[f"aten.{_NAME}.default"].append(lambda given=_given: forward(given))
    CASES[f"aten.{_NAME}_backward.default"].append(lambda given=_given: backward(given))

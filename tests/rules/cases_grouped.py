"""Cases of products of groups of rows. Sizes are such that parts are whole 16 bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from rules.rule_cases import case, normal


def offsets() -> Tensor:
    """Where groups end: the second has no rows."""
    return torch.tensor([4, 4, 13, 16], dtype=torch.int32)


case("_grouped_mm.default", lambda: normal(16, 24), lambda: normal(4, 24, 48), offsets, note="rows")
case(
    "_grouped_mm.default", lambda: normal(16, 24), lambda: normal(4, 48, 24).transpose(1, 2),
    offsets, note="rows, transposed",
)  # fmt: skip
case(
    "_grouped_mm.default", lambda: normal(16, 24).t(), lambda: normal(16, 48), offsets,
    note="gradient of the matrices",
)  # fmt: skip
case(
    "_grouped_mm.default", lambda: normal(4, 24, 48), lambda: normal(16, 48).t(), offsets,
    note="columns",
)  # fmt: skip
case("_grouped_mm.default", lambda: normal(6, 24, 24), lambda: normal(6, 24, 48), note="batch")

"""Cases of products of groups of rows. Halves of rows are whole 16 bytes, in bf16 too."""

from __future__ import annotations

import torch
from torch import Tensor

from rules.rule_cases import case, normal


def offsets() -> Tensor:
    """Where groups end: the second has no rows."""
    return torch.tensor([4, 4, 13, 16], dtype=torch.int32)


case("_grouped_mm.default", lambda: normal(16, 48), lambda: normal(4, 48, 32), offsets, note="rows")
case(
    "_grouped_mm.default", lambda: normal(16, 48), lambda: normal(4, 32, 48).transpose(1, 2),
    offsets, note="rows, transposed",
)  # fmt: skip
case(
    "_grouped_mm.default", lambda: normal(16, 48).t(), lambda: normal(16, 32), offsets,
    note="gradient of the matrices",
)  # fmt: skip
case(
    "_grouped_mm.default", lambda: normal(4, 48, 32), lambda: normal(16, 32).t(), offsets,
    note="columns",
)  # fmt: skip
case("_grouped_mm.default", lambda: normal(6, 48, 48), lambda: normal(6, 48, 32), note="batch")

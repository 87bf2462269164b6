"""Whether two lists of figures order things alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def rank_correlation(one: Sequence[float], other: Sequence[float], least: int = 2) -> float | None:
    """Spearman's: 1 where both order things alike. Equal values share their mean rank.

    None for fewer than `least` things, or where one side has all things equal.
    """
    if len(one) < least or len(set(one)) == 1 or len(set(other)) == 1:
        return None
    return float(np.corrcoef(_ranks(one), _ranks(other))[0, 1])


def _ranks(values: Sequence[float]) -> list[float]:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    after = np.cumsum(count)
    return [float(after[k] - (count[k] + 1) / 2) for k in place]

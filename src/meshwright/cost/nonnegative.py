"""Least squares whose coefficients are not negative, every row's relative error counted alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import nnls


def relative_fit(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> tuple[float, ...]:
    """x >= 0 that makes rows @ x nearest to `seconds`, every row's relative error counted alike.

    rows: of one length each, non-negative. Columns of zeros get 0.
    """
    a = np.array(rows, dtype=float)
    scales = a.max(axis=0)
    scales[scales == 0] = 1.0
    a = a / scales / np.array(seconds, dtype=float)[:, None]
    # Columns of one length, so that the solver's one tolerance fits all.
    lengths = np.sqrt((a**2).sum(axis=0))
    lengths[lengths == 0] = 1.0
    x, _ = nnls(a / lengths, np.ones(len(a)))
    return tuple(float(value) for value in x / lengths / scales)

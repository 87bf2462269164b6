"""Least squares whose coefficients are not negative, for a handful of unknowns.

The active-set method of Lawson and Hanson, "Solving Least Squares Problems"
(1974), chapter 23, on the normal equations.
"""

from __future__ import annotations

from collections.abc import Sequence

_TOLERANCE = 1e-10


def relative_fit(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> tuple[float, ...]:
    """x >= 0 that makes rows @ x nearest to `seconds`, every row's relative error counted alike.

    rows: of one length each, non-negative. Columns of zeros get 0.
    """
    width = len(rows[0])
    scales = [max((row[j] for row in rows), default=0.0) or 1.0 for j in range(width)]
    a = [
        [row[j] / scales[j] / second for j in range(width)]
        for row, second in zip(rows, seconds, strict=True)
    ]
    # Columns of one length, so that one tolerance fits all.
    lengths = [sum(row[j] ** 2 for row in a) ** 0.5 or 1.0 for j in range(width)]
    a = [[row[j] / lengths[j] for j in range(width)] for row in a]
    normal = [[sum(row[i] * row[j] for row in a) for j in range(width)] for i in range(width)]
    target = [sum(row[i] for row in a) for i in range(width)]
    x = _solve_nonnegative(normal, target)
    return tuple(x[j] / lengths[j] / scales[j] for j in range(width))


def _solve_nonnegative(normal: list[list[float]], target: list[float]) -> list[float]:
    width = len(target)
    x = [0.0] * width
    free: list[int] = []
    for _ in range(10 * width):
        slope = [target[i] - sum(normal[i][j] * x[j] for j in range(width)) for i in range(width)]
        bound = [i for i in range(width) if i not in free and slope[i] > _TOLERANCE]
        if not bound:
            break
        free.append(max(bound, key=lambda i: slope[i]))
        while True:
            trial = _solve(normal, target, free)
            if all(value > 0 for value in trial.values()):
                x = [trial.get(i, 0.0) for i in range(width)]
                break
            # Go towards the trial as far as nothing turns negative, and fix what is 0 there.
            share = min(
                x[i] / (x[i] - value) if x[i] != value else 0.0
                for i, value in trial.items()
                if value <= 0
            )
            x = [x[i] + share * (trial[i] - x[i]) if i in trial else 0.0 for i in range(width)]
            kept = [i for i in free if x[i] > _TOLERANCE]
            if len(kept) == len(free):  # rounding: fix the smallest
                kept.remove(min(kept, key=lambda i: x[i]))
            free = kept
            x = [x[i] if i in free else 0.0 for i in range(width)]
            if not free:
                break
    return x


def _solve(normal: list[list[float]], target: list[float], free: list[int]) -> dict[int, float]:
    """Solve for the free unknowns alone, by elimination with pivoting."""
    m = [[normal[i][j] for j in free] + [target[i]] for i in free]
    n = len(free)
    for column in range(n):
        pivot = max(range(column, n), key=lambda r: abs(m[r][column]))
        m[column], m[pivot] = m[pivot], m[column]
        if abs(m[column][column]) < 1e-14:
            m[column][column] = 1e-14  # columns that say the same: any share of them will do
        for r in range(column + 1, n):
            factor = m[r][column] / m[column][column]
            for c in range(column, n + 1):
                m[r][c] -= factor * m[column][c]
    x = [0.0] * n
    for r in reversed(range(n)):
        rest = m[r][n] - sum(m[r][c] * x[c] for c in range(r + 1, n))
        x[r] = rest / m[r][r]
    return dict(zip(free, x, strict=True))

"""Fits the few constants of accelerators on one part of published rows, and reports on the other.

    python -m benchmarks.published.fit FILE.csv [--leave-one-source-out] [--write]

Which rows are fitted on, and which first, is decided by a hash of what they say
(`summary.part_of`); only fully specified rows of A100 and H100 count. What is made small is the
sum over rows of the absolute log of predicted over measured step time, huge errors counted less
than in proportion, each source weighed by the square root of its number of rows. The constants
move on a log scale and stay within what is physically possible. The same file gives the same
values.

`--write` writes them to src/meshwright/cost/constants.json and into the tables of the docs.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from benchmarks.published.frameworks import framework_of
from benchmarks.published.predict import Predicted, predict
from benchmarks.published.rows import Row, read_rows
from benchmarks.published.settle import Unpredictable, settle
from benchmarks.published.summary import figures, hash_of, part_of

import meshwright.cost.constants as constants_module
from meshwright.cost.constants import Constants, default_constants

# Of each constant that is fitted: from what value on, and between which values. The first is
# what benchmarks of single kernels say, so that the result hangs on the rows alone.
RANGES: Mapping[str, tuple[float, float, float]] = {
    "matmul_efficiency_ampere": (0.94, 0.65, 1.0),
    "matmul_efficiency_hopper": (0.85, 0.55, 1.0),
    "attention_flash1_rate": (0.5, 0.35, 0.6),
    "tile_overhead_s": (1.5e-6, 2e-7, 4e-6),
    "memory_efficiency": (0.87, 0.7, 0.93),
    "host_launch_s": (8e-6, 4e-6, 2.5e-5),
    "link_efficiency_in_host": (0.78, 0.7, 0.82),
    "link_efficiency_across": (0.85, 0.5, 0.95),
    "overlap_slowdown": (0.2, 0.05, 0.6),
}
DOCS = Path(__file__).parents[2] / "docs" / "internals"
PAGES = (DOCS / "cost-model.md", DOCS / "published.md")
FITTED = (*RANGES, "memory_fragmentation")
_STEP = 0.04  # of a constant's log, for differences
_ROUNDS = 6
_DAMPING = 0.05  # pulls towards the values that are physically expected, in rows per unit of log
_HUGE = 0.10  # log error from which on a row counts less than in proportion to its square


def touches(name: str, row: Row) -> bool:
    """Whether a row's time can depend on a constant, so that others need no prediction."""
    if name.endswith("_ampere") and "A100" not in row.gpu:
        return False
    if name.endswith("_hopper") and "H100" not in row.gpu:
        return False
    if name.startswith("attention_") and not row.flash_attention:
        return False
    if name == "overlap_slowdown" and not framework_of(row).executor.overlap_gradients:
        return False
    return not (name == "link_efficiency_across" and (row.n_gpus or 0) <= (row.gpus_per_node or 0))


def rows_to_fit(rows: Sequence[Row]) -> list[Row]:
    """Fully specified rows of A100 and H100 with a measured step time."""
    found = []
    for row in rows:
        try:
            settled = settle(row)
        except Unpredictable:
            continue
        timed = row.step_time_s or row.tokens_per_s_per_gpu or row.derived_step_time_s
        if not settled.assumed and timed and any(kind in row.gpu for kind in ("A100", "H100")):
            found.append(row)
    return found


def log_errors(rows: Sequence[Row], constants: Constants) -> tuple[list[Predicted], np.ndarray]:
    """Natural log of predicted over measured; rows that can't be predicted are left out."""
    predicted = []
    for row in rows:
        try:
            predicted.append(predict(row, constants))
        except Unpredictable:
            continue
    errors = [math.log(item.predicted_s / item.measured_s) for item in predicted if item.measured_s]
    return predicted, np.array(errors)


@dataclass(frozen=True)
class Fit:
    """Where a fit ended: log errors of `rows` at `at`, the logs of the constants `names`, and
    `slopes`, how the errors change with those."""

    names: tuple[str, ...]
    rows: tuple[Row, ...]
    at: np.ndarray
    errors: np.ndarray
    slopes: np.ndarray

    @property
    def constants(self) -> Constants:
        return _with(default_constants(), self.names, self.at)

    def without(self, source: str) -> Constants:
        """Fitted on the rows of all other sources, with errors taken as linear around here."""
        kept = [k for k, row in enumerate(self.rows) if row.source != source]
        slopes, errors = self.slopes[kept], self.errors[kept]
        weights = _weights([self.rows[k] for k in kept])
        at = self.at
        for _ in range(30):
            here = errors + slopes @ (at - self.at)
            at = at + 0.5 * (_next(self.names, at, here, slopes, weights) - at)
        return _with(default_constants(), self.names, at)


def _weights(rows: Sequence[Row]) -> np.ndarray:
    counts = Counter(row.source for row in rows)
    return np.array([counts[row.source] ** -0.5 for row in rows])


def _logs(names: Sequence[str]) -> np.ndarray:
    """Of start, least and most of each constant: [3, len(names)]."""
    return np.log([RANGES[name] for name in names]).T


def _loss(names: Sequence[str], at: np.ndarray, errors: np.ndarray, weights: np.ndarray) -> float:
    huber = _HUGE**2 * (np.sqrt(1 + (errors / _HUGE) ** 2) - 1)
    away = at - _logs(names)[0]
    return float(weights @ huber + 0.5 * _DAMPING * np.sum(away**2) * _HUGE)


def _next(
    names: Sequence[str],
    at: np.ndarray,
    errors: np.ndarray,
    slopes: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """Where the loss is least if errors are linear: a Gauss-Newton step on reweighted errors,
    within bounds; constants that come to lie on one stay there, and the others make up for it."""
    start, low, high = _logs(names)
    of_row = weights / np.sqrt(1 + (errors / _HUGE) ** 2)
    matrix = slopes.T @ (of_row[:, None] * slopes) + _DAMPING * _HUGE * np.eye(len(names))
    target = slopes.T @ (of_row * errors) + _DAMPING * _HUGE * (at - start)
    step = np.zeros(len(names))
    free = np.ones(len(names), dtype=bool)
    while free.any():
        rest = target[free] + matrix[np.ix_(free, ~free)] @ step[~free]
        step[free] = -np.linalg.solve(matrix[np.ix_(free, free)], rest)
        beyond = free & ((at + step < low) | (at + step > high))
        if not beyond.any():
            break
        step[beyond] = np.clip(at + step, low, high)[beyond] - at[beyond]
        free &= ~beyond
    return at + step


def fit(rows: Sequence[Row], say: Callable[[str], None] = lambda text: None) -> Fit:
    """Gauss-Newton steps on reweighted log errors, each halved until it helps.

    Slopes are differences at the start, corrected by each step's outcome.
    """
    constants = default_constants()
    names = tuple(name for name in RANGES if any(touches(name, row) for row in rows))
    at, _, high = _logs(names)
    first, errors = log_errors(rows, _with(constants, names, at))
    rows = [item.row for item in first if item.measured_s]
    weights = _weights(rows)

    def errors_at(point: np.ndarray, chosen: Sequence[Row] = rows) -> np.ndarray:
        return log_errors(chosen, _with(constants, names, point))[1]

    slopes = np.zeros((len(errors), len(names)))
    for column, name in enumerate(names):
        moved = at.copy()
        moved[column] += _STEP if at[column] + _STEP <= high[column] else -_STEP
        chosen = [k for k, row in enumerate(rows) if touches(name, row)]
        beside = errors_at(moved, [rows[k] for k in chosen])
        slopes[chosen, column] = (beside - errors[chosen]) / (moved[column] - at[column])
    for number in range(_ROUNDS):
        step = _next(names, at, errors, slopes, weights) - at
        before = _loss(names, at, errors, weights)
        for halving in range(4):
            tried = at + step / 2**halving
            tried_errors = errors_at(tried)
            if _loss(names, tried, tried_errors, weights) < before:
                break
        else:
            break
        gain = before - _loss(names, tried, tried_errors, weights)
        went = tried - at
        if went @ went:  # what the step did beside what was expected of it (Broyden 1965)
            slopes += np.outer(tried_errors - errors - slopes @ went, went) / (went @ went)
        at, errors = tried, tried_errors
        found = ", ".join(f"{name} {math.exp(x):.4g}" for name, x in zip(names, at, strict=True))
        off = np.median(np.abs(errors))
        say(f"round {number + 1}: median {off:.3f}, loss -{gain:.2g}; {found}")
        if gain < 2e-3 * before:
            break
    return Fit(names, tuple(rows), at, errors, slopes)


def fit_fragmentation(rows: Sequence[Row], constants: Constants) -> Constants:
    """The share of memory in use that the allocator holds beside it, by the median error of peaks.

    A peak is linear in the share, so that one prediction of each row will do.
    """
    known = []
    for row in rows:
        if row.peak_mem_gib is None:
            continue
        try:
            item = predict(row, constants)
        except Unpredictable:
            continue
        memory = item.simulation.memory
        in_use = memory["activations"] + memory["gathered"] + memory["gradients"]
        rest = item.predicted_gib - memory.get("allocator", 0) / 2**30
        known.append((rest / row.peak_mem_gib, in_use / 2**30 / row.peak_mem_gib))
    if not known:
        return constants

    def median_error(share: float) -> float:
        return float(np.median([abs(rest + share * part - 1) for rest, part in known]))

    best = min((k / 100 for k in range(41)), key=median_error)
    return replace(constants, memory_fragmentation=best)


def _with(constants: Constants, names: Sequence[str], point: np.ndarray) -> Constants:
    values = {name: _rounded(math.exp(x)) for name, x in zip(names, point, strict=True)}
    return replace(constants, **values)


def _rounded(value: float) -> float:
    """To four digits, so that the file holds what was used."""
    return float(f"{value:.4g}")


def write(constants: Constants) -> None:
    """Into the file of constants, one entry a line as it was, and the tables of the docs."""
    path = Path(constants_module.__file__).with_name("constants.json")
    items = json.loads(path.read_text(encoding="utf-8"))
    for item in items:
        if item["name"] in FITTED:
            item["value"] = getattr(constants, item["name"])
    lines = ",\n ".join(json.dumps(item) for item in items)
    path.write_text(f"[\n {lines}\n]\n", encoding="utf-8")
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in FITTED:
            row = f"| `{name}` | {getattr(constants, name):g} |"
            text = re.sub(rf"\| `{name}` \| [^|]+ \|", row, text)
        page.write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published.fit")
    parser.add_argument("file", metavar="FILE.csv")
    parser.add_argument("--leave-one-source-out", action="store_true")
    parser.add_argument("--rows", type=int, help="fit on so many rows, the first by their hash")
    parser.add_argument("--write", action="store_true", help="write constants.json")
    given = parser.parse_args(arguments)
    rows = rows_to_fit(read_rows(given.file)[0])
    chosen = sorted((row for row in rows if part_of(row) == "fit"), key=hash_of)[: given.rows]
    others = [row for row in rows if part_of(row) != "fit"]

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    times = fit(chosen, say)
    part = [row for row in rows if part_of(row) == "fit"]
    fitted = fit_fragmentation(part, times.constants)
    if given.write:
        write(fitted)
    found: dict[str, object] = {
        "constants": {name: getattr(fitted, name) for name in FITTED},
        "fit": figures(log_errors(chosen, fitted)[0]),
        "held_out": figures(log_errors(others, fitted)[0]),
    }
    if given.leave_one_source_out:
        left_out = {}
        for source in dict.fromkeys(row.source for row in rows):
            of_source = [row for row in rows if row.source == source]
            left_out[source] = figures(log_errors(of_source, times.without(source))[0])
        found["left_out_sources"] = left_out
    json.dump(found, sys.stdout, indent=1, allow_nan=False)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())

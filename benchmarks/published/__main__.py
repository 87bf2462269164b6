"""Prediction beside published measurements.

    python -m benchmarks.published FILE.csv [--json] [--keep RESULT.json]

FILE.csv is shaped like the published `measurements.csv` (docs/internals/published.md). Exit code
2 for a file that is no such table, and, after everything else was predicted, for rows that
contradict themselves; those are named on stderr at once.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.published.predict import Predicted, predict
from benchmarks.published.rows import Row, read_rows
from benchmarks.published.settle import Unpredictable
from benchmarks.published.show import show
from benchmarks.published.summary import kept, report

from meshwright.errors import UsageError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.published",
        description="Predict published measurements and compare.",
    )
    parser.add_argument("file", metavar="FILE.csv")
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    parser.add_argument("--keep", metavar="RESULT.json", help="write the figures in short, too")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    given = parser.parse_args(arguments)
    try:
        rows, errors = read_rows(given.file)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for broken in errors:
        print(f"error: {given.file}, {broken}", file=sys.stderr)
    predicted, skipped = predict_all(rows, quiet=given.quiet or not sys.stderr.isatty())
    skipped += [(None, broken.line, broken.message) for broken in errors]
    found = report(predicted, sorted(skipped, key=lambda item: item[1]))
    if given.keep:
        Path(given.keep).write_text(json.dumps(kept(found), indent=1) + "\n", encoding="utf-8")
    if given.json:
        json.dump(found, sys.stdout, indent=1, allow_nan=False)
        print()
    else:
        show(found)
    return 2 if errors else 0


def predict_all(
    rows: list[Row], quiet: bool = True
) -> tuple[list[Predicted], list[tuple[Row | None, int, str]]]:
    """Predictions in the file's order, and the rows that were not predicted, with the reason."""
    predicted: list[Predicted] = []
    skipped: list[tuple[Row | None, int, str]] = []
    for row in rows:
        started = time.perf_counter()
        try:
            predicted.append(predict(row))
        except Unpredictable as reason:
            skipped.append((row, row.line, str(reason)))
        if not quiet:
            seconds = time.perf_counter() - started
            print(f"\r{row.label[:60]:60} {seconds:5.1f} s", end="", file=sys.stderr)
    if not quiet:
        print(file=sys.stderr)
    return predicted, skipped


if __name__ == "__main__":
    sys.exit(main())

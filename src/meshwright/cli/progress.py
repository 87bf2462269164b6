"""Steps as they are done: a bar on a terminal, a line now and then in a file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from meshwright.cli.output import Output
from meshwright.cli.processes import Progress

_LINES = 10  # of a run that writes to a file


@contextlib.contextmanager
def step_progress(out: Output, steps: int) -> Iterator[Progress]:
    """Yields what takes the records that a training worker reports."""
    if not out.err.is_terminal:
        yield _lines(out, steps)
        return
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=out.err) as bar:
        task = bar.add_task("starting", total=steps, figures="")

        def show(record: dict[str, Any]) -> None:
            bar.update(task, description="step", advance=1, figures=_figures(record))

        yield show


def _lines(out: Output, steps: int) -> Progress:
    every = -(-steps // _LINES)
    done = 0

    def show(record: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        if done % every == 0 or done == steps:
            out.note(f"step {record['step']}: {_figures(record)}")

    return show


def _figures(record: dict[str, Any]) -> str:
    return f"loss {record['loss']:.4f}, {record['tokens_per_s']:,.0f} tokens/s"

"""Python's collector of reference cycles, held back while many objects are made that stay."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_OFTEN = 100_000  # objects that are new before the youngest are looked through
_SELDOM = 1_000


@contextmanager
def rare_collections() -> Iterator[None]:
    """Full collections are put off to the end; young objects are still looked through.

    Imports, programs and layouts make millions of small objects that stay. The collector goes
    through all of them whenever a quarter more have come, and finds nothing: a tenth of the
    time in which a model of 8B parameters is planned.
    """
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], _OFTEN) if before[0] else 0, before[1], _SELDOM)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def leave_uncollected() -> None:
    """Before the process ends: what is left goes with it, without a search for cycles.

    Python looks through all objects several times while it ends, 2 s after a plan for a model
    of 8B parameters. Exit handlers run as ever.
    """
    gc.disable()
    gc.freeze()

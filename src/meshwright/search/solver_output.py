"""Keeps a solver's own prints off standard output, where `--json` has one object alone."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_prints() -> Iterator[None]:
    """HiGHS prints some remarks from C++, past Python's streams and whatever `disp` says.

    They are written to where standard output's file descriptor goes, at the latest when C's
    buffer is flushed, so that is done here.
    """
    try:
        sys.stdout.flush()
        kept = os.dup(1)
    except (OSError, ValueError):  # there is none
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    flush = getattr(ctypes.CDLL(None), "fflush", None) if os.name == "posix" else None
    try:
        if flush is not None:
            flush(None)
        os.dup2(nowhere, 1)
        yield
    finally:
        if flush is not None:
            flush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)

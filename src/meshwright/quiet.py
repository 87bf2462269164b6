"""What PyTorch logs of errors that are raised anyway, kept back."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unlogged() -> Iterator[None]:
    """PyTorch logs a traceback of what an op on fakes raises; whoever catches it says it better.

    A filter, since importing parts of PyTorch sets its loggers' levels anew.
    """
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = _nothing in logger.filters
    logger.addFilter(_nothing)
    try:
        yield
    finally:
        if not before:
            logger.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False

"""Real text that every Python carries: the sources of its standard library."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from meshwright.errors import ModelError

SKIPPED_FOLDERS = frozenset({"__pycache__", "idle_test", "site-packages", "test", "tests"})


@cache
def stdlib_text() -> bytes:
    """The standard library's `*.py`, in order of path, without its tests: about 12 MB."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(
        (path.relative_to(root).as_posix(), path)
        for path in root.rglob("*.py")
        if SKIPPED_FOLDERS.isdisjoint(path.relative_to(root).parts)
    )
    text = b"\n".join(path.read_bytes() for _, path in files)
    if not text:
        raise ModelError(
            f"The standard library has no sources in {root}, so there is no text to train on.",
            "Use a Python that keeps its .py files, or give TokenBatches a text of your own.",
        )
    return text


class TokenBatches:
    """Random windows of a text, as bytes: `self[step] -> (ids, targets)`, [B, S] int64 each.

    A pure function of (seed, step): resuming at a step gives the batch that an
    uninterrupted run would have seen there. Iterating starts at step 0 and
    never ends. Of a vocabulary below 256, bytes are taken modulo its size.
    """

    def __init__(self, text: bytes, seed: int, batch: int, seq_len: int, vocab: int = 256) -> None:
        if len(text) <= seq_len:
            raise ModelError(
                f"The text has {len(text)} bytes, but a window needs {seq_len + 1}.",
                "Give a longer text or a smaller seq_len.",
            )
        self._text = np.frombuffer(text, dtype=np.uint8)
        self._vocab = vocab
        self._seed = seed
        self._batch = batch
        self._seq_len = seq_len

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        generator = np.random.default_rng((self._seed, step))
        starts = generator.integers(len(self._text) - self._seq_len, size=self._batch)
        windows = self._text[starts[:, None] + np.arange(self._seq_len + 1)]  # [B, S + 1]
        tokens = torch.from_numpy(windows.astype(np.int64) % self._vocab)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        step = 0
        while True:
            yield self[step]
            step += 1


def batches(seed: int, batch: int, seq_len: int, vocab: int = 256) -> TokenBatches:
    """Windows of the standard library's text."""
    return TokenBatches(stdlib_text(), seed, batch, seq_len, vocab)

"""scikit-learn's handwritten digits, as training batches."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from meshwright.errors import ModelError


@cache
def digits() -> tuple[Tensor, Tensor]:
    """(images [1797, 1, 8, 8] float32 in 0..1, labels [1797] int64)."""
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise ModelError(
            "The digits come with scikit-learn, which is not installed here.",
            "Install it (pip install scikit-learn), or train on data of your own.",
        ) from error
    bunch = datasets.load_digits()
    images = torch.from_numpy(bunch.images.astype(np.float32) / 16.0).unsqueeze(1)
    return images, torch.from_numpy(bunch.target.astype(np.int64))


class DigitBatches:
    """Random digits: `self[step] -> (images, labels)`, images [B, C, H, W], labels [B] int64.

    A pure function of (seed, step), like `TokenBatches`. Images are resized to
    `image_size` and repeated over `channels`; `flat` gives them as [B, C*H*W].
    """

    def __init__(
        self, seed: int, batch: int, image_size: int = 8, channels: int = 1, flat: bool = False
    ) -> None:
        self._images, self._labels = digits()
        self._seed = seed
        self._batch = batch
        self._image_size = image_size
        self._channels = channels
        self._flat = flat

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        generator = np.random.default_rng((self._seed, step))
        chosen = torch.from_numpy(generator.integers(len(self._labels), size=self._batch))
        images = self._images[chosen]
        if self._image_size != images.size(-1):
            size = (self._image_size, self._image_size)
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        images = images.repeat(1, self._channels, 1, 1)
        return (images.flatten(1) if self._flat else images), self._labels[chosen]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        step = 0
        while True:
            yield self[step]
            step += 1

"""Time of matrix products on an accelerator: tiles in waves over its multiprocessors.

A product is cut into tiles of one of a few shapes, each a multiprocessor's work
for one wave; a wave that is not full costs as much as a full one. A tile loses
the time that its borders take to load beside the arithmetic, and a fixed time to
begin and end (NVIDIA, "Matrix Multiplication Background User's Guide"). The
library picks the shape, and in how many parts the depth is cut, by the time.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product as every
from math import ceil, log2, prod

import numpy as np

from meshwright.cost.constants import Constants
from meshwright.cost.hardware import Hardware
from meshwright.cost.products import Product

# Shapes that cuBLAS has kernels of; each may be turned around.
_TILES = ((256, 128), (128, 128), (128, 64), (64, 64), (64, 32), (32, 16))
_DEPTH_CUTS = (1, 2, 4, 8, 16, 32)

# Tensor cores want 16 bytes in a row.
_ROW_BYTES = 16


def product_seconds(
    product: Product, dtype: str, item_bytes: int, hardware: Hardware, constants: Constants
) -> float:
    """Seconds of the arithmetic, launch and reading of operands left out."""
    efficiency = constants.matmul_efficiency(hardware.architecture)
    rate = hardware.peak(dtype) * efficiency * hardware.sustained
    if hardware.on_tensor_cores(dtype):
        aligned = alignment_rate(product, item_bytes, constants)
        if product.batch == 1:
            rate *= aligned
        elif aligned < 1:  # no kernel of strided batches takes such operands to tensor cores
            rate = hardware.peak("float32") * efficiency * hardware.sustained
    units = hardware.units
    memory = hardware.memory_bytes_per_s * constants.memory_efficiency
    best = float("inf")
    for long, short in _TILES:
        share = 1 / (1 + constants.tile_side_loss * (1 / long + 1 / short))
        step_s = 2.0 * long * short * units / (rate * share)
        for rows, columns in ((long, short), (short, long)) if long != short else ((long, short),):
            tiles = ceil(product.m / rows) * ceil(product.n / columns) * product.batch
            for cuts in _DEPTH_CUTS:
                if cuts > 1 and tiles >= units:
                    break
                tile_s = ceil(product.k / cuts) * step_s + constants.tile_overhead_s
                seconds = ceil(tiles * cuts / units) * tile_s
                if cuts > 1:  # partial sums in fp32 are written and read once more
                    partial = 2 * 4 * product.m * product.n * product.batch * cuts
                    seconds += partial / memory + constants.kernel_launch_s
                best = min(best, seconds)
    return best


def alignment_rate(product: Product, item_bytes: int, constants: Constants) -> float:
    """Part of the rate that is left where sides are no multiples of 16 bytes.

    Strides are not known here, so every side counts that may lie along memory.
    """
    wanted = max(_ROW_BYTES // max(item_bytes, 1), 1)
    fit = wanted
    for side in (product.m, product.n, product.k):
        if side > 1:
            fit = min(fit, side & -side)
    return float(constants.unaligned_matmul_rate ** log2(wanted / fit)) if fit < wanted else 1.0


def least_product_seconds(
    product: Product,
    dtype: str,
    item_bytes: int,
    hardware: Hardware,
    constants: Constants,
    ways: int,
    scaled: bool = False,
) -> float:
    """The least `product_seconds` of the part that one of `ways` devices has of a product.

    Over all ways of dividing the batch, the sides and the depth; one that is cut counts as
    aligned, since cuts of parts of a dim may leave any multiple. scaled: without what a whole
    product costs beside its arithmetic, so that it holds for part of a product, too.
    """
    efficiency = constants.matmul_efficiency(hardware.architecture)
    rate = hardware.peak(dtype) * efficiency * hardware.sustained
    units = hardware.units
    shapes = np.array([shape for tile in _TILES for shape in {tile, tile[::-1]}], dtype=float)
    share = 1 / (1 + constants.tile_side_loss * (1 / shapes[:, 0] + 1 / shapes[:, 1]))
    if scaled:
        return float(product.flops / ways / (rate * share.max()))
    divided = _divided(ways)
    sides = np.array((product.batch, product.m, product.n, product.k), dtype=float)
    parts, cut = np.ceil(sides / divided), divided > 1
    speed = np.full(len(parts), rate)
    if hardware.on_tensor_cores(dtype):
        speed = speed * _alignment(product, cut, item_bytes, constants)
        if product.batch > 1:
            plain = hardware.peak("float32") * efficiency * hardware.sustained
            speed = np.where(speed < rate, plain, rate)
            speed = np.where(cut[:, 0], rate, speed)
    batch, m, n, k = (parts[:, column, None, None] for column in range(4))
    tiles = np.ceil(m / shapes[:, 0, None]) * np.ceil(n / shapes[:, 1, None]) * batch
    cuts = np.array(_DEPTH_CUTS, dtype=float)
    step_s = 2.0 * (shapes.prod(axis=1) * units / share)[:, None] / speed[:, None, None]
    tile_s = np.ceil(k / cuts) * step_s + constants.tile_overhead_s
    seconds = np.ceil(tiles * cuts / units) * tile_s
    memory = hardware.memory_bytes_per_s * constants.memory_efficiency
    seconds = seconds + np.where(
        cuts > 1, 8 * m * n * batch * cuts / memory + constants.kernel_launch_s, 0.0
    )
    return float(seconds.min())


def _alignment(
    product: Product, cut: np.ndarray, item_bytes: int, constants: Constants
) -> np.ndarray:
    """For each way of cutting [batch, m, n, k]: the rate that the uncut sides leave."""
    rates = [
        alignment_rate(
            Product(*(1 if c else side for c, side in zip(row[1:], product[:3], strict=True))),
            item_bytes,
            constants,
        )
        for row in cut
    ]
    return np.array(rates)


@lru_cache(maxsize=64)
def _divided(ways: int) -> np.ndarray:
    """Every way to write `ways` as a product of four: parts of batch, m, n and k."""
    divisors = [number for number in range(1, ways + 1) if ways % number == 0]
    found = [
        (ways // prod(three), *three)
        for three in every(divisors, repeat=3)
        if ways % prod(three) == 0
    ]
    return np.array(found, dtype=float)

"""Time of fused attention on an accelerator.

Products run on tensor cores at the kernel's own efficiency; beside them every
score costs exponentials that are not hidden. That makes the known dependence on
the head's size: FLOP/s = 1 / (a / d + b). Blocks of queries are the tiles; a
causal mask skips whole blocks of keys. See Dao et al. 2022, Dao 2023 and Shah et
al. 2024 (FlashAttention 1 to 3).
"""

from __future__ import annotations

from math import ceil

from meshwright.cost.constants import Constants
from meshwright.cost.flops import Attention
from meshwright.cost.hardware import AttentionKernel, Hardware
from meshwright.program.types import ITEM_BYTES

_BLOCK = 128
# Products of the backward, beside the forward's one by each of `d` and `dv`.
_BACKWARD_PRODUCTS = 2.5


def attention_seconds(
    attention: Attention,
    dtype: str,
    kernel: AttentionKernel,
    hardware: Hardware,
    constants: Constants,
) -> float:
    """Seconds of the kernels' work, launches and the reading of operands left out."""
    item = attention
    if not item.heads or not item.queries or not item.keys:
        return 0.0
    efficiency = constants.attention_efficiency(hardware.architecture, item.backward, kernel)
    rate = hardware.peak(dtype) * efficiency * hardware.sustained
    flops = 2.0 * item.width * (_BACKWARD_PRODUCTS if item.backward else 1.0)
    exponentials = (
        constants.exponentials_per_score_backward
        if item.backward
        else constants.exponentials_per_score_forward
    )
    score_s = flops / rate + exponentials / (hardware.special_per_s * hardware.sustained)
    tiles = item.heads * ceil(item.queries / _BLOCK)
    # Of one query block, over all keys.
    tile_s = min(_BLOCK, item.queries) * item.keys * score_s * hardware.units
    waves = ceil(tiles / hardware.units)
    if item.causal:
        # Tiles differ in length, so that short ones fill the gaps; the longest is the least.
        seconds = max(tile_s * _unmasked(item.keys) * tiles / hardware.units, tile_s)
    else:
        seconds = waves * tile_s
    seconds += waves * constants.tile_overhead_s
    if item.backward:  # kernels before and after: row sums of the output, the query's gradient
        numel = item.heads * item.queries * item.width // 2
        moved = numel * (2 * ITEM_BYTES.get(dtype, 2) + 3 * 4)
        seconds += moved / (hardware.memory_bytes_per_s * constants.memory_efficiency)
        seconds += 2 * constants.kernel_launch_s
    return seconds


def _unmasked(keys: int) -> float:
    """Part of the keys that the blocks of a causal mask leave to the queries, on average."""
    whole, rest = divmod(keys, _BLOCK)
    seen = _BLOCK * whole * (whole + 1) / 2 + (keys if rest else 0)
    return seen / (keys * ceil(keys / _BLOCK))

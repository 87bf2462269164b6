"""The few fitted constants of accelerators' costs, one file for all of them.

`constants.json` holds name, value, unit and meaning of each. None belongs to a
model, a source or a measurement; those that differ by architecture do so for a
physical reason, such as a clock that falls under load. Whoever fits them makes
a `Constants` of their own with `dataclasses.replace` and passes it on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from typing import NamedTuple

_FILE = files("meshwright.cost") / "constants.json"

_LIKE = {"ada": "ampere", "blackwell": "hopper"}


class Entry(NamedTuple):
    """One constant as its file describes it."""

    name: str
    value: float
    unit: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Constants:
    """Values by name; `constants.json` says what each means. `_s` are seconds."""

    matmul_efficiency_volta: float
    matmul_efficiency_ampere: float
    matmul_efficiency_hopper: float
    matmul_efficiency_other: float
    tile_side_loss: float
    tile_overhead_s: float
    unaligned_matmul_rate: float
    attention_forward_efficiency_volta: float
    attention_forward_efficiency_ampere: float
    attention_forward_efficiency_hopper: float
    attention_backward_efficiency_volta: float
    attention_backward_efficiency_ampere: float
    attention_backward_efficiency_hopper: float
    attention_forward_efficiency_flash3: float
    attention_backward_efficiency_flash3: float
    attention_flash1_rate: float
    exponentials_per_score_forward: float
    exponentials_per_score_backward: float
    convolution_efficiency: float
    recurrent_efficiency: float
    memory_efficiency: float
    reduction_efficiency: float
    indexing_efficiency: float
    kernel_launch_s: float
    host_launch_s: float
    link_efficiency_in_host: float
    link_efficiency_across: float
    in_network_efficiency: float
    transfer_efficiency: float
    collective_launch_s: float
    hop_latency_in_host_s: float
    hop_latency_across_s: float
    overlap_slowdown: float
    memory_fragmentation: float

    def matmul_efficiency(self, architecture: str | None) -> float:
        kind = _LIKE.get(architecture or "", architecture)
        if kind in ("volta", "ampere", "hopper"):
            return float(getattr(self, f"matmul_efficiency_{kind}"))
        return self.matmul_efficiency_other

    def attention_efficiency(
        self, architecture: str | None, backward: bool, kernel: str = "flash2"
    ) -> float:
        """Of the products in fused attention; `flash3` where there is one, else the one before."""
        kind = _LIKE.get(architecture or "", architecture)
        kind = kind if kind in ("ampere", "hopper") else "volta"
        if kernel == "flash3" and kind == "hopper":
            kind = kernel
        way = "backward" if backward else "forward"
        efficiency = float(getattr(self, f"attention_{way}_efficiency_{kind}"))
        return efficiency * (self.attention_flash1_rate if kernel == "flash1" else 1.0)


def entries() -> tuple[Entry, ...]:
    """All constants of the file, in its order."""
    return tuple(Entry(**item) for item in json.loads(_FILE.read_text(encoding="utf-8")))


@cache
def default_constants() -> Constants:
    """The file's values. Raises ValueError where it lacks one, holds another, or one is no more
    than 0."""
    values = {entry.name: float(entry.value) for entry in entries()}
    expected = {field.name for field in fields(Constants)}
    if wrong := expected ^ values.keys():
        raise ValueError(f"cost/constants.json lacks or has too many: {', '.join(sorted(wrong))}")
    if bad := [name for name, value in values.items() if not 0 < value < float("inf")]:
        raise ValueError(f"cost/constants.json: not above 0: {', '.join(bad)}")
    return Constants(**values)

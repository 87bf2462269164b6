"""Time of a module that runs as it is, from what was counted when it was run while planning."""

from __future__ import annotations

from meshwright.program.types import Op
from meshwright.rules.opaque import BYTES, FLOPS, LAUNCHES


def counted(op: Op) -> tuple[float, float, int]:
    """FLOPs, bytes read and written, and ops launched by one call; zeros where not counted."""
    flops, nbytes, launches = (op.args[position] for position in (FLOPS, BYTES, LAUNCHES))
    assert isinstance(flops, (int, float)) and isinstance(nbytes, (int, float))
    assert isinstance(launches, int)
    return float(flops), float(nbytes), launches

"""Collectives of a backward that can run beside the ops which make weight gradients.

As Megatron-LM does it: once the gradient of an op's input is made, its collective
starts, and the gradient of the op's weight, which nothing in the backward waits for,
is computed meanwhile. What follows from the flow of data alone is counted: an op on
the way to other blocks waits for what it needs, and ops that lead to weights fill
the time in which it waits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from meshwright.program.types import Op


def hidden_seconds(
    ops: Sequence[Op],
    operands: Mapping[str, Sequence[str]],
    seconds: Mapping[str, float],
    collectives: Collection[str],
    to_weights: Collection[str],
) -> float:
    """Seconds by which one block's backward is shorter than its ops one after another.

    ops: without those that gather parameters or reduce their gradients. operands,
    seconds: by op name. collectives, to_weights: names of ops.
    """
    there: dict[str, float] = {}  # when a value is there
    now = communicating = waiting = total = 0.0
    for op in ops:
        took = seconds[op.name]
        total += took
        ready = max((there.get(name, 0.0) for name in operands[op.name]), default=0.0)
        if op.name in collectives:
            communicating = end = max(communicating, ready) + took
        elif op.name in to_weights:
            waiting += took
            end = max(now, ready)
        else:
            gap = max(0.0, ready - now)
            waiting -= min(gap, waiting)
            now = end = now + gap + took
        there.update((name, end) for name in op.results if name is not None)
    return max(0.0, total - max(now + waiting, communicating))

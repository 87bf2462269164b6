"""Time of an op by the constants that were fitted to this machine's own measurements."""

from __future__ import annotations

from collections.abc import Sequence

from meshwright.cluster.types import Fitted
from meshwright.cost.terms import Work, terms
from meshwright.errors import ClusterError

# Stands for the ops of families that no probe is of.
ANY = "pointwise"


def fitted_seconds(work: Work, fitted: Fitted) -> float:
    """Seconds by the clock of one op, while all processes of the machine run."""
    constants = constants_of(work, fitted)
    seconds = dot(constants, terms(work, fitted.cache_bytes))
    if not work.streams and work.dtype in fitted.dtype_time:
        launch = constants[0]
        seconds = launch + (seconds - launch) * fitted.dtype_time[work.dtype]
    return seconds * fitted.contention


def constants_of(work: Work, fitted: Fitted) -> Sequence[float]:
    """By key, else by family, else those of pointwise ops."""
    for key in (work.key, work.family, work.family.removesuffix("_backward")):
        if key in fitted.ops:
            return fitted.ops[key]
    if work.streams and ANY in fitted.ops:
        return fitted.ops[ANY]
    raise ClusterError(
        f"The profile has no constants for the ops of the family {work.family}",
        "Measure the machine again with `meshwright calibrate`.",
    )


def streamed_seconds(nbytes: float, fitted: Fitted) -> float:
    """One pointwise op that reads and writes `nbytes` in all."""
    return fitted_seconds(Work("add", ANY, (nbytes,), "float32"), fitted)


def opaque_seconds(flops: float, nbytes: float, launches: int, fitted: Fitted) -> float:
    """A module that runs as it is: its products, and the rest of its bytes streamed."""
    launch = fitted.ops[ANY][0] * fitted.contention
    per_mac = fitted.ops["matmul"][2] if "matmul" in fitted.ops else 0.0
    moved_s = max(streamed_seconds(nbytes, fitted) - launch, 0.0)
    return launches * launch + max(flops / 2 * per_mac * fitted.contention, moved_s)


def optimizer_tensor_seconds(name: str, nbytes: float, fitted: Fitted) -> float:
    """One parameter's step by an optimizer that was timed."""
    beyond = max(nbytes - fitted.cache_bytes, 0.0)
    return fitted.contention * dot(fitted.optimizers[name], (1.0, nbytes, beyond))


def dot(constants: Sequence[float], amounts: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(constants, amounts, strict=True))

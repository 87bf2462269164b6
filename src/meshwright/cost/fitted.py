"""Time of an op by the constants that were fitted to this machine's own measurements."""

from __future__ import annotations

from collections.abc import Sequence

from meshwright.cluster.types import Fitted
from meshwright.cost.terms import Work, terms
from meshwright.errors import ClusterError

# Stands for the ops of families that no probe is of.
ANY = "pointwise"
# Which of the constants of products is that of a multiply-add.
_PER_MAC = 2


def fitted_seconds(work: Work, fitted: Fitted) -> float:
    """Seconds by the clock of one op, while all processes of the machine run."""
    constants = constants_of(work, fitted)
    amounts = terms(work, fitted.cache_bytes)
    if len(constants) != len(amounts):
        raise _short(_key_of(work, fitted), len(constants), len(amounts))
    seconds = dot(constants, amounts)
    if not work.streams and work.dtype in fitted.dtype_time:
        launch = constants[0]
        seconds = launch + (seconds - launch) * fitted.dtype_time[work.dtype]
    return seconds * fitted.contention


def constants_of(work: Work, fitted: Fitted) -> Sequence[float]:
    """By key, else by family, else those of pointwise ops."""
    return fitted.ops[_key_of(work, fitted)]


def _key_of(work: Work, fitted: Fitted) -> str:
    for key in (work.key, work.family, work.family.removesuffix("_backward")):
        if key in fitted.ops:
            return key
    if work.streams and ANY in fitted.ops:
        return ANY
    raise ClusterError(
        f"The profile has no constants for the ops of the family {work.family}",
        "Measure the machine again with `meshwright calibrate`.",
    )


def _short(key: str, count: int, needed: int) -> ClusterError:
    return ClusterError(
        f"The profile's field fitted.ops.{key} has {count} constants; {needed} are needed",
        "Measure the machine again with `meshwright calibrate`.",
    )


def streamed_seconds(nbytes: float, fitted: Fitted) -> float:
    """One pointwise op that reads and writes `nbytes` in all."""
    return fitted_seconds(Work("add", ANY, (nbytes,), "float32"), fitted)


def opaque_seconds(flops: float, nbytes: float, launches: int, fitted: Fitted) -> float:
    """A module that runs as it is: its products, and the rest of its bytes streamed."""
    launch = constants_of(Work("add", ANY, (nbytes,), "float32"), fitted)[0] * fitted.contention
    products = fitted.ops.get("matmul", ())
    if len(products) <= _PER_MAC:
        raise _short("matmul", len(products), _PER_MAC + 1)
    per_mac = products[_PER_MAC]
    moved_s = max(streamed_seconds(nbytes, fitted) - launch, 0.0)
    return launches * launch + max(flops / 2 * per_mac * fitted.contention, moved_s)


def optimizer_tensor_seconds(name: str, nbytes: float, fitted: Fitted) -> float:
    """One parameter's step by an optimizer that was timed."""
    beyond = max(nbytes - fitted.cache_bytes, 0.0)
    return fitted.contention * dot(fitted.optimizers[name], (1.0, nbytes, beyond))


def dot(constants: Sequence[float], amounts: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(constants, amounts, strict=True))

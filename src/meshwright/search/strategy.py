"""Strategies by name: `data`, `zero=3`, `data=2,tensor=2,zero=1`, `auto`…"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from types import MappingProxyType
from typing import TypeVar, get_args

from meshwright.cluster.mesh import Mesh
from meshwright.errors import StrategyError
from meshwright.plan.types import STAGE, Pipeline, Recompute, Schedule

# Outermost first.
AXES = ("stage", "idle", "replica", "data", "context", "spatial", "edge", "expert", "tensor")
ATTENTION = ("gather", "ring")
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
RECOMPUTE: tuple[Recompute, ...] = get_args(Recompute)
NAMES = (
    *AXES, "sequence", "tables", "attention", "zero", "microbatches", "virtual", "schedule",
    "recompute", "auto",
)  # fmt: skip
_LATER = ("offload",)

_Word = TypeVar("_Word", bound=str)


@dataclass(frozen=True, slots=True)
class Strategy:
    """What the user fixed; None is left to the search or to a default.

    axes: sizes of the mesh's axes; 0 takes what the other axes leave.
    sequence: between tensor-parallel parts, activations lie cut along the sequence.
    tables: large tables that are looked up in are cut over the data axis (and replica).
    attention: how attention over a context axis gets its keys and values.
    virtual, schedule: of a stage axis: pieces of the model a stage, and their order.
    recompute: what the backward computes again.
    """

    text: str
    axes: Mapping[str, int]
    zero: int | None = None
    microbatches: int | None = None
    auto: bool = False
    sequence: bool = False
    attention: str | None = None
    virtual: int = 1
    schedule: Schedule | None = None
    recompute: Recompute = "none"
    tables: bool = False


def parse_strategy(text: str) -> Strategy:
    """Raises StrategyError, naming the part that does not parse."""
    axes: dict[str, int] = {}
    zero: int | None = None
    microbatches: int | None = None
    auto = sequence = tables = False
    attention: str | None = None
    virtual = 1
    schedule: Schedule | None = None
    recompute: Recompute = "none"
    seen: set[str] = set()
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name in seen:
            raise StrategyError(f"The strategy '{text}' names '{name}' twice.", "Name it once.")
        seen.add(name)
        if name == "auto" and not value:
            auto = True
        elif name == "sequence" and "=" not in part:
            sequence = True
        elif name == "tables" and "=" not in part:
            tables = True
        elif name == "attention" and value in ATTENTION:
            attention = value
        elif name == "attention":
            raise StrategyError(
                f"The strategy '{text}' asks for '{part.strip()}'; attention over a context axis "
                f"is one of {', '.join(ATTENTION)}.",
                "Write it as in context=4,attention=ring, or leave the choice to the planner.",
            )
        elif name == "schedule":
            schedule = _one_of(text, part, value, SCHEDULES, "schedule=1f1b")
        elif name == "recompute":
            recompute = _one_of(text, part, value, RECOMPUTE, "recompute=full")
        elif name == "virtual":
            virtual = _number(text, part, value, at_least=1)
        elif name in AXES:
            axes[name] = _number(text, part, value, at_least=1) if "=" in part else 0
        elif name == "zero":
            zero = _number(text, part, value, at_least=0)
            if zero > 3:
                raise StrategyError(
                    f"The strategy '{text}' asks for zero={zero}; stages are 0, 1, 2 and 3.",
                    "zero=1 shards the optimizer's state, 2 gradients as well, 3 parameters too.",
                )
        elif name == "microbatches":
            microbatches = _number(text, part, value, at_least=1)
        elif name in _LATER:
            raise StrategyError(
                f"The strategy '{text}' asks for '{name}', which this version can't run yet.",
                f"Compose one of {', '.join(NAMES)}.",
            )
        else:
            raise StrategyError(
                f"The strategy '{text}' has a part '{part.strip()}' that means nothing here.",
                _suggest(name),
            )
    for given, needs, example in _NEEDS:
        if given in seen and needs not in axes:
            raise StrategyError(
                f"The strategy '{text}' has '{given}' without a {needs} axis, where it would act.",
                f"Add one, as in {needs}=4,{example}.",
            )
    if tables and auto:
        raise StrategyError(
            f"The strategy '{text}' asks for tables beside auto, which decides on them itself.",
            "Leave out tables, or name the strategy in full, as in data=16,tables.",
        )
    if virtual > 1 and schedule not in (None, "interleaved"):
        raise StrategyError(
            f"The strategy '{text}' gives each stage {virtual} pieces of the model, which the "
            f"schedule {schedule} can't order.",
            "Use schedule=interleaved, or leave out virtual.",
        )
    if schedule == "interleaved" and virtual == 1:
        raise StrategyError(
            f"The strategy '{text}' interleaves the pieces of a stage, but each has one.",
            "Say how many, as in stage=4,virtual=2,schedule=interleaved.",
        )
    return Strategy(
        text, axes, zero, microbatches, auto, sequence, attention, virtual, schedule, recompute,
        tables,
    )  # fmt: skip


_NEEDS = (
    ("sequence", "tensor", "sequence"),
    ("attention", "context", "attention=ring"),
    ("schedule", "stage", "schedule=1f1b"),
    ("virtual", "stage", "virtual=2"),
)


def _one_of(text: str, part: str, value: str, words: tuple[_Word, ...], example: str) -> _Word:
    for word in words:
        if word == value:
            return word
    raise StrategyError(
        f"The strategy '{text}' asks for '{part.strip()}'; known are {', '.join(words)}.",
        f"Write it as in {example}.",
    )


def _suggest(name: str) -> str:
    close = difflib.get_close_matches(name, NAMES, 1)
    guess = f"Did you mean '{close[0]}'? " if close else ""
    return f"{guess}Compose one of {', '.join(NAMES)}, as in data=2,tensor=2,zero=1."


def _number(text: str, part: str, value: str, at_least: int) -> int:
    if not value.isdecimal() or int(value) < at_least:
        raise StrategyError(
            f"The strategy '{text}' has '{part.strip()}', whose value is no whole number of at "
            f"least {at_least}.",
            "Write it as in data=2,tensor=2,zero=1.",
        )
    return int(value)


def pipeline_of(strategy: Strategy, mesh: Mesh) -> Pipeline | None:
    """The pipeline of a named strategy on its mesh, its cuts left open; None for one stage."""
    stages = dict(mesh.axes).get(STAGE, 1)
    if stages == 1:
        if strategy.virtual > 1:
            raise StrategyError(
                f"The strategy '{strategy.text}' gives pieces of the model in turn to one stage.",
                "Use two stages or more, or leave out virtual.",
            )
        return None
    schedule = strategy.schedule or ("interleaved" if strategy.virtual > 1 else "1f1b")
    return Pipeline(stages=stages, virtual=strategy.virtual, schedule=schedule)


def mesh_for(strategy: Strategy, devices: int) -> Mesh:
    """The mesh of a named strategy on `devices` devices; axes of size 1 are kept when named.

    Raises StrategyError when the sizes do not multiply to the number of devices.
    """
    axes = dict(strategy.axes)
    if (strategy.zero or strategy.tables) and "data" not in axes:
        axes["data"] = 0
    if not axes:
        axes["data"] = 0
    fixed = 1
    for size in axes.values():
        fixed *= size or 1
    open_axes = [name for name in AXES if axes.get(name) == 0]
    if devices % fixed:
        raise StrategyError(_misfit(strategy, fixed, devices), _fitting(devices))
    rest = devices // fixed
    for position, name in enumerate(open_axes):
        axes[name] = rest if position == 0 else 1
    if not open_axes and fixed != devices:
        raise StrategyError(_misfit(strategy, fixed, devices), _fitting(devices))
    if (strategy.zero or strategy.tables) and axes["data"] == 1 and devices > 1:
        part = "zero" if strategy.zero else "tables"
        raise StrategyError(
            f"The strategy '{strategy.text}' shards over the data axis, which has one device here.",
            f"Leave some devices to data, as in data=2,tensor=2,zero=1, or leave out {part}.",
        )
    return Mesh(tuple((name, axes[name]) for name in AXES if name in axes))


def _misfit(strategy: Strategy, wanted: int, devices: int) -> str:
    return (
        f"The strategy '{strategy.text}' makes a mesh of {wanted} "
        f"device{'s' if wanted > 1 else ''}, but the cluster has {devices}."
    )


def _fitting(devices: int) -> str:
    return (
        f"Choose sizes whose product is {devices}, leave one axis without a size to take the "
        "rest, or plan for another cluster."
    )


def factorisations(
    devices: int, fixed: Mapping[str, int] = MappingProxyType({})
) -> tuple[Mesh, ...]:
    """Every mesh of a data and a tensor axis over `devices` devices, most data first.

    fixed: axes that must be there, with their sizes, or 0 for any size above 1.
    """
    others = [name for name in AXES if name in fixed and name not in ("data", "tensor")]
    found = []
    for sizes in product(*(_sizes(devices, fixed[name]) for name in others)):
        taken = prod(sizes)
        if devices % taken:
            continue
        for tensor in _sizes(devices // taken, fixed.get("tensor", 0), 1):
            data = devices // taken // tensor
            if fixed.get("data", 0) not in (0, data):
                continue
            extents = {**dict(zip(others, sizes, strict=True)), "data": data, "tensor": tensor}
            found.append(Mesh(tuple((name, extents[name]) for name in AXES if name in extents)))
    return tuple(found)


def _sizes(devices: int, fixed: int, least: int = 2) -> tuple[int, ...]:
    """Sizes an axis can have: the fixed one, or every divisor from `least` on."""
    options = (fixed,) if fixed else range(least, devices + 1)
    return tuple(size for size in options if devices % size == 0)

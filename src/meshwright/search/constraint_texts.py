"""Users' constraints as they are written, and what they say before any model is looked at.

mesh data=8,tensor=8              these axes, outermost first
layout head.weight=0:tensor       dim 0 is cut over tensor
layout *.norm.*=whole             whole on every device, between steps as well
layout head.weight=whole:tensor   not cut over tensor; other axes are left open
forbid tensor                     no such axis (of more than one device)
forbid zero=3,tensor=8            not both of these together
pin vision.*=replicated           a module's parameters are whole on every device
pin embed=use                     and this is their residency
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import get_args

from meshwright.cluster.mesh import Mesh
from meshwright.errors import StrategyError
from meshwright.plan.types import STAGE, Residency
from meshwright.search.strategy import AXES, Strategy, parse_strategy

KINDS = ("mesh", "layout", "forbid", "pin")
WHOLE = "whole"
REPLICATED = "replicated"
_RESIDENCIES: tuple[str, ...] = get_args(Residency)
_CUT = re.compile(r"(-?\d+)(?:\[(\d+),(\d+)\])?:(\w+)")
_EXAMPLES = {
    "mesh": "mesh data=2,tensor=4",
    "layout": "layout head.weight=0:tensor, or layout *.norm.*=whole",
    "forbid": "forbid tensor, or forbid zero=3",
    "pin": "pin vision.*=replicated, or pin embed=use",
}


@dataclass(frozen=True)
class Cut:
    """Dim `dim` (from the end where negative), seen as [outer, extent, …], over `axis`."""

    axis: str
    dim: int
    outer: int = 1
    extent: int | None = None


@dataclass(frozen=True)
class LayoutOf:
    """How values whose name matches `pattern` lie: cut, or whole over `whole` (None: over all)."""

    text: str
    pattern: str
    cuts: tuple[Cut, ...] = ()
    whole: str | None = None


@dataclass(frozen=True)
class Forbid:
    """Parts of a strategy that must not all be there; `parts` as (name, value or empty)."""

    text: str
    parts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Pin:
    """What holds for all parameters of the modules that match: `replicated` or a residency."""

    text: str
    pattern: str
    how: str


@dataclass(frozen=True)
class Constraints:
    """What the user decided; `texts` are as written. Falsy where there is nothing."""

    texts: tuple[str, ...] = ()
    mesh: tuple[tuple[str, int], ...] = ()  # outermost first
    mesh_text: str = ""
    layouts: tuple[LayoutOf, ...] = ()
    forbid: tuple[Forbid, ...] = ()
    pins: tuple[Pin, ...] = ()
    axes: frozenset[str] = field(default=frozenset())  # that layouts cut over

    def __bool__(self) -> bool:
        return bool(self.texts)

    def narrow(self, strategy: Strategy, devices: int) -> Strategy:
        """`strategy` with the axes that are fixed here.

        Raises StrategyError, naming all that contradict, where the strategy says otherwise
        or what is fixed is forbidden.
        """
        problems: list[str] = []
        axes = dict(strategy.axes)
        taken = prod(size for _, size in self.mesh)
        if self.mesh and (devices % taken or (taken != devices and not _open(strategy, self.mesh))):
            problems.append(
                f"'{self.mesh_text}' is a mesh of {taken} devices, but the cluster has {devices}"
            )
        for axis, size in self.mesh:
            if axes.get(axis, 0) not in (0, size):
                problems.append(
                    f"'{self.mesh_text}' and the strategy '{strategy.text}' give the axis "
                    f"{axis} {size} and {axes[axis]} devices"
                )
            axes[axis] = size
        if self.mesh and taken == devices:
            for axis, size in strategy.axes.items():
                if size != 1 and axis not in dict(self.mesh):
                    problems.append(
                        f"'{self.mesh_text}' takes all {devices} devices, but the strategy "
                        f"'{strategy.text}' has an axis {axis} as well"
                    )
            problems += [
                f"'{self.mesh_text}' has no axis {cut.axis}, over which '{layout.text}' cuts"
                for layout in self.layouts
                for cut in layout.cuts
                if dict(self.mesh).get(cut.axis, 1) == 1
            ]
            axes = {name: size or 1 for name, size in axes.items()}
        if strategy.auto and not (self.mesh and taken == devices):
            for axis in AXES:
                if axis in self.axes:
                    axes.setdefault(axis, 0)
        narrowed = replace(strategy, axes=axes)
        problems += self._forbidden_from_the_start(strategy, narrowed)
        if problems:
            raise contradiction(problems)
        return narrowed

    def _forbidden_from_the_start(self, strategy: Strategy, narrowed: Strategy) -> list[str]:
        """What is forbidden although the strategy, the mesh or a layout asks for it."""
        found = []
        for item in self.forbid:
            if all(_asked(name, value, narrowed) for name, value in item.parts):
                names = [name for name, _ in item.parts]
                others = [f"'{self.mesh_text}'"] if set(names) & dict(self.mesh).keys() else []
                others += [
                    f"'{layout.text}'" for layout in self.layouts
                    if any(cut.axis in names for cut in layout.cuts)
                ]  # fmt: skip
                if not others or _in_words(strategy, names):
                    others.append(f"the strategy '{strategy.text}'")
                found.append(f"'{item.text}' forbids what {' and '.join(others)} asks for")
            elif len(item.parts) == 1:
                name, value = item.parts[0]
                against = [
                    f"'{layout.text}'" for layout in self.layouts
                    if not value and any(cut.axis == name for cut in layout.cuts)
                ] + [
                    f"'{pin.text}'" for pin in self.pins
                    if name == "zero" and pin.how in _RESIDENCIES[1:]
                    and value in ("", str(_RESIDENCIES.index(pin.how)))
                ]  # fmt: skip
                if against:
                    found.append(f"'{item.text}' forbids what {' and '.join(against)} asks for")
        return found

    def decided(self, subject: str) -> bool:
        """Whether the user, not the search, decided what a `Choice` is about."""
        words = subject.split()
        if subject == "mesh":
            return bool(self.mesh)
        if subject.startswith("cut of "):
            return any(matches(item.pattern, word) for item in self.layouts for word in words) or (
                any(
                    in_module(i.pattern, w) for i in self.pins if i.how == REPLICATED for w in words
                )
            )
        return subject.startswith("residency of ") and any(
            in_module(item.pattern, word) for item in self.pins for word in words
        )

    def ordered(self, mesh: Mesh) -> Mesh:
        """`mesh` with its axes in the order in which the user wrote them."""
        if not self.mesh:
            return mesh
        written = iter(name for name, _ in self.mesh if name in mesh.names)
        given = dict(self.mesh)
        sizes = dict(mesh.axes)
        names = [next(written) if name in given else name for name in mesh.names]
        return Mesh(tuple((name, sizes[name]) for name in names))

    def forbids_run(
        self,
        *,
        microbatches: int | None = None,
        recompute: str = "none",
        schedule: str | None = None,
        virtual: int = 1,
        held: Iterable[tuple[str, str]] = (),
    ) -> str | None:
        """The text of a constraint that forbids a candidate, or None.

        held: the parts of strategies that it has otherwise, as ("tensor", "8") and ("zero", "3").
        """
        have = {
            *held,
            *([("microbatches", str(microbatches))] if microbatches is not None else []),
            *([("recompute", recompute)] if recompute != "none" else []),
            *([("schedule", schedule)] if schedule else []),
            *([("virtual", str(virtual))] if virtual > 1 else []),
        }
        names = {name for name, _ in have}
        for item in self.forbid:
            if all((name, value) in have if value else name in names for name, value in item.parts):
                return item.text
        return None

    def singled_out(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of `names` that constraints treat unlike others alike but for a number.

        Such a parameter or value is of one layer among repeated ones: a plan must then not be
        made for one of them and copied to the rest.
        """
        layers: dict[str, list[str]] = {}
        for name in names:
            layers.setdefault(_stem(name), []).append(name)
        found: list[str] = []
        for alike in layers.values():
            held = [frozenset(self._matching(name)) for name in alike]
            if len(set(held)) > 1:
                found += [name for name, texts in zip(alike, held, strict=True) if texts]
        return tuple(found)

    def names_single_layers(self, names: Iterable[str]) -> bool:
        """Whether a plan of one layer can't stand for all; names: all that parameters have."""
        ops = [item.pattern for item in self.layouts if "/" in item.pattern]
        return any(_stem(pattern) != pattern for pattern in ops) or bool(self.singled_out(names))

    def _matching(self, name: str) -> list[str]:
        found = [item.text for item in self.layouts if matches(item.pattern, name)]
        return found + [item.text for item in self.pins if in_module(item.pattern, name)]


NONE = Constraints()


def parse(texts: Sequence[str]) -> Constraints:
    """Raises StrategyError for a text that does not parse; it says which part and why."""
    found = Constraints(texts=tuple(" ".join(text.split()) for text in texts))
    for text in found.texts:
        kind, _, rest = text.partition(" ")
        if kind not in KINDS or not rest:
            raise _unreadable(text, kind)
        if kind == "mesh":
            if found.mesh:
                raise contradiction([f"'{found.mesh_text}' and '{text}' both fix the mesh"])
            found = replace(found, mesh=_mesh(text, rest), mesh_text=text)
        elif kind == "forbid":
            found = replace(found, forbid=(*found.forbid, _forbid(text, rest)))
        elif kind == "pin":
            found = replace(found, pins=(*found.pins, _pin(text, rest)))
        else:
            layout = _layout(text, rest)
            axes = found.axes | {cut.axis for cut in layout.cuts}
            found = replace(found, layouts=(*found.layouts, layout), axes=axes)
    return found


def contradiction(problems: Sequence[str]) -> StrategyError:
    """One error for all of them."""
    alike: dict[str, list[str]] = {}
    for problem in dict.fromkeys(problems):
        alike.setdefault(_stem(problem), []).append(problem)
    shown = [
        found[0] + (f" (and {len(found) - 1} more like it)" if len(found) > 1 else "")
        for found in alike.values()
    ]
    listed = "; ".join(shown)
    named = {word for problem in shown for word in re.findall(r"'([^']+)'", problem)}
    if len(named) < 2:
        return StrategyError(f"A constraint can't be met: {listed}.", "Change it or leave it out.")
    return StrategyError(
        f"These constraints can't hold together: {listed}.",
        "Change or leave out one of those that are named together.",
    )


def matches(pattern: str, name: str) -> bool:
    """Whether a name fits a pattern in which `*` stands for anything and `?` for one character."""
    return _compiled(pattern).fullmatch(name) is not None


def in_module(pattern: str, name: str) -> bool:
    """Whether a parameter is one of a module that the pattern names, or fits it itself."""
    return matches(pattern, name) or matches(pattern + ".*", name)


@functools.lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    words = {"*": ".*", "?": "."}
    return re.compile("".join(words.get(letter, re.escape(letter)) for letter in pattern))


def _stem(name: str) -> str:
    return re.sub(r"(?:(?<=[./])|^)\d+(?=[./]|$)", "*", name)


def _mesh(text: str, rest: str) -> tuple[tuple[str, int], ...]:
    axes: dict[str, int] = {}
    for part in rest.split(","):
        name, _, size = (piece.strip() for piece in part.partition("="))
        if name not in AXES or not size.isdecimal() or int(size) < 1 or name in axes:
            raise StrategyError(
                f"The constraint '{text}' has a part '{part.strip()}', which is no axis with its "
                "size, or is there twice.",
                f"Axes are {', '.join(AXES)}; write it as in mesh data=2,tensor=4.",
            )
        axes[name] = int(size)
    if STAGE in axes and next(iter(axes)) != STAGE:
        raise StrategyError(
            f"The constraint '{text}' has the axis stage inside of others.",
            "Put stage first: stages are the outermost part of a mesh.",
        )
    return tuple(axes.items())


def _layout(text: str, rest: str) -> LayoutOf:
    pattern, _, how = (piece.strip() for piece in rest.rpartition("="))
    if how == WHOLE and pattern:
        return LayoutOf(text, pattern)
    word, _, axis = how.partition(":")
    if word == WHOLE and axis and pattern:
        return LayoutOf(text, pattern, whole=_axis(text, axis))
    found = list(_CUT.finditer(how))
    if not pattern or not found or ",".join(item[0] for item in found) != how:
        raise StrategyError(
            f"The constraint '{text}' does not say how '{pattern or rest}' lies.",
            "Write whole, whole:AXIS, DIM:AXIS as in 0:tensor, or DIM[OUTER,EXTENT]:AXIS, several "
            f"with commas: {_EXAMPLES['layout']}.",
        )
    cuts = tuple(
        Cut(
            _axis(text, item[4]), int(item[1]), int(item[2] or 1), int(item[3]) if item[3] else None
        )
        for item in found
    )
    if len({cut.axis for cut in cuts}) < len(cuts):
        raise contradiction([f"'{text}' cuts two dims over one axis"])
    return LayoutOf(text, pattern, cuts)


def _axis(text: str, name: str) -> str:
    if name in AXES and name != STAGE:
        return name
    close = difflib.get_close_matches(name, AXES, 1)
    guess = f"Did you mean '{close[0]}'? " if close and name != STAGE else ""
    raise StrategyError(
        f"The constraint '{text}' names '{name}', which is no axis that values are cut over.",
        f"{guess}Those are {', '.join(axis for axis in AXES if axis != STAGE)}.",
    )


def _forbid(text: str, rest: str) -> Forbid:
    parts = []
    for part in rest.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name == "auto":
            raise StrategyError(
                f"The constraint '{text}' forbids auto, which is how the rest is found.",
                "Name the strategy in full instead of auto.",
            )
        if name in ("zero", "recompute", "schedule", "virtual", "attention", "microbatches"):
            if value:
                example = {"schedule": "stage,", "virtual": "stage,", "attention": "context,"}
                parse_strategy(f"{example.get(name, '')}{name}={value}" if name != "virtual"
                               else f"stage,schedule=interleaved,virtual={value}")  # fmt: skip
        elif name not in ("sequence", "tables") or value:
            parse_strategy(f"{name}={value}" if value else part.strip())
        parts.append((name, value))
    return Forbid(text, tuple(parts))


def _pin(text: str, rest: str) -> Pin:
    pattern, _, how = (piece.strip() for piece in rest.rpartition("="))
    if how not in (REPLICATED, *_RESIDENCIES[1:]) or not pattern:
        raise StrategyError(
            f"The constraint '{text}' does not say what '{pattern or rest}' is pinned to.",
            f"Pin it to {REPLICATED}, {', '.join(_RESIDENCIES[1:-1])} or {_RESIDENCIES[-1]}: "
            f"{_EXAMPLES['pin']}.",
        )
    return Pin(text, pattern, how)


def _unreadable(text: str, kind: str) -> StrategyError:
    close = difflib.get_close_matches(kind, KINDS, 1)
    guess = f"Did you mean '{close[0]}'? " if close and close[0] != kind else ""
    examples = "; ".join(_EXAMPLES.values())
    return StrategyError(
        f"The constraint '{text}' means nothing here.",
        f"{guess}Begin with {', '.join(KINDS)}: {examples}.",
    )


def _open(strategy: Strategy, mesh: Sequence[tuple[str, int]]) -> bool:
    """Whether something besides the fixed axes may take devices."""
    fixed = dict(mesh)
    return strategy.auto or any(name not in fixed for name in strategy.axes) or (
        bool(strategy.zero) and "data" not in fixed
    )  # fmt: skip


def _asked(name: str, value: str, strategy: Strategy) -> bool:
    """Whether the strategy fixes the part, whatever the search will leave open."""
    if name in AXES:
        size = strategy.axes.get(name)
        asked = size is not None and size != 1
        if asked and not size and strategy.auto:
            return not value
        return asked and value in ("", str(size))
    known = {
        "zero": "" if not strategy.zero else str(strategy.zero),
        "sequence": "on" if strategy.sequence else "",
        "tables": "on" if strategy.tables else "",
        "attention": strategy.attention or "",
        "recompute": "" if strategy.recompute == "none" else strategy.recompute,
        "schedule": strategy.schedule or "",
        "virtual": str(strategy.virtual) if strategy.virtual > 1 else "",
        "microbatches": str(strategy.microbatches or ""),
    }
    have = known.get(name, "")
    return bool(have) and value in ("", have)


def _in_words(strategy: Strategy, names: Sequence[str]) -> bool:
    return any(part.partition("=")[0].strip() in names for part in strategy.text.split(","))

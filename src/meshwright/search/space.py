"""The space of a search: what can be decided for one model, and all of it decided at once.

A `Point` decides everything, at the level of classes: of groups that play the same part in
every repeated block, and of parameters that are used alike. `Space.candidate` propagates
it through the groups to a Candidate. What analysis can tell of the model (which axes have
something to cut, over how many devices, and which classes there are) is found once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from meshwright.cluster.mesh import Mesh
from meshwright.errors import StrategyError
from meshwright.layout.groups import Analysis, Group
from meshwright.plan.types import STAGE, Residency
from meshwright.program.types import Input
from meshwright.search import axis_context, axis_edge, axis_expert, axis_spatial
from meshwright.search import tables as lookups
from meshwright.search.constraints import NONE, Constraints
from meshwright.search.named import IDLE, RESIDENCY, candidate, name_of
from meshwright.search.sequence_groups import token_groups
from meshwright.search.strategy import AXES, Strategy, pipeline_of
from meshwright.search.tensor import GroupClass, chosen_classes, classes_of
from meshwright.search.types import AnalysisFor, Candidate

__all__ = [
    "IDLE", "STAGE", "STORABLE", "ClassKey", "ParameterClass", "Point", "Space",
    "parameter_classes",
]  # fmt: skip

ClassKey = tuple[str, int, int, int]
"""A class of groups by the first parameter that it cuts: path, dim, and `Split`'s outer, extent."""

# Axes over which gradients are summed, so that parameters can be stored cut over them.
STORABLE = ("data", "context", "spatial", "edge", "expert")

_SHOWN = 2  # changes that a name spells out


@dataclass(frozen=True)
class Point:
    """One decision of everything.

    mesh: axes of more than one device, outermost first. tensor: classes cut over `tensor`,
    None for those that tensor parallelism cuts. beside: classes of tables (the path of the
    first) cut along a dim over an axis that has the batch.
    zero: residency, as a ZeRO stage; kept: that of the classes of
    parameters, by number, where it is another. stored: axes that storage is cut over.
    """

    mesh: tuple[tuple[str, int], ...]
    microbatches: int = 1
    tensor: tuple[ClassKey, ...] | None = None
    sequence: bool = False
    attention: str | None = None
    zero: int = 0
    stored: tuple[str, ...] = ("data",)
    kept: tuple[tuple[int, int], ...] = ()
    beside: tuple[tuple[str, ClassKey], ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        return dict(self.mesh)

    def residency(self, number: int) -> int:
        """ZeRO stage of one class of parameters."""
        return dict(self.kept).get(number, self.zero) if self.kept else self.zero

    def keeping(self, number: int, stage: int) -> Point:
        """The same with another residency of one class."""
        kept = {**dict(self.kept), number: stage}
        if stage == self.zero:
            del kept[number]
        return replace(self, kept=tuple(sorted(kept.items())))


@dataclass(frozen=True)
class ParameterClass:
    """Parameters of one shape that are used alike, such as one of each layer.

    pattern: the first one's name with * for numbers.
    """

    number: int
    pattern: str
    items: tuple[Input, ...]
    nbytes: int  # of one
    trainable: bool

    @property
    def all_bytes(self) -> int:
        return self.nbytes * len(self.items)


class Space:
    """What is open to a strategy on so many devices."""

    def __init__(
        self,
        strategy: Strategy,
        devices: int,
        global_batch: int,
        analysis_for: AnalysisFor,
        constraints: Constraints = NONE,
    ) -> None:
        self.strategy = strategy
        self.devices = devices
        self.global_batch = global_batch
        self.analysis_for = analysis_for
        self.constraints = constraints
        self.first = analysis_for(strategy.microbatches or 1)
        self.parameters = parameter_classes(self.first)
        self._possible: dict[tuple[str, int], str] = {}
        self._classes: dict[tuple[int, int], Mapping[ClassKey, GroupClass]] = {}

    # Axes

    def problem(self, axis: str, parts: int) -> str:
        """Why `axis` can't have so many devices, in words; empty where it can."""
        found = self._possible.get((axis, parts))
        if found is None:
            try:
                self._decide(axis, parts)
                found = ""
            except StrategyError as error:
                found = error.message
            self._possible[axis, parts] = found
        return found

    def _decide(self, axis: str, parts: int) -> None:
        analysis = self.first
        if axis in ("data", "replica"):
            if self.global_batch % parts:
                raise StrategyError(
                    f"A global batch of {self.global_batch} examples is no multiple of {parts}."
                )
        elif axis == "context":
            axis_context.decisions(analysis, parts)
        elif axis == "spatial":
            axis_spatial.decisions(analysis, parts)
        elif axis == "edge":
            axis_edge.decisions(analysis, parts)
        elif axis == "expert":
            axis_expert.decisions(analysis, parts)
        elif axis == "tensor" and not chosen_classes(analysis, parts):
            raise StrategyError(f"Nothing in this model can be cut over {parts} tensor devices.")

    def sequences(self, parts: int) -> bool:
        """Whether values can lie cut along a sequence over so many devices."""
        return any(item.split.extent >= parts for item in token_groups(self.first))

    # Classes of groups

    def classes(self, parts: int, microbatches: int | None = None) -> Mapping[ClassKey, GroupClass]:
        """Classes of groups that cut a parameter into so many parts, in a stable order."""
        count = microbatches or self.strategy.microbatches or 1
        found = self._classes.get((parts, count))
        if found is None:
            analysis = self.analysis_for(count)
            found = {_key_of(analysis, item): item for item in classes_of(analysis, parts)}
            self._classes[parts, count] = found
        return found

    def usual(self, parts: int) -> tuple[ClassKey, ...]:
        """Classes that tensor parallelism over so many devices cuts."""
        return tuple(
            sorted(_key_of(self.first, item) for item in chosen_classes(self.first, parts))
        )

    def cut(self, point: Point) -> tuple[ClassKey, ...]:
        """Classes that a point cuts over `tensor`."""
        parts = point.sizes.get("tensor", 1)
        if parts == 1:
            return ()
        return self.usual(parts) if point.tensor is None else point.tensor

    # Tables

    @cached_property
    def table_classes(self) -> Mapping[str, ParameterClass]:
        """Classes of parameters that are only looked up in, by the path of the first."""
        known = lookups.tables(self.first)
        return {item.items[0].path: item for item in self.parameters if item.items[0].path in known}

    def table_key(self, path: str, dim: int) -> ClassKey:
        return path, dim, 1, lookups.tables(self.first)[path].shape[dim]

    def usual_tables(self, sizes: Mapping[str, int]) -> tuple[tuple[str, ClassKey], ...]:
        """Classes that are worth a cut over axes that have the batch, as `tables` cuts them."""
        chosen = lookups.usual(self.first, sizes, self.strategy.microbatches or 1)
        return tuple(
            sorted(
                (axis, self.table_key(path, dim))
                for path, cuts in chosen.items()
                if path in self.table_classes
                for axis, dim in cuts.items()
            )
        )

    # Candidates

    def candidate(self, point: Point, name: str | None = None) -> Candidate:
        """Raises StrategyError where the point can't be laid out."""
        analysis = self.analysis_for(point.microbatches)
        sizes = point.sizes
        groups: Sequence[Group] | None = None
        if point.tensor is not None and sizes.get("tensor", 1) > 1:
            known = self.classes(sizes["tensor"], point.microbatches)
            groups = _in_order(analysis, [known[key] for key in point.tensor])
        tables = [
            lookups.decision(analysis, item.path, axis, key[1], sizes[axis])
            for axis, key in point.beside
            for item in self.table_classes[key[0]].items
        ]
        mesh = self.mesh(point)
        strategy = self.strategy
        return candidate(
            analysis,
            mesh,
            zero=point.zero if sizes.get("data", 1) > 1 else 0,
            microbatches=point.microbatches,
            sequence=point.sequence,
            attention=point.attention,
            pipeline=pipeline_of(strategy, mesh),
            recompute=strategy.recompute,
            name=name or self.name(point),
            groups=groups,
            tables=tables or False,
            kept=self._kept(analysis, point),
            constraints=self.constraints,
        )

    def mesh(self, point: Point) -> Mesh:
        return self.constraints.ordered(Mesh(point.mesh or (("data", 1),)))

    def _kept(
        self, analysis: Analysis, point: Point
    ) -> dict[str, tuple[Residency, tuple[str, ...]]]:
        """Residencies that `zero` over data alone does not give."""
        axes = tuple(axis for axis, size in point.mesh if axis in point.stored and size > 1)
        if axes in ((), ("data",)) and not point.kept:
            return {}
        found: dict[str, tuple[Residency, tuple[str, ...]]] = {}
        for item in self.parameters:
            stage = point.residency(item.number)
            if not item.trainable and stage < 3:
                stage = 0
            for one in item.items:
                kept = RESIDENCY[stage] if axes else "always"
                found[one.path] = kept, axes if kept != "always" else ()
        return found

    def forbidden(self, made: Candidate) -> str | None:
        """The constraint that forbids how a candidate runs, in the user's words."""
        pipeline = made.pipeline
        held = [(axis, str(size)) for axis, size in made.mesh.axes if size > 1]
        return self.constraints.forbids_run(
            microbatches=made.microbatches,
            recompute=made.recompute,
            schedule=pipeline.schedule if pipeline is not None else None,
            virtual=pipeline.virtual if pipeline is not None else 1,
            held=(*held, ("zero", str(made.zero))),
        )

    def forbids_count(self, microbatches: int) -> bool:
        """Whether a constraint forbids so many microbatches."""
        said = self.constraints.forbids_run(
            microbatches=microbatches, recompute=self.strategy.recompute, schedule=None, virtual=1,
            held=(),
        )  # fmt: skip
        return said is not None

    def key(self, made: Candidate) -> Hashable:
        """What a candidate decides: equal for two that run alike."""
        return (
            tuple((axis, size) for axis, size in made.mesh.axes if size > 1),
            made.microbatches,
            tuple(
                (d.axis, d.value, d.dim, d.outer, d.extent, d.beside, d.owner, d.attention)
                for d in made.decisions
            ),
            tuple(
                (path, plan.residency, plan.storage_axes, plan.storage_dim)
                for path, plan in sorted(made.parameters.items())
            ),
            made.pipeline,
            made.recompute,
        )

    # Names

    def name(self, point: Point) -> str:
        """The strategy that a point is, with what it changes of it."""
        mesh = self.mesh(point)
        base = name_of(
            mesh, point.zero if _stores(point) else 0, point.sequence, point.attention,
            pipeline_of(self.strategy, mesh), self.strategy.recompute,
            self._tables_by_name(point),
        )  # fmt: skip
        if point.microbatches > 1:
            base += f",microbatches={point.microbatches}"
        changes = self.changes(point)
        if not changes:
            return base
        more = len(changes) - _SHOWN
        return f"{base}; {', '.join(changes[:_SHOWN])}" + (f" and {more} more" if more > 0 else "")

    def _tables_by_name(self, point: Point) -> bool:
        return bool(point.beside) and point.beside == self.usual_tables(point.sizes)

    def changes(self, point: Point) -> list[str]:
        """What a point does beside the named strategy that it starts from."""
        found = []
        order = [axis for axis, _ in point.mesh]
        usual = [axis for axis in AXES if axis in order]
        if order != usual:
            found.append(f"axes in the order {' '.join(order)}")
        axes = tuple(axis for axis, size in point.mesh if axis in point.stored and size > 1)
        if _stores(point) and axes != ("data",):
            found.append(f"stored over {' and '.join(axes)}")
        parts = point.sizes.get("tensor", 1)
        if point.tensor is not None and parts > 1:
            usual_cut = self.usual(parts)
            found += [f"{_pattern(k[0])} whole" for k in usual_cut if k not in point.tensor]
            found += [f"{_pattern(k[0])} cut" for k in point.tensor if k not in usual_cut]
        if not self._tables_by_name(point):
            found += [
                f"dim {key[1]} of {_pattern(key[0])} cut over {axis}" for axis, key in point.beside
            ]
        if axes:
            for stage in (0, 1, 2, 3):
                alike = [self.parameters[n].pattern for n, kept in point.kept if kept == stage]
                if alike:
                    named = " and ".join(alike)
                    if len(alike) > _SHOWN:
                        named = f"{alike[0]} and {len(alike) - 1} kinds more"
                    found.append(f"{named} zero={stage}")
        return found


def _stores(point: Point) -> bool:
    return any(axis in point.stored and size > 1 for axis, size in point.mesh)


def _key_of(analysis: Analysis, item: GroupClass) -> ClassKey:
    for parameter in analysis.program.inputs_of("parameter"):
        for group in item.groups:
            split = group.members.get(parameter.value)
            if split is not None:
                return parameter.path, split.dim, split.outer, split.extent
    raise AssertionError("a class of groups cuts a parameter")


def _in_order(analysis: Analysis, classes: Sequence[GroupClass]) -> tuple[Group, ...]:
    place = {name: k for k, name in enumerate(analysis.program.values)}
    groups = [group for item in classes for group in item.groups]
    return tuple(sorted(groups, key=lambda group: place[group.seed[0]]))


def _pattern(path: str) -> str:
    """A name with * for the numbers in it."""
    return re.sub(r"(?<![A-Za-z_])\d+(?![A-Za-z_])", "*", path)


def parameter_classes(analysis: Analysis) -> tuple[ParameterClass, ...]:
    """Parameters by shape and by what uses them, in the order of the Program's inputs."""
    values = analysis.program.values
    found: dict[Hashable, list[Input]] = {}
    for item in analysis.program.inputs_of("parameter"):
        value = values[item.value]
        signature = (value.shape, value.dtype, item.trainable, _uses(analysis, item.value))
        found.setdefault(signature, []).append(item)
    return tuple(
        ParameterClass(
            number,
            _pattern(items[0].path),
            tuple(items),
            values[items[0].value].nbytes,
            items[0].trainable,
        )
        for number, items in enumerate(found.values())
    )


def _uses(analysis: Analysis, name: str) -> Hashable:
    """Forward ops that take a parameter or a view of it, and in which place."""
    uses: Counter[tuple[str, int, tuple[tuple[int, ...], ...]]] = Counter()
    stack, seen = [name], {name}
    while stack:
        used = stack.pop()
        for op, _, _ in analysis.touching[used]:
            names = analysis.operands[op.name]
            if op.phase != "forward" or used not in names:
                continue
            made = op.results[0] if len(op.results) == 1 else None
            alone = len(set(names)) == 1 and made is not None and made not in seen
            if alone and made is not None and analysis.program.values[made].is_view:
                seen.add(made)
                stack.append(made)
                continue
            shapes = tuple(analysis.program.values[other].shape for other in names)
            uses[op.target, names.index(used), shapes] += 1
    return tuple(sorted(uses.items()))

"""The builder of a local program: emits ops on local shapes and converts layouts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from meshwright.cluster.mesh import Mesh
from meshwright.layout.cuts import local_cut, ordered
from meshwright.layout.transitions import Step, transition
from meshwright.layout.types import REPLICATED, Layout, Split, cuts, local_shape
from meshwright.program.types import Argument, Op, Phase, Ref, Source, Symbol, Value


@dataclass(frozen=True, slots=True)
class Whole:
    """What a local value stands for: the whole tensor's shape, and how it is cut."""

    shape: tuple[int, ...]
    layout: Layout


class Builder:
    """Collects local ops, values and layouts for the device at `coordinate`.

    `ops` is the list that is being filled; a caller swaps it to fill another
    section. Conversions are kept, so that a value is brought into a layout once.
    """

    def __init__(self, mesh: Mesh, coordinate: Mapping[str, int]) -> None:
        self.mesh = mesh
        self.coordinate = coordinate
        self.values: dict[str, Value] = {}
        self.whole: dict[str, Whole] = {}
        self.ops: list[Op] = []
        self.phase: Phase = "forward"
        self.zeros: set[str] = set()  # what is known to be all zeros on this device
        self.converted: dict[str, dict[Layout, str]] = {}  # what each value was brought into
        self._shapes: dict[tuple[tuple[int, ...], Layout], tuple[int, ...]] = {}
        self._count: dict[str, int] = {}

    def declare(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        layout: Layout = REPLICATED,
        storage: str | None = None,
    ) -> str:
        """Make a local value for a whole tensor of `shape` cut by `layout`."""
        self.values[name] = Value(name, self.local(shape, layout), dtype, storage or name)
        self.whole[name] = Whole(shape, layout)
        return name

    def local(self, shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
        if not layout.shards:
            return shape
        key = (shape, layout)
        found = self._shapes.get(key)
        if found is None:
            found = self._shapes[key] = local_shape(shape, layout, self.mesh, self.coordinate)
        return found

    def fresh(self, stem: str) -> str:
        stem = stem.split("@", 1)[0]
        count = self._count[stem] = self._count.get(stem, 0) + 1
        return f"{stem}@{count}"

    def emit(
        self,
        target: str,
        args: tuple[Argument, ...],
        shape: tuple[int, ...],
        dtype: str,
        layout: Layout,
        *,
        like: str,
        source: Source,
        kwargs: tuple[tuple[str, Argument], ...] = (),
        name: str | None = None,
        storage: str | None = None,
    ) -> str:
        """Add an op with one result, a whole tensor of `shape` cut by `layout`."""
        name = self.declare(name or self.fresh(like), shape, dtype, layout, storage)
        self.ops.append(Op(name, target, args, kwargs, (name,), False, self.phase, source))
        return name

    def fill(
        self,
        number: float,
        shape: tuple[int, ...],
        dtype: str,
        layout: Layout,
        *,
        like: str,
        source: Source,
        name: str | None = None,
        sizes: tuple[int | Ref, ...] | None = None,
    ) -> str:
        """Add a local tensor full of one number, of the part of a whole tensor of `shape`.

        sizes: its local sizes, where some are only known when the step runs.
        """
        options: tuple[tuple[str, Argument], ...] = (
            ("dtype", Symbol("dtype", dtype)),
            ("device", Symbol("device", "cpu")),
        )
        return self.emit(
            "aten.full.default", (sizes or self.local(shape, layout), number), shape, dtype, layout,
            like=like, source=source, kwargs=options, name=name,
        )  # fmt: skip

    def range(self, value: str, dim: int) -> tuple[int, int]:
        """First index and count of the whole tensor's `dim` that this device holds.

        Only for a dim that is cut in contiguous parts.
        """
        whole = self.whole[value]
        start, count = 0, whole.shape[dim]
        mine = Layout(tuple(item for item in whole.layout.shards if item[1].dim == dim))
        for split, parts, index, extent in cuts(whole.shape, mine, self.mesh, self.coordinate):
            if split.outer != 1:
                raise AssertionError(f"{value}: dim {dim} is not cut in contiguous parts")
            minor = whole.shape[dim] // split.extent
            first, held = Split(dim, 1, extent).part(index, parts)
            start, count = start + first * minor, held * minor
        return start, count

    def cuts(self, value: str) -> tuple[tuple[int, ...], ...]:
        """Cuts of a value as plain numbers: (dim, outer, extent, parts, index, remaining)."""
        whole = self.whole[value]
        return tuple(
            (split.dim, split.outer, split.extent, parts, index, remaining)
            for split, parts, index, remaining in cuts(
                whole.shape, whole.layout, self.mesh, self.coordinate
            )
        )

    def convert(self, value: str, layout: Layout, source: Source) -> str:
        """The value in `layout`, by way of the steps of `transition`."""
        if layout == self.whole[value].layout:
            return value
        layout = ordered(layout, self.mesh)
        if layout == self.whole[value].layout:
            return value
        kept = self.converted.setdefault(value, {})
        found = kept.get(layout)
        if found is None:
            found = value
            for step in transition(self.whole[value].layout, layout):
                found = self._step(found, step, source)
            kept[layout] = found
        return found

    def reached(self, value: str, layout: Layout) -> str:
        """The furthest that kept conversions have brought a value on its way to `layout`."""
        for step in transition(self.whole[value].layout, ordered(layout, self.mesh)):
            kept = self.converted.get(value, {}).get(ordered(step.after, self.mesh))
            if kept is None:
                break
            value = kept
        return value

    def settled(self, values: Iterable[str]) -> frozenset[str]:
        """Axes over which a pending sum of one of the values was reduced for an op before."""
        return frozenset(
            axis
            for value in values
            for axis, _ in self.whole[value].layout.partial
            if any(made.reduction(axis) is None for made in self.converted.get(value, ()))
        )

    def forget(self, value: str) -> None:
        """Drop kept conversions of a value, so that the next use makes them anew."""
        self.converted.pop(value, None)

    def _step(self, value: str, step: Step, source: Source) -> str:
        before = self.whole[value]
        dtype = self.values[value].dtype
        after = ordered(step.after, self.mesh)
        kept = self.converted.setdefault(value, {})
        if after in kept:
            return kept[after]
        if step.gather is not None and step.cut is not None and self._alike(before, step):
            made = self.emit(
                "aten.alias.default", (Ref(value),), before.shape, dtype, after,
                like=value, source=source, storage=self.values[value].storage,
            )  # fmt: skip
            kept[after] = made
            return made
        kwargs: dict[str, Argument] = {"axis": step.axis}
        if step.kind in ("all_reduce", "reduce_scatter"):
            kwargs["reduce"] = step.reduce
        if step.gather is not None:
            kwargs.update(self._numbers(before, step.axis, step.gather, "gather_", step.kind))
        if step.cut is not None:
            kwargs.update(self._numbers(before, step.axis, step.cut, "cut_", step.kind))
        made = self.emit(
            f"mesh.{step.kind}",
            (Ref(value),),
            before.shape,
            dtype,
            after,
            like=value,
            source=source,
            kwargs=tuple(kwargs.items()),
        )
        kept[after] = made
        return made

    def _alike(self, whole: Whole, step: Step) -> bool:
        """Whether two splits of one dim put the same parts on the same devices."""
        one, other, parts = step.gather, step.cut, self.mesh.extent(step.axis)
        assert one is not None and other is not None
        return (
            (one.dim, one.outer) == (other.dim, other.outer)
            and one.extent % parts == 0
            and other.extent % parts == 0
            and not any(
                split.dim == one.dim for axis, split in whole.layout.shards if axis != step.axis
            )
        )

    def _numbers(
        self, whole: Whole, axis: str, split: Split, prefix: str, kind: str
    ) -> dict[str, Argument]:
        """The split in local numbers; the prefix tells the two splits of all_to_all apart."""
        cut = local_cut(whole.shape, whole.layout, axis, split, self.mesh, self.coordinate)
        prefix = prefix if kind == "all_to_all" else ""
        numbers: dict[str, Argument] = {
            f"{prefix}dim": cut.dim,
            f"{prefix}outer": cut.outer,
            f"{prefix}extent": cut.extent,
            f"{prefix}minor": cut.minor,
        }
        return {**numbers, f"{prefix}shift": cut.shift} if cut.shift else numbers

"""What the lowerings of ops with cut spatial dims share: whose rows are whose, and the exchange."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meshwright.layout.halo import Range, chunks, count, rows_sent
from meshwright.layout.types import REPLICATED, Layout
from meshwright.lower.special import Site
from meshwright.program.types import Argument, Op, Ref
from meshwright.rules.types import Dims


@dataclass(frozen=True)
class RowCut:
    """One axis that cuts one dim of an op's input, of its output, or of both.

    inner, outer: the range of the input's and of the output's rows on each
        device of the axis; None where that side is not cut.
    size, made: rows of the whole input dim and of the whole output dim.
    """

    axis: str
    dim: int
    me: int
    size: int
    made: int
    inner: tuple[Range, ...] | None
    outer: tuple[Range, ...] | None

    @property
    def parts(self) -> int:
        return len(self.inner or self.outer or ())

    @property
    def wanted(self) -> tuple[Range, ...]:
        """The output's rows on each device, all of them where they are not cut."""
        return self.outer or ((0, self.made),) * self.parts


def row_cuts(
    site: Site, inner: Dims, outer: Dims, data: tuple[int, ...], made: tuple[int, ...]
) -> list[RowCut]:
    """The cuts of ranged factors among those chosen, `inner` and `outer` being dims in the rule.

    `data` and `made` are the whole shapes that go with them.
    """
    found = []
    factors = site.rule.factors
    for axis, cut in site.chosen.items():
        if factors[cut.factor].ranged is None:
            continue
        parts = site.b.mesh.extent(axis)

        def place(dims: Dims, leader: int = cut.factor) -> int | None:
            held = (k for k, dim in enumerate(dims) for f in dim if factors[f].ranged == leader)
            return next(held, None)

        left, right = place(inner), place(outer)
        dim = left if left is not None else right
        assert dim is not None, (site.op.name, cut)
        found.append(
            RowCut(
                axis, dim, site.b.coordinate[axis], data[dim], made[dim],
                None if left is None else chunks(data[dim], parts),
                None if right is None else chunks(made[dim], parts),
            )
        )  # fmt: skip
    return found


def local(
    site: Site,
    target: str,
    args: tuple[Argument, ...],
    shape: tuple[int, ...],
    dtype: str,
    kwargs: tuple[tuple[str, Argument], ...] = (),
) -> Ref:
    """An op whose result is this device's own business: `shape` is the local one."""
    return site.emit(target, args, shape, REPLICATED, dtype, kwargs)


def exchange(
    site: Site,
    x: Ref,
    cut: RowCut,
    source: Sequence[Range],
    target: Sequence[Range],
    fill: float = 0,
    whole: tuple[tuple[int, ...], Layout] | None = None,
) -> Ref:
    """`x` with the rows of `cut` brought from `source` to `target`, ranges of all devices.

    Where nobody needs anything of another, no collective runs. `whole` is the
    shape and layout of the whole tensor that comes out, if it is one.
    """
    value = site.b.values[x.name]
    rows = count(target[cut.me])
    shape = (*value.shape[: cut.dim], rows, *value.shape[cut.dim + 1 :])
    final, layout = whole or (shape, REPLICATED)
    source, target = tuple(source), tuple(target)
    if rows_sent(source, target):
        options: tuple[tuple[str, Argument], ...] = (
            ("axis", cut.axis), ("dim", cut.dim), ("source", source), ("target", target),
            ("fill", fill),
        )  # fmt: skip
        return site.emit("mesh.halo", (x,), final, layout, value.dtype, options)
    return _own(site, x, cut, source[cut.me], target[cut.me], fill, whole)


def gather_rows(
    site: Site, x: Ref, cuts: Sequence[RowCut], needs: Sequence[Sequence[Range]], fill: float = 0
) -> Ref:
    """The input with the rows that this device's output needs, dim after dim.

    A dim that is not cut is there whole: what is needed of it is taken.
    """
    for cut, target in zip(cuts, needs, strict=True):
        if cut.inner is None:
            x = _own(site, x, cut, (0, cut.size), target[cut.me], fill)
        else:
            x = exchange(site, x, cut, cut.inner, target, fill)
    return x


def return_rows(
    site: Site,
    x: Ref,
    cuts: Sequence[RowCut],
    needs: Sequence[Sequence[Range]],
    whole: tuple[tuple[int, ...], Layout],
) -> Ref:
    """The adjoint of `gather_rows`: each device's terms added up where the rows are held."""
    for cut, source in zip(reversed(cuts), reversed(needs), strict=True):
        last = cut is cuts[0]
        if cut.inner is None:
            # Every device has a term of the whole dim; their sum stays pending.
            x = _own(site, x, cut, source[cut.me], (0, cut.size), 0, whole if last else None)
        else:
            x = exchange(site, x, cut, source, cut.inner, 0, whole if last else None)
    return x


def _own(
    site: Site,
    x: Ref,
    cut: RowCut,
    source: Range,
    target: Range,
    fill: float,
    whole: tuple[tuple[int, ...], Layout] | None = None,
) -> Ref:
    value = site.b.values[x.name]
    shape = (*value.shape[: cut.dim], count(target), *value.shape[cut.dim + 1 :])
    final, layout = whole or (shape, REPLICATED)
    if source == target and whole is None:
        return x
    return site.emit("mesh.rows", (x, cut.dim, source, target, fill), final, layout, value.dtype)


def emit_all(
    site: Site,
    target: str,
    args: tuple[Argument, ...],
    results: Sequence[tuple[tuple[int, ...], Layout, str] | None],
    kwargs: tuple[tuple[str, Argument], ...] = (),
) -> tuple[str | None, ...]:
    """An op with several results, each of a whole shape, layout and dtype, or left out."""
    names: list[str | None] = []
    for made in results:
        if made is None:
            names.append(None)
            continue
        shape, layout, dtype = made
        names.append(site.b.declare(site.b.fresh(site.op.name), shape, dtype, layout))
    name = next(name for name in names if name is not None)
    site.b.ops.append(
        Op(name, target, args, kwargs, tuple(names), True, site.b.phase, site.op.source)
    )
    return tuple(names)

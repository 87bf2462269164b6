"""Tables: parameters that are looked up in and nothing else, cut over axes that have the batch.

As in recommenders (Naumov et al., 2019, and Mudigere et al., 2022): each device has a part of
each large table and the whole model beside them for its part of the batch. Row numbers are
gathered; what is looked up is exchanged, forward and backward; a table's gradient is made
where its rows are stepped, and is never reduced.

By columns each device looks up its columns for all examples, and an all_to_all brings each
example's columns together. By rows each device looks up the rows that it holds, and a
reduce_scatter brings them where the examples are: so many times as many bytes as there are
devices, but for any width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from meshwright.layout.groups import Analysis
from meshwright.layout.types import Split
from meshwright.plan.types import Decision
from meshwright.program.types import Input, Op
from meshwright.search.axis_expert import uses

__all__ = ["AXES", "Table", "cuts", "decision", "tables", "usual"]

AXES = ("data", "expert", "replica")  # the inner one first
_LOOKUPS = ("embedding_rows", "take_held", "gather_held")
_WORTH = 100
_LEAST_COLUMNS = 4  # of a device: for fewer, reading rows takes as long as for these


@dataclass(frozen=True)
class Table:
    """A parameter that is only looked up in.

    rows, columns: its dims. nbytes: its own; taken: what is looked up in it in one microbatch,
    each bag of rows as one; read: the same before bags are summed. forward, backward: ops that
    look up in it, and that make its gradient.
    """

    item: Input
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    shape: tuple[int, ...]
    nbytes: int
    taken: int
    forward: tuple[str, ...]
    backward: tuple[str, ...]


@lru_cache(maxsize=8)
def tables(analysis: Analysis) -> Mapping[str, Table]:
    """By path, in the order of the Program's inputs."""
    found = {}
    for item in analysis.program.inputs_of("parameter"):
        table = _table(analysis, item)
        if table is not None:
            found[item.path] = table
    return found


def _table(analysis: Analysis, item: Input) -> Table | None:
    value = analysis.program.values[item.value]
    using = tuple(uses(analysis, item))
    if not using or len(value.shape) < 2:
        return None
    rows, columns = [], []
    backward: dict[str, None] = {}
    for dim, size in enumerate(value.shape):
        if size == 1:
            continue
        group = analysis.group(item.value, Split(dim, 1, size))
        looked_up = [_looked_up(analysis, op, group.cuts.get(op.name)) for op in using]
        if all(looked_up):
            rows.append(dim)
        elif all(op.name in group.cuts for op in using) and not any(looked_up):
            columns.append(dim)
        gradient = analysis.gradient_of.get(item.value)
        for op, _, _ in analysis.touching.get(gradient, ()) if gradient else ():
            if gradient in op.results:
                backward[op.name] = None
    if not rows:
        return None
    return Table(
        item, tuple(rows), tuple(columns), value.shape, value.nbytes,
        sum(_taken(analysis, op) for op in using), tuple(op.name for op in using),
        tuple(backward),
    )  # fmt: skip


def _looked_up(analysis: Analysis, op: Op, cut: object) -> bool:
    """Whether a cut of an op is of rows that it looks up in."""
    factor = getattr(cut, "factor", None)
    return factor is not None and analysis.rules[op.name].factors[factor].special in _LOOKUPS


def _taken(analysis: Analysis, op: Op) -> int:
    """Bytes of what an op looks up, or of what sums over bags leave of it."""
    values = analysis.program.values
    name = next(name for name in op.results if name is not None)
    least = values[name].nbytes
    while True:
        users = [
            user for user, _, _ in analysis.touching[name]
            if user.phase == "forward" and name in analysis.operands[user.name]
        ]  # fmt: skip
        if len(users) != 1 or analysis.rules[users[0].name].linear != "unary":
            return least
        made = next((result for result in users[0].results if result is not None), None)
        if made is None or len(analysis.operands[users[0].name]) != 1:
            return least
        name = made
        least = min(least, values[name].nbytes)


def cuts(table: Table, parts: int) -> list[int]:
    """Dims that so many devices can cut, columns first."""
    columns = [dim for dim in table.columns if table.shape[dim] % parts == 0]
    return [*columns, *(dim for dim in table.rows if table.shape[dim] >= parts)]


def usual(
    analysis: Analysis, sizes: Mapping[str, int], microbatches: int
) -> dict[str, dict[str, int]]:
    """By path and axis, the dims that tables are best cut along; none of those kept whole.

    Nor of any, where all that are worth a cut are less than a hundredth of the parameters.
    """
    known = tables(analysis)
    found = {path: _usual(table, sizes, microbatches) for path, table in known.items()}
    found = {path: cut for path, cut in found.items() if cut}
    values = analysis.program.values
    total = sum(values[item.value].nbytes for item in analysis.program.inputs_of("parameter"))
    worth = sum(known[path].nbytes for path in found)
    return found if worth * _WORTH >= total else {}


def _usual(table: Table, sizes: Mapping[str, int], microbatches: int) -> dict[str, int]:
    """By axis, the dim that a table is best cut along; none where it is better kept whole.

    Whole, its gradient is reduced; cut, what is looked up is exchanged. microbatches: of one
    step, each with as many lookups.
    """
    found: dict[str, int] = {}
    shape, nbytes = list(table.shape), table.nbytes
    taken = table.taken * microbatches
    for axis in AXES:
        parts = sizes.get(axis, 1)
        if parts == 1:
            continue
        wide = [
            dim for dim in table.columns
            if shape[dim] % parts == 0 and shape[dim] // parts >= _LEAST_COLUMNS
            # Two axes that cut columns would have to trade places to cut the batch.
            and dim not in found.values()
        ]  # fmt: skip
        high = [dim for dim in table.rows if shape[dim] >= parts]
        if wide and nbytes * parts > taken:
            dim, exchanged = wide[0], taken // parts
        elif high and nbytes > taken:
            dim, exchanged = high[0], taken
        else:
            continue
        found[axis] = dim
        shape[dim] //= parts
        nbytes, taken = nbytes // parts, exchanged
    return found


def decision(analysis: Analysis, path: str, axis: str, dim: int, parts: int) -> Decision:
    table = tables(analysis)[path]
    share = "columns of each row" if dim in table.columns else "rows"
    return Decision(
        axis=axis, value=path, dim=dim, alone=True,
        why=f"each of {parts} devices has a part of the {share}; what is looked up is exchanged",
    )  # fmt: skip

"""Decisions of the `edge` axis: the lists of a graph's edges are divided, its nodes are not.

An edge dim is found by what the model does with it: along it lie the positions
at which terms are added up (`index_add`, `scatter_add`, `index_put` with
accumulate), read from the batch. What is gathered for each edge and computed of
it is divided with it; the sums over a node's edges are reduced over the axis.
"""

from __future__ import annotations

from meshwright.errors import StrategyError
from meshwright.layout.groups import Analysis, Group
from meshwright.layout.types import Split
from meshwright.plan.types import Decision

_TERMS = frozenset({"put_terms", "scatter_terms"})  # special lowerings of cut lists of positions


def decisions(analysis: Analysis, parts: int) -> list[Decision]:
    """One decision for each group of edge dims of the batch.

    Raises StrategyError where the model adds nothing up by positions from the batch, or
    has fewer edges than devices.
    """
    program = analysis.program
    leaves = program.inputs_of("batch")
    firsts = {program.values[item.value].shape[:1] for item in leaves}
    batched = len(firsts) == 1 and len(leaves) > 1
    found: list[Decision] = []
    covered: dict[str, Split] = {}
    few = 0
    for item in leaves:
        for dim, size in enumerate(program.values[item.value].shape):
            if size == 1 or (dim == 0 and batched) or item.value in covered:
                continue
            group = analysis.group(item.value, Split(dim, 1, size))
            if not _adds_up(analysis, group):
                continue
            if size < parts:
                few = max(few, size)
                continue
            covered.update({name: group.members[name] for name in _leaves(analysis, group)})
            found.append(
                Decision(
                    axis="edge", value=item.path, dim=dim,
                    why="edges are divided; sums over a node's edges are reduced over the axis",
                )
            )  # fmt: skip
    if found:
        return found
    if few:
        raise StrategyError(
            f"The lists of edges in the batch have {few} entries, fewer than the {parts} devices "
            "of the edge axis.",
            "Use a smaller edge axis or larger graphs.",
        )
    raise StrategyError(
        f"Nothing in this model can be cut over an edge axis of {parts} devices: no op adds up "
        "values by a list of positions from the batch, as index_add and scatter_add do in a "
        "graph network.",
        "Use another strategy; an edge axis needs the lists of edges among the batch's tensors.",
    )


def _adds_up(analysis: Analysis, group: Group) -> bool:
    """Whether the group cuts a list of positions that the forward adds terms at."""
    for name, cut in group.cuts.items():
        op = analysis.by_name[name]
        if op.phase != "forward":
            continue
        if analysis.rules[name].factors[cut.factor].special in _TERMS:
            return True
    return False


def _leaves(analysis: Analysis, group: Group) -> list[str]:
    return [
        item.value for item in analysis.program.inputs_of("batch") if item.value in group.members
    ]

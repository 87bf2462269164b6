"""Costs on one cluster, remembered by (target, shapes), for a search that asks again and again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from meshwright.cluster.types import Cluster, Profile
from meshwright.cost.communication import collective_seconds
from meshwright.cost.compute import op_seconds, streaming_seconds
from meshwright.cost.families import COMPUTE_BOUND, Family, family_of
from meshwright.cost.flops import op_flops
from meshwright.cost.memory import optimizer_seconds
from meshwright.layout.lowered import StoredParameter
from meshwright.program.types import Op, Value

_TABLES_KEPT = 8


class OpCost(NamedTuple):
    seconds: float
    flops: float
    family: Family


class CostTable:
    """Op and collective times of a cluster; where it mixes devices, the slowest decides."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.profiles: list[Profile] = []
        for group in cluster.groups:
            if group.profile not in self.profiles:
                self.profiles.append(group.profile)
        self._ops: dict[tuple[object, ...], OpCost] = {}
        self._collectives: dict[tuple[str, int, int, int], float] = {}

    def op(self, op: Op, operands: Sequence[str], values: Mapping[str, Value]) -> OpCost:
        """Cost of an op of any family but `collective`; `operands` are its operands' names."""
        family = family_of(op.target)
        key: list[object] = [op.target, len(set(operands))]
        for name in operands:
            value = values[name]
            key += value.shape, value.dtype
            if value.storage != name and (owner := values.get(value.storage)) is not None:
                key.append((owner.shape, owner.dtype))
        for result in op.results:
            if result is None:
                key.append(None)
            else:
                value = values[result]
                key += value.shape, value.dtype, value.storage != result
        if family in COMPUTE_BOUND:
            # Causal and transposed are told apart by flags among the arguments.
            key.append(tuple(item if isinstance(item, bool) else None for item in op.args))
            key.append(dict(op.kwargs).get("is_causal"))
        found = self._ops.get(entry := tuple(key))
        if found is None:
            found = self._ops[entry] = OpCost(
                max(op_seconds(op, values, profile) for profile in self.profiles),
                op_flops(op, values),
                family,
            )
        return found

    def collective(self, kind: str, extent: int, stride: int, nbytes: int) -> float:
        key = (kind, extent, stride, nbytes)
        found = self._collectives.get(key)
        if found is None:
            found = self._collectives[key] = collective_seconds(
                kind, extent, stride, nbytes, self.cluster
            )
        return found

    def streaming(self, nbytes: float) -> float:
        return max(streaming_seconds(nbytes, profile) for profile in self.profiles)

    def optimizer(
        self, parameters: Sequence[StoredParameter], values: Mapping[str, Value], optimizer: str
    ) -> float:
        return max(
            optimizer_seconds(parameters, values, optimizer, profile) for profile in self.profiles
        )


_tables: OrderedDict[int, CostTable] = OrderedDict()


def table_for(cluster: Cluster) -> CostTable:
    """The table of this very cluster object; the few used last are kept."""
    table = _tables.get(id(cluster))
    if table is None or table.cluster is not cluster:
        table = _tables[id(cluster)] = CostTable(cluster)
    _tables.move_to_end(id(cluster))
    while len(_tables) > _TABLES_KEPT:
        _tables.popitem(last=False)
    return table

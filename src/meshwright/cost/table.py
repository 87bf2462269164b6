"""Costs on one cluster, remembered by (target, shapes), for a search that asks again and again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from meshwright.cluster.types import Cluster, Profile
from meshwright.cost.communication import (
    collective_seconds,
    point_to_point_seconds,
    tier_seconds,
)
from meshwright.cost.compute import host_seconds, op_time, streaming_seconds
from meshwright.cost.constants import Constants, default_constants
from meshwright.cost.families import COMPUTE_BOUND, Family, family_of
from meshwright.cost.flops import op_flops
from meshwright.cost.fusion import Fused
from meshwright.cost.hardware import PLAIN, Kernels
from meshwright.cost.memory import optimizer_seconds
from meshwright.cost.scratch import rearranged_bytes
from meshwright.cost.waiting import waiting_seconds
from meshwright.errors import UsageError
from meshwright.layout.lowered import StoredParameter
from meshwright.layout.merge import tensors_of
from meshwright.program.types import Op, Value

_TABLES_KEPT = 8


class OpCost(NamedTuple):
    """seconds: on the device, launches included. launches: kernels that it starts.

    host_s: what the host's thread takes to issue it, at the same time; a run of
    ops takes the greater of the two sums. 0 where host and device are one.
    """

    seconds: float
    flops: float
    family: Family
    launches: int
    host_s: float


class CostTable:
    """Op and collective times of a cluster; where it mixes devices, the slowest decides.

    constants: those of accelerators, the file's where none are given. kernels:
    which ones the framework that runs the step has.
    """

    def __init__(
        self, cluster: Cluster, constants: Constants | None = None, kernels: Kernels = PLAIN
    ) -> None:
        self.cluster = cluster
        self.constants = constants or default_constants()
        self.kernels = kernels
        self.profiles: list[Profile] = []
        for group in cluster.groups:
            if group.profile not in self.profiles:
                self.profiles.append(group.profile)
        self._ops: dict[tuple[object, ...], OpCost] = {}
        self._collectives: dict[tuple[str, int, int, int], float] = {}
        self._messages: dict[tuple[int, int, int | None, float], float] = {}

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
        elif family == "reduction":
            key.append(op.args[1:])  # rows or columns
        elif op.kwargs:
            key.append(dict(op.kwargs).get("approximate"))
        found = self._ops.get(entry := tuple(key))
        if found is None:
            times = [
                op_time(op, values, profile, self.constants, self.kernels)
                for profile in self.profiles
            ]
            slowest = max(times)
            found = self._ops[entry] = OpCost(
                slowest.seconds, op_flops(op, values), family, slowest.launches, slowest.host_s
            )
        return found

    def fused(self, kernel: Fused) -> OpCost:
        """Cost of ops that were fused into `kernel` (`cost.fusion`)."""
        if not kernel.launches:
            return OpCost(0.0, 0.0, "pointwise", 0, 0.0)
        seconds = self.streaming(kernel.nbytes, kernel.launches)
        return OpCost(seconds, 0.0, "pointwise", kernel.launches, self.host(kernel.launches))

    def host(self, ops: float) -> float:
        """Seconds in which the host issues `ops`, beside what the device does."""
        return max(host_seconds(ops, profile, self.constants) for profile in self.profiles)

    def collective(
        self, kind: str, extent: int, stride: int, nbytes: int, after_s: float = 0.0
    ) -> float:
        """Seconds of a collective, the wait for processes that come late after `after_s` of work
        (`cost.waiting`) included."""
        key = (kind, extent, stride, nbytes)
        found = self._collectives.get(key)
        if found is None:
            found = self._collectives[key] = collective_seconds(
                kind, extent, stride, nbytes, self.cluster, self.constants
            )
        return found + waiting_seconds(self.profiles, extent, after_s)

    def message(self, nbytes: float, source: int, target: int, senders: int | None = None) -> float:
        """Seconds of a message between two ranks (`communication.point_to_point_seconds`)."""
        key = (source, target, senders, nbytes)
        found = self._messages.get(key)
        if found is None:
            found = self._messages[key] = point_to_point_seconds(
                nbytes, source, target, self.cluster, senders, self.constants
            )
        return found

    def tier(self, nbytes: float, name: str, direction: Literal["read", "write"]) -> float:
        """Seconds to fetch from or store in the tier `name`, all devices at once.

        Raises UsageError where a device of the cluster has no such tier.
        """
        slowest = 0.0
        for profile in self.profiles:
            tier = next((item for item in profile.lower_tiers if item.name == name), None)
            if tier is None:
                raise UsageError(
                    f"{profile.name} has no memory tier {name!r}",
                    "Give its profile one under lower_tiers.",
                )
            slowest = max(slowest, tier_seconds(nbytes, tier, direction, self.constants))
        return slowest

    def streaming(self, nbytes: float, launches: int = 1) -> float:
        return max(
            streaming_seconds(nbytes, profile, self.constants, launches)
            for profile in self.profiles
        )

    def rearranging(self, op: Op, values: Mapping[str, Value], extent: int) -> float:
        """Copying that this project's runtime does around a collective, where it was measured."""
        if all(profile.fitted is None for profile in self.profiles):
            return 0.0
        moved = rearranged_bytes(op, values, extent)
        tensors = tensors_of(op)
        # A few small ops for each tensor of a bucket take about as long as a launch.
        return self.streaming(2 * moved, tensors if tensors > 1 else 1) if moved else 0.0

    def side_by_side(self, kind: str, nbytes: int, extent: int, tensors: int) -> float:
        """The same for a merged collective of which payload and tensors alone are known."""
        if tensors == 1 or all(profile.fitted is None for profile in self.profiles):
            return 0.0
        moved = nbytes + nbytes // extent if kind == "all_gather" else nbytes
        return self.streaming(2 * moved, tensors)

    def step_overhead(self, microbatches: int) -> float:
        """What the step loop takes beside ops, as calibration timed it; else nothing."""
        fitted = [profile.fitted for profile in self.profiles if profile.fitted is not None]
        return max(
            (
                item.contention * (item.step_s + (microbatches - 1) * item.microbatch_s)
                for item in fitted
            ),
            default=0.0,
        )

    def optimizer(
        self,
        parameters: Sequence[StoredParameter],
        values: Mapping[str, Value],
        optimizer: str,
        *,
        fused: bool = False,
        master: bool = False,
        gradient_bytes: int | None = None,
    ) -> float:
        """Seconds of one optimizer step (`memory.optimizer_seconds`)."""
        return max(
            optimizer_seconds(
                parameters, values, optimizer, profile, self.constants,
                fused=fused, master=master, gradient_bytes=gradient_bytes,
            )
            for profile in self.profiles
        )  # fmt: skip


_tables: OrderedDict[tuple[int, Constants, Kernels], CostTable] = OrderedDict()


def table_for(
    cluster: Cluster, constants: Constants | None = None, kernels: Kernels = PLAIN
) -> CostTable:
    """The table of this very cluster object; the few used last are kept."""
    constants = constants or default_constants()
    key = (id(cluster), constants, kernels)
    table = _tables.get(key)
    if table is None or table.cluster is not cluster:
        table = _tables[key] = CostTable(cluster, constants, kernels)
    _tables.move_to_end(key)
    while len(_tables) > _TABLES_KEPT:
        _tables.popitem(last=False)
    return table

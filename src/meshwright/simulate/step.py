"""Simulates one step, here one device's, op by op, as this project's runtime runs it on CPUs.

Stages, recomputation, overlap and accelerators are for `staged.py`.

A step is: gather; for each microbatch forward and backward; reduce; clip;
optimizer. Every microbatch takes the same time. Memory peaks in the second
one where there is one, since accumulated gradients are held from then on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from meshwright.cluster.types import Cluster
from meshwright.cost.interval import step_interval
from meshwright.cost.memory import optimizer_cost, persistent_bytes
from meshwright.cost.table import CostTable, table_for
from meshwright.cost.waiting import Since
from meshwright.errors import UsageError
from meshwright.layout.lowered import LoweredProgram, Section
from meshwright.layout.merge import merge
from meshwright.plan.types import Collective, Pipeline, Recompute
from meshwright.program.types import Value
from meshwright.simulate.executor import OWN, Executor, own
from meshwright.simulate.queues import Queues
from meshwright.simulate.section import GRADIENTS, KINDS, Held, SectionRun, run_section
from meshwright.simulate.staged import simulate_staged
from meshwright.simulate.types import MemoryPoint, Simulation

# Later microbatches look like these; a timeline shows each as one event a section.
_MICROBATCHES_IN_FULL = 2


def simulate(
    lowered: LoweredProgram,
    cluster: Cluster,
    *,
    microbatches: int,
    optimizer: str,
    pipeline: Pipeline | None = None,
    recompute: Recompute = "none",
    executor: Executor | None = None,
    stands_for: Mapping[str, int] = MappingProxyType({}),
    memory_curve: bool = True,
    costs: CostTable | None = None,
) -> Simulation:
    """Time, memory and collectives of one step.

    pipeline: stages that the model is cut into; the mesh has an axis `stage` of
    that size. recompute: what the backward computes again. executor: what runs at
    the same time; what this project's runtime does where it is not given.
    stands_for: a module (`layers.1`) whose ops, parameters and saved values stand
    for so many equal ones in a row; cuts name them `layers.1#0` on.
    costs: of this cluster, with constants or kernels of its own. `optimizer` is a
    name in `meshwright.cost.memory.OPTIMIZERS`. Without `memory_curve`, `events`
    and `curve` stay empty, which a search wants.
    Raises UsageError for nonsense arguments and RuleError for an op of
    unknown cost.
    """
    if microbatches < 1:
        raise UsageError(f"a step of {microbatches} microbatches", "Use at least one microbatch.")
    table = costs or table_for(cluster)
    stages = pipeline.stages if pipeline else 1
    on_cpu = all(profile.device == "cpu" for profile in table.profiles)
    executor = executor or own(on_cpu, lowered.uniform, stages)
    as_it_runs = recompute == "none" and not stands_for and executor == OWN
    if stages == 1 and on_cpu and as_it_runs:
        found = _Step(merge(lowered), table, microbatches, optimizer, memory_curve).run()
    else:
        whole_step = stages == 1 and not stands_for
        found = simulate_staged(
            merge(lowered, whole_step), table, microbatches=microbatches, optimizer=optimizer,
            pipeline=pipeline, recompute=recompute, executor=executor, stands_for=stands_for,
            detail=memory_curve,
        )  # fmt: skip
    within = step_interval(
        cluster, found.step_time_s, compute_s=found.compute_s,
        collectives_s=found.communication_s, optimizer_s=found.optimizer_s,
    )  # fmt: skip
    return found if within is None else replace(found, step_time_interval_s=within)


class _Step:
    """The parts of one simulated step, and what they add up to."""

    def __init__(
        self,
        lowered: LoweredProgram,
        costs: CostTable,
        microbatches: int,
        optimizer: str,
        detail: bool,
    ) -> None:
        self.lowered = lowered
        self.values = lowered.values
        self.costs = costs
        self.microbatches = microbatches
        self.optimizer = optimizer
        self.detail = detail
        self.compute_s = self.communication_s = self.flops = 0.0
        self.collectives: dict[tuple[str, str], tuple[int, int]] = {}
        self.tensors: dict[tuple[str, str], int] = {}
        self.peak_bytes = -1
        self.peak: dict[str, int] = {}
        self.peak_at = self.peak_source = ""
        self.queues = Queues()
        # A step begins where the one before it ended, with the optimizer.
        self.since = Since(costs.optimizer(lowered.parameters, lowered.values, optimizer))
        self.curve: list[MemoryPoint] = []
        held = persistent_bytes(lowered.parameters, lowered.buffers, self.values, optimizer)
        constants = _bytes_of(_storages(self.values, lowered.constants.values()))
        # Batch values are those of one microbatch; the whole local batch stays in memory.
        batch = _bytes_of(_storages(self.values, lowered.batch.values())) * microbatches
        self.always = {
            "parameters": held.parameters,
            "optimizer": held.optimizer,
            "buffers": held.buffers + constants,
            "batch": batch,
        }
        self.always_bytes = sum(self.always.values())

    def run(self) -> Simulation:
        lowered, values, count = self.lowered, self.values, self.microbatches
        stored = {values[item.value].storage for item in lowered.parameters}
        accumulated = _storages(values, lowered.accumulated.values())
        accumulated_bytes = _bytes_of(accumulated)

        gather = self._section(lowered.gather, {}, keep=lowered.gather.outputs, parameters=stored)
        gathered = sum(item.nbytes for item in gather.leaving.values())
        forward = self._section(
            lowered.forward, {}, keep=(*lowered.forward.outputs, *lowered.saved), parameters=stored
        )
        saved = _storages(values, lowered.saved)
        backward = self._section(
            lowered.backward,
            {storage: held for storage, held in forward.leaving.items() if storage in saved},
            keep=lowered.backward.outputs,
            gradients=accumulated,
            parameters=stored,
        )
        reduce = self._section(
            lowered.reduce,
            {name: Held(size, GRADIENTS) for name, size in accumulated.items()},
            keep=lowered.reduce.outputs,
            gradients=_storages(values, lowered.reduce.outputs),
        )
        clip = self._section(lowered.clip, reduce.leaving, keep=reduce.leaving)

        for part, times in (
            (gather, 1),
            (forward, count),
            (backward, count),
            (reduce, 1),
            (clip, 1),
        ):
            self._count(part, times)
        accumulate_s = sum(self.costs.streaming(3 * size) for size in accumulated.values())
        self.compute_s += (count - 1) * accumulate_s + self.costs.step_overhead(count)

        self._show(gather, "gather", 0, 0)
        for number in range(count if self.detail else min(count, 2)):
            # The first microbatch's gradients are the accumulators, without a copy.
            before = accumulated_bytes if number else 0
            self._show(forward, "forward", gathered, before, number)
            self._show(backward, "backward", gathered, before, number)
            if number:
                self._between("accumulate", accumulate_s, gathered, 2 * accumulated_bytes)
        self._show(reduce, "reduce", 0, 0)
        self._show(clip, "clip", 0, 0)
        optimizer_s = self._optimizer_step(sum(item.nbytes for item in reduce.leaving.values()))
        return Simulation(
            step_time_s=self.compute_s + self.communication_s + optimizer_s,
            compute_s=self.compute_s,
            communication_s=self.communication_s,
            optimizer_s=optimizer_s,
            peak_memory_bytes=self.peak_bytes,
            memory=self.peak,
            peak_at=self.peak_at,
            collectives=tuple(
                Collective(kind=kind, axis=axis, count=number, bytes=nbytes)
                for (kind, axis), (number, nbytes) in sorted(self.collectives.items())
            ),
            before_merging=tuple(
                Collective(kind=kind, axis=axis, count=self.tensors[kind, axis], bytes=nbytes)
                for (kind, axis), (_, nbytes) in sorted(self.collectives.items())
            ),
            flops=self.flops,
            events=tuple(self.queues.events) if self.detail else (),
            curve=tuple(self.curve),
            peak_source=self.peak_source,
            exposed_communication_s=self.communication_s,
            stalls={"collectives": self.communication_s} if self.communication_s else {},
        )

    def _section(
        self,
        section: Section,
        entering: dict[str, Held],
        *,
        keep: Iterable[str],
        gradients: Iterable[str] = (),
        parameters: Iterable[str] = (),
    ) -> SectionRun:
        return run_section(
            section,
            self.values,
            self.lowered.mesh,
            self.costs,
            entering=entering,
            keep=_storages(self.values, keep).keys(),
            gradients=set(gradients),
            parameters=set(parameters),
            since=self.since,
            detail=self.detail,
        )

    def _count(self, part: SectionRun, times: int) -> None:
        self.compute_s += part.compute_s * times
        self.communication_s += part.communication_s * times
        self.flops += part.flops * times
        for key, (count, nbytes) in part.collectives.items():
            counted, total = self.collectives.get(key, (0, 0))
            self.collectives[key] = (counted + count * times, total + nbytes * times)
            self.tensors[key] = self.tensors.get(key, 0) + part.tensors[key] * times

    def _show(
        self, part: SectionRun, label: str, gathered: int, accumulators: int, microbatch: int = 0
    ) -> None:
        """Place a section in the timeline, its memory beside what is held around it."""
        peak = dict(zip(KINDS, part.peak, strict=True))
        peak["gathered"] += gathered
        peak["gradients"] += accumulators
        self._see_peak(f"{label}: {part.peak_at}", peak, part.peak_source)
        if not self.detail:
            return
        around = self.always_bytes + gathered + accumulators
        if microbatch < _MICROBATCHES_IN_FULL:
            for task in part.tasks:
                self._place(task.name, task.queue, task.seconds, around + task.live_bytes)
        else:
            name = f"microbatch {microbatch + 1}: {label}"
            seconds = part.compute_s + part.communication_s
            self._place(name, "compute", seconds, around + sum(part.peak))

    def _between(self, label: str, seconds: float, gathered: int, gradients: int) -> None:
        """Work that the executor does between sections."""
        self._see_peak(label, {"activations": 0, "gathered": gathered, "gradients": gradients})
        if self.detail:
            self._place(label, "compute", seconds, self.always_bytes + gathered + gradients)

    def _place(self, name: str, queue: str, seconds: float, live_bytes: int) -> None:
        self.queues.place(name, queue, seconds)
        self.curve.append(MemoryPoint(name, live_bytes))

    def _see_peak(self, label: str, parts: dict[str, int], source: str = "") -> None:
        total = self.always_bytes + sum(parts.values())
        if total > self.peak_bytes:
            self.peak_bytes, self.peak_at, self.peak_source = total, label, source
            self.peak = {**self.always, **parts}

    def _optimizer_step(self, gradient_bytes: int) -> float:
        """Steps one parameter after another; its scratch lives for that long."""
        seconds = self.costs.optimizer(self.lowered.parameters, self.values, self.optimizer)
        if self.lowered.norm is not None:
            seconds += self.costs.streaming(2 * gradient_bytes)  # scaled in place by the norm
        trained = [item for item in self.lowered.parameters if item.trainable]
        largest = max((self.values[item.value].nbytes for item in trained), default=0)
        scratch = largest * optimizer_cost(self.optimizer).scratch
        parts = {"activations": scratch, "gathered": 0, "gradients": gradient_bytes}
        self._see_peak("optimizer", parts)
        if self.detail:
            live = self.always_bytes + gradient_bytes + scratch
            self._place("optimizer", "compute", seconds, live)
        return seconds


def _storages(values: Mapping[str, Value], names: Iterable[str]) -> dict[str, int]:
    """Bytes of each storage that `names` lie in."""
    return {
        storage: values.get(storage, values[name]).nbytes
        for name in names
        for storage in (values[name].storage,)
    }


def _bytes_of(storages: Mapping[str, int]) -> int:
    return sum(storages.values())

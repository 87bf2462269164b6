"""Times probes in all processes at once, pass after pass.

A pass measures everything once, so that several show how far the machine's
speed wanders, and can be taken in turns with the steps that are to be
predicted.

Ops are timed by the process's own processor time: a step computes on shared
cores, and which of its ops the scheduler interrupts is chance. How many
seconds of the clock go by for each of them is one figure of its own. All probes
are called in turns, each once a round, with their operands read right before,
as what an op uses was mostly made just before it: in a loop of its own an op
finds its code and the memory of its results in the nearest cache, and takes
half to a third as long as in a step.

Collectives are timed by the clock, one right after another as gradients are
reduced, over as many buffers as no cache holds. How long processes wait at one
for those that the scheduler held back is a figure of its own: it grows with the
work between two of them.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from itertools import cycle
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from meshwright.cluster.mesh import Mesh
from meshwright.cost.measured import Measured, Timed
from meshwright.runtime.comm import Communicator, connect
from meshwright.runtime.emptystep import step_times
from meshwright.runtime.probes import dtype_probes, op_probes

PAYLOADS = (1 << 8, 1 << 13, 1 << 16, 1 << 18, 1 << 20, 1 << 23)
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "ring_shift", "halo")
_OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "sgd-momentum": lambda tensors: torch.optim.SGD(tensors, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
}
_TENSOR_ELEMENTS = ((1 << 6, 16), (1 << 14, 8), (1 << 19, 3))  # elements, how many such tensors
_ROTATED_BYTES = 32 << 20  # of buffers that collectives take in turns
_MOST_BUFFERS = 64
_ELSEWHERE_BYTES = 1 << 18
_HALO_ROWS = 1
_MEET_EVERY = 20  # probes; a meeting takes milliseconds where processes share cores
_WORK_SIZE = 128  # of the products and sums that are done before a collective
_WINDOWS = 5
_WAITS_S = (0.0001, 0.0004, 0.002, 0.008, 0.03)  # of processor time between collectives
_WAIT_PAYLOAD = 1 << 14
_WAIT_KINDS = ("all_reduce", "all_gather", "reduce_scatter")


class Prober:
    """The probes of one process, and what they took so far."""

    def __init__(self, device: str = "cpu", hosts: int = 1) -> None:
        self.device = device
        self.threads = torch.get_num_threads()
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.found = Measured(device=device)
        self._ops = list(op_probes(device))
        self.found.ops = [
            Timed(
                name=probe.name, key=probe.work.key, family=probe.work.family,
                amounts=probe.work.amounts, dtype=probe.work.dtype,
            )
            for probe in self._ops
        ]  # fmt: skip
        self._dtypes = list(dtype_probes(device))
        self._all = [*self._ops, *(probe for _, probe in self._dtypes)]
        # Neighbours in the list are of one kind; in another order each meets others' leavings.
        self._order = list(range(len(self._all)))
        random.Random(0).shuffle(self._order)
        self._groups = self._communicators(hosts)
        self._elsewhere = torch.zeros(_ELSEWHERE_BYTES // 4, device=device)
        self._work = torch.randn(_WORK_SIZE, _WORK_SIZE, device=device)
        own = device == "cpu" and self.threads == 1
        self._clock = time.thread_time if own else time.perf_counter

    def _communicators(self, hosts: int) -> list[tuple[Communicator, dict[str, Any]]]:
        """Axes to measure over: the whole host, pairs in it, and the hosts."""
        here = self.world // hosts
        wanted: list[tuple[Mesh, dict[str, Any]]] = []
        inside = self.found.collectives
        if hosts > 1:
            wanted.append((Mesh((("group", hosts), ("rest", here))), self.found.across))
        if here > 1:
            wanted.append((Mesh((("rest", hosts), ("group", here))), inside))
        if here > 2 and here % 2 == 0:
            wanted.append((Mesh((("rest", self.world // 2), ("group", 2))), inside))
        return [(connect(mesh, self.device), table) for mesh, table in wanted]

    @torch.no_grad()
    def measure(self, seconds: float) -> None:
        """One pass, in about so many seconds by the clock."""
        gc.collect()
        gc.disable()
        try:
            self._pass(seconds)
        finally:
            gc.enable()

    def _pass(self, seconds: float) -> None:
        deadline = time.perf_counter() + seconds
        share = 0.5 if self._groups else 0.85
        if self.device == "cpu":
            taken = self._rounds(share * seconds)
        else:
            each_s = share * seconds / len(self._all)
            taken = [self._queued(probe.call, each_s) for probe in self._all]
        for timed, spent in zip(self.found.ops, taken, strict=False):
            timed.seconds.append(spent)
        for (dtype, _), spent in zip(self._dtypes, taken[len(self._ops) :], strict=True):
            self.found.dtypes.setdefault(dtype, []).append(spent)
        self._optimizers()
        self.found.steps.append(step_times(self.device, self._clock))
        self.found.contention.append(self._contention(0.1 * seconds))
        left_s = agreed(max(deadline - time.perf_counter(), 0.15 * seconds), "min")
        self._collectives(left_s)

    def _rounds(self, seconds: float) -> list[float]:
        """Seconds of one call of each probe: the mean over rounds, as many as there is time for."""
        clock, read_s = self._clock, _clock_s(self._clock)
        begin = time.perf_counter()
        spent = [0.0] * len(self._all)
        rounds = 0
        again = 1.0
        while rounds < 2 or again > 0:
            started = time.perf_counter()
            for turn, number in enumerate(self._order):
                if turn % _MEET_EVERY == 0:
                    self._meet()
                probe = self._all[number]
                for tensor in probe.operands:
                    tensor.sum()
                before = clock()
                probe.call()
                spent[number] += clock() - before
            rounds += 1
            left_s = seconds - (time.perf_counter() - begin)
            again = agreed(left_s - (time.perf_counter() - started), "min")
        return [max(total / rounds - read_s, 1e-8) for total in spent]

    def _contention(self, seconds: float) -> float:
        """Seconds of the clock for each of the processor's while all processes compute.

        All stop by the clock: where some wait for others, those have the cores to themselves.
        The median of several windows, as other work on the machine comes and goes.
        """
        if self._clock is not time.thread_time:
            return 1.0
        found = []
        for _ in range(_WINDOWS):
            self._meet()
            began, own = time.perf_counter(), self._clock()
            while time.perf_counter() - began < seconds / _WINDOWS:
                self._unit()
            spent_s, own_s = time.perf_counter() - began, self._clock() - own
            # Over all processes: three on one core and one on the other still share two.
            found.append(agreed(spent_s, "mean") / max(agreed(own_s, "mean"), 1e-9))
        return median(found)

    def _queued(self, call: Callable[[], object], slice_s: float) -> float:
        """On an accelerator: enough calls in a row that launches hide behind one another."""
        torch.accelerator.synchronize()
        started, calls = time.perf_counter(), 0
        while calls < 10 or time.perf_counter() - started < slice_s:
            for _ in range(10):
                call()
            calls += 10
            torch.accelerator.synchronize()
        return (time.perf_counter() - started) / calls

    def _optimizers(self) -> None:
        for name, make in _OPTIMIZERS.items():
            table = self.found.optimizers.setdefault(name, {})
            for elements, count in _TENSOR_ELEMENTS:
                tensors = [
                    nn.Parameter(torch.randn(elements, device=self.device)) for _ in range(count)
                ]
                optimizer = make(tensors)
                for tensor in tensors:
                    tensor.grad = torch.randn_like(tensor)
                optimizer.step()
                self._meet()
                self._settle()
                own = self._clock()
                for _ in range(2):
                    optimizer.step()
                self._settle()
                spent = self._clock() - own
                table.setdefault(float(elements * 4), []).append(spent / 2 / count)

    def _collectives(self, seconds: float) -> None:
        weights = {size: 1.0 + size / (1 << 20) for size in PAYLOADS}
        if not self._groups:
            return
        shared = self.device == "cpu"
        share = 0.6 if shared else 1.0
        each_s = share * seconds / (len(self._groups) * len(KINDS) * sum(weights.values()))
        for communicator, tables in self._groups:
            n = communicator.mesh.extent("group")
            for kind in KINDS:
                table = tables.setdefault(f"{kind}:{n}", {})
                for size, weight in weights.items():
                    call, payload = _collective(communicator, kind, size, self.device)
                    taken_s = self._loop(call, each_s * weight)
                    table.setdefault(float(payload), []).append(max(taken_s, 1e-6))
        if shared:
            for communicator, _ in self._groups:
                self._waits(communicator, (1 - share) * seconds / len(self._groups))

    def _waits(self, communicator: Communicator, seconds: float) -> None:
        """Work before each collective: its processor time, and what both take longer than
        collectives one right after another."""
        n = communicator.mesh.extent("group")
        table = self.found.waits.setdefault(n, {})
        calls = [
            _collective(communicator, kind, _WAIT_PAYLOAD, self.device)[0] for kind in _WAIT_KINDS
        ]

        def collect() -> None:
            for call in calls:
                call()

        each_s = seconds / (len(_WAITS_S) + 1)
        at_once_s = self._loop(collect, each_s) / len(calls)
        unit_s = self._unit_s()
        for wanted_s in _WAITS_S:
            units = max(1, round(agreed(wanted_s / unit_s, "max")))
            worked = [0.0]

            def turn(units: int = units, worked: list[float] = worked) -> None:
                for call in calls:
                    started = self._clock()
                    for _ in range(units):
                        self._unit()
                    worked[0] += self._clock() - started
                    call()

            turns, taken_s = self._turns(turn, each_s)
            # The first turn, which says how many more there are time for, is worked too.
            work_s = agreed(worked[0] / (turns + 2), "mean") / len(calls)
            table.setdefault(wanted_s, []).append((work_s, taken_s / len(calls) - at_once_s))

    def _unit(self) -> None:
        """A little of what models do: a product, what is added to it, its memory elsewhere."""
        made = torch.mm(self._work, self._work)
        torch.tanh(made + self._work)
        self._elsewhere.add_(1.0)

    def _unit_s(self) -> float:
        started = self._clock()
        for _ in range(10):
            self._unit()
        return (self._clock() - started) / 10

    def _loop(self, call: Callable[[], object], slice_s: float) -> float:
        """Seconds of `call`, of the slowest process."""
        return self._turns(call, slice_s)[1]

    def _turns(self, call: Callable[[], object], slice_s: float) -> tuple[int, float]:
        """How many calls there was time for after two others, and the seconds of one."""
        call()
        self._meet()
        first = agreed(self._timed(call, 1), "max")
        calls = max(2, min(60, int(slice_s / max(first, 1e-6))))
        self._meet()
        return calls, agreed(self._timed(call, calls), "max")

    def _timed(self, call: Callable[[], object], calls: int) -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        self._settle()
        return (time.perf_counter() - begin) / calls

    def _settle(self) -> None:
        if self.device != "cpu":
            torch.accelerator.synchronize()

    def _meet(self) -> None:
        if self.world > 1:
            dist.barrier()


def agreed(number: float, how: str) -> float:
    """One figure that all processes take, so that they do the same number of calls."""
    if not dist.is_initialized():
        return number
    tensor = torch.tensor([number], dtype=torch.float64)
    if dist.get_backend() == "nccl":
        tensor = tensor.cuda()
    dist.all_reduce(tensor, _REDUCTIONS[how])
    return float(tensor) / (dist.get_world_size() if how == "mean" else 1)


_REDUCTIONS = {
    "max": dist.ReduceOp.MAX,
    "min": dist.ReduceOp.MIN,
    "mean": dist.ReduceOp.SUM,
}


def _collective(
    communicator: Communicator, kind: str, payload: int, device: str
) -> tuple[Callable[[], object], int]:
    """A collective, and its payload in bytes as `plan.types.Collective` counts it.

    Calls take buffers in turns, so that what is sent lies in no cache.
    """
    n = communicator.mesh.extent("group")
    if kind == "halo":
        return _halo(communicator, n, payload, device)
    rows = n * n * max(1, payload // 4 // (n * n * 16))
    count = max(1, min(_MOST_BUFFERS, _ROTATED_BYTES // (rows * 64)))
    whole = cycle([torch.ones(rows, 16, device=device) for _ in range(count)])
    parts = cycle([torch.ones(rows // n, 16, device=device) for _ in range(count)])
    calls: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: communicator.all_reduce(next(whole), "group"),
        "all_gather": lambda: communicator.all_gather(next(parts), "group", 0, 1, rows, 1),
        "reduce_scatter": lambda: communicator.reduce_scatter(next(whole), "group", 0, 1, rows, 1),
        # From rows cut to columns cut, the way that attention over sequence shards goes.
        "all_to_all": lambda: communicator.all_to_all(
            next(whole).view(rows // n, n * 16), "group", (0, 1, rows, 1), (1, 1, n * 16, 1)
        ),
        "ring_shift": lambda: communicator.ring_shift(next(whole), "group"),
    }
    return calls[kind], rows * 64


def _halo(
    communicator: Communicator, n: int, payload: int, device: str
) -> tuple[Callable[[], object], int]:
    """One row a device, and that of each neighbour: what is copied beside is counted apart."""
    sent = min(n - 1, 2)
    columns = max(1, payload // 4 // sent)
    count = max(1, min(_MOST_BUFFERS, _ROTATED_BYTES // (_HALO_ROWS * columns * 4)))
    held = cycle([torch.ones(_HALO_ROWS, columns, device=device) for _ in range(count)])
    source = [(k * _HALO_ROWS, (k + 1) * _HALO_ROWS) for k in range(n)]
    target = [(first - 1, past + 1) for first, past in source]
    return (
        lambda: communicator.halo(next(held), "group", 0, source, target),
        sent * columns * 4,
    )


def _clock_s(clock: Callable[[], float]) -> float:
    """What reading the clock adds to what is between two readings."""
    found = _CLOCKS.get(clock)
    if found is None:
        begin = clock()
        for _ in range(1000):
            clock()
        found = _CLOCKS[clock] = (clock() - begin) / 1000
    return found


_CLOCKS: dict[Callable[[], float], float] = {}

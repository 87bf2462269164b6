"""Times probes in all processes at once, pass after pass.

A pass measures everything once, so that several show how far the machine's
speed wanders, and can be taken in turns with the steps that are to be
predicted.

Ops are timed by the process's own processor time: a step computes on shared
cores, and which of its ops the scheduler interrupts is chance. How many
seconds of the clock go by for each of them is one figure of its own, taken
over all probes. Before each call other memory is gone through, as a step's
other ops do: in a loop of its own an op finds its operands and its code in the
nearest cache, and a small one takes half as long.

Collectives are timed by the clock, with work before each of them: processes
come to a collective as the scheduler lets them, not in step.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from meshwright.cluster.mesh import Mesh
from meshwright.cost.measured import Measured, Timed
from meshwright.runtime.comm import Communicator, connect
from meshwright.runtime.emptystep import step_times
from meshwright.runtime.probes import Probe, dtype_probes, op_probes

PAYLOADS = (1 << 8, 1 << 13, 1 << 16, 1 << 18, 1 << 20, 1 << 23)
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "ring_shift")
_OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "sgd-momentum": lambda tensors: torch.optim.SGD(tensors, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
}
_TENSOR_ELEMENTS = ((1 << 6, 16), (1 << 14, 8), (1 << 19, 3))  # elements, how many such tensors
_TRAMPLED_BYTES = 3 << 19  # more than a core's own caches hold
_SWEPT_BYTES = 8 << 20
_MEET_EVERY = 20  # probes; a meeting takes milliseconds where processes share cores
_WORK_SIZE = 160  # a product of so many rows and columns before each collective


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
        self._groups = self._communicators(hosts)
        self._trampled = torch.zeros(_TRAMPLED_BYTES // 4, device=device)
        self._swept = torch.zeros(_SWEPT_BYTES // 4, device=device)
        self._work = torch.randn(_WORK_SIZE, _WORK_SIZE, device=device)
        own = device == "cpu" and self.threads == 1
        self._clock = time.thread_time if own else time.perf_counter
        self._wall_s = self._own_s = 0.0

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
        self._wall_s = self._own_s = 0.0
        share = 0.5 if self._groups else 0.85
        count = len(self._ops) + len(self._dtypes)
        each_s = share * seconds / count
        for number, (probe, timed) in enumerate(zip(self._ops, self.found.ops, strict=True)):
            if number % _MEET_EVERY == 0:
                self._meet()
            timed.seconds.append(self._local(probe, each_s))
        for dtype, probe in self._dtypes:
            self.found.dtypes.setdefault(dtype, []).append(self._local(probe, each_s))
        self._optimizers()
        self.found.steps.append(step_times(self.device, self._clock))
        ratio = self._wall_s / self._own_s if self._own_s else 1.0
        self.found.contention.append(ratio if self._clock is time.thread_time else 1.0)
        left_s = agreed(max(deadline - time.perf_counter(), 0.15 * seconds), "min")
        self._collectives(left_s)

    def _local(self, probe: Probe, slice_s: float) -> float:
        """Seconds of one call. Windows of one length keep the processes together."""
        call, clock, trample = probe.call, self._clock, self._trampled.add_
        call()
        begin, own = time.perf_counter(), clock()
        spent, calls = 0.0, 0
        if self.device != "cpu":
            return self._queued(call, slice_s)
        while calls < 2 or time.perf_counter() - begin < slice_s:
            trample(1.0)
            started = clock()
            call()
            spent += clock() - started
            calls += 1
        self._own_s += clock() - own
        self._wall_s += time.perf_counter() - begin
        return max(spent / calls - _clock_s(clock), 1e-8)

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
                begin, own = time.perf_counter(), self._clock()
                for _ in range(2):
                    optimizer.step()
                self._settle()
                spent = self._clock() - own
                self._own_s += spent
                self._wall_s += time.perf_counter() - begin
                table.setdefault(float(elements * 4), []).append(spent / 2 / count)

    def _collectives(self, seconds: float) -> None:
        weights = {size: 1.0 + size / (1 << 20) for size in PAYLOADS}
        if not self._groups:
            return
        each_s = 0.9 * seconds / (len(self._groups) * len(KINDS) * sum(weights.values()))
        work_s = self._loop(lambda: None, 0.1 * seconds)
        for communicator, tables in self._groups:
            n = communicator.mesh.extent("group")
            for kind in KINDS:
                table = tables.setdefault(f"{kind}:{n}", {})
                for size, weight in weights.items():
                    call, payload = _collective(communicator, kind, size, self.device)
                    seconds_each = self._loop(call, each_s * weight) - work_s
                    table.setdefault(float(payload), []).append(max(seconds_each, 1e-6))

    def _loop(self, call: Callable[[], object], slice_s: float) -> float:
        """Seconds of work and `call` together, of the slowest process."""
        work, trample = self._work, self._swept.add_

        def turn() -> None:
            torch.mm(work, work)
            trample(1.0)  # what comes in meets memory that is in no cache
            call()

        turn()
        self._meet()
        first = agreed(self._timed(turn, 1), "max")
        calls = max(2, min(60, int(slice_s / max(first, 1e-6))))
        self._meet()
        return agreed(self._timed(turn, calls), "max")

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
    dist.all_reduce(tensor, dist.ReduceOp.MAX if how == "max" else dist.ReduceOp.MIN)
    return float(tensor)


def _collective(
    communicator: Communicator, kind: str, payload: int, device: str
) -> tuple[Callable[[], object], int]:
    """A collective, and its payload in bytes as `plan.types.Collective` counts it."""
    n = communicator.mesh.extent("group")
    rows = n * n * max(1, payload // 4 // (n * n * 16))
    x: Tensor = torch.ones(rows, 16, device=device)
    part = torch.ones(rows // n, 16, device=device)
    calls: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: communicator.all_reduce(x, "group"),
        "all_gather": lambda: communicator.all_gather(part, "group", 0, 1, rows, 1),
        "reduce_scatter": lambda: communicator.reduce_scatter(x, "group", 0, 1, rows, 1),
        # From rows cut to columns cut, the way that attention over sequence shards goes.
        "all_to_all": lambda: communicator.all_to_all(
            x.view(rows // n, n * 16), "group", (0, 1, rows, 1), (1, 1, n * 16, 1)
        ),
        "ring_shift": lambda: communicator.ring_shift(x, "group"),
    }
    return calls[kind], x.nbytes


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

"""What a step costs before it computes anything: the step loop run on a program of no ops."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from meshwright.cluster.mesh import Mesh
from meshwright.layout.lowered import LoweredProgram, Section, StoredParameter
from meshwright.layout.types import REPLICATED
from meshwright.program.types import Value
from meshwright.runtime.collectives import SingleTransport
from meshwright.runtime.comm import Communicator
from meshwright.runtime.executor import Executable
from meshwright.runtime.local_ops import RandomKey
from meshwright.runtime.trainer import Microbatch, Trainer

_STEPS = 20

# Of one element: an optimizer's own time is measured apart.
_idle = partial(torch.optim.SGD, lr=0.0)


def step_times(device: str, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds of a step of one microbatch without ops, and of one more microbatch."""
    place = torch.device(device)
    comm = Communicator(Mesh((("data", 1),)), 0, SingleTransport())
    key = RandomKey(0, fast=True, device=place)
    lowered = _program()
    parameter = torch.zeros((), device=place)
    trainer = Trainer(lowered, {"w": parameter}, _idle, comm, key, place)
    executable = Executable(lowered, {}, comm, key, place)

    def timed(count: int) -> float:
        batch = {"x": torch.zeros((), device=place)}
        parts = [Microbatch(executable, batch, 1.0) for _ in range(count)]
        trainer.step(parts)
        begin = clock()
        for _ in range(_STEPS):
            trainer.step(parts)
        return (clock() - begin) / _STEPS

    one = timed(1)
    return one, max(timed(3) - one, 0.0) / 2


def _program() -> LoweredProgram:
    """One parameter, whose gradient is the batch; no op at all."""
    values = {name: Value(name, (), "float32", name) for name in ("w", "x")}
    nothing = Section((), (), ())
    passing = Section(("x",), (), ("x",))
    return LoweredProgram(
        mesh=Mesh((("data", 1),)),
        values=values,
        layouts=dict.fromkeys(values, REPLICATED),
        parameters=(StoredParameter("w", (), "float32", REPLICATED, "w", True, "x"),),
        buffers=(),
        batch={"x": "x"},
        constants={},
        tangent=None,
        loss="x",
        buffer_updates={},
        saved=(),
        accumulated={"w": "x"},
        gather=nothing,
        forward=passing,
        backward=passing,
        reduce=passing,
        clip=nothing,
        norm=None,
    )

"""Workers for the tests of `launch`; kept apart so that they import little."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch
import torch.distributed as dist

from meshwright.cluster.mesh import Mesh
from meshwright.errors import PlanError
from meshwright.runtime.comm import connect
from meshwright.runtime.lockstep import run_lockstep
from meshwright.runtime.worker import init_process, report


def add_ranks(payload: dict[str, Any]) -> dict[str, Any]:
    process = init_process(timeout_s=30)
    total = torch.tensor(process.rank)
    dist.all_reduce(total)
    print("standard output of", process.rank)
    for number in range(3):
        report({"number": number, "rank": process.rank})
    return {
        "sum": int(total),
        "threads": torch.get_num_threads(),
        "extra": os.environ.get("EXTRA"),
        "payload": payload,
    }


def fail(payload: dict[str, Any]) -> None:
    """Rank `rank` fails the way that is asked for while the others wait for it."""
    process = init_process(timeout_s=60)
    if process.rank == payload["rank"]:
        print("about to fail")
        if payload["how"] == "meshwright":
            raise PlanError("The plan is wrong.", "Make another.")
        if payload["how"] == "raise":
            raise ZeroDivisionError("one over nothing")
        if payload["how"] == "signal":
            os.kill(os.getpid(), signal.SIGSEGV)
        os._exit(7)
    dist.barrier()


def sleep(payload: dict[str, Any]) -> None:
    if "pid_dir" in payload:
        with open(f"{payload['pid_dir']}/{os.environ['RANK']}", "w") as file:
            file.write(str(os.getpid()))
    time.sleep(60)


def collectives_agree_with_lockstep(payload: dict[str, Any]) -> list[Any]:
    """Every collective, bit for bit what lockstep gives; returns this rank's log."""
    process = init_process(timeout_s=60)
    mesh = Mesh((("data", 2), ("tensor", process.world // 2)))

    def body(comm: Any) -> list[torch.Tensor]:
        results = []
        for shape, cut, other in [
            ((5, 8), (0, 1, 5, 1), (1, 1, 8, 1)),
            ((3, 24), (1, 3, 4, 2), (0, 1, 3, 1)),
            ((300, 1200), (1, 1, 1200, 1), (0, 1, 300, 1)),
            ((1, 4), (0, 1, 1, 1), (1, 1, 4, 1)),
        ]:
            for dtype in (torch.float32, torch.bool, torch.int16, torch.bfloat16):
                seeded = torch.Generator().manual_seed(comm.rank)
                x = (torch.rand(shape, generator=seeded) * 9).to(dtype)
                for axis in mesh.names:
                    part = comm.shard(x, axis, *cut)
                    results.append(comm.all_gather(part, axis, *cut))
                    results.append(comm.reduce_scatter(x, axis, *cut))
                    results.append(comm.all_to_all(part, axis, cut, other))
                    results.append(comm.all_reduce(x, axis, reduce="max"))
                    results.append(comm.all_reduce(x[:, 1:3], axis))  # small, not contiguous
        return results

    comm = connect(mesh)
    mine, expected = body(comm), run_lockstep(mesh, body)[process.rank]
    for number, (a, b) in enumerate(zip(mine, expected, strict=True)):
        assert a.shape == b.shape, (number, a.shape, b.shape)
        assert torch.equal(a, b), number
    return [c.model_dump() for c in comm.log.summary()]

"""Rows brought from who holds them to who needs them, against what that means."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from meshwright.cluster.mesh import Mesh
from meshwright.layout.halo import Range, chunks, overlap, rows_sent
from meshwright.plan.types import Collective
from meshwright.runtime.comm import Communicator, connect
from meshwright.runtime.lockstep import run_lockstep

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from distributed import fork_processes

MESH = Mesh((("data", 2), ("space", 3)))
# Of a dim of 7 rows in parts of 3, 3 and 1; and of one of 2 rows in parts of 1, 1 and none.
WANTED: dict[str, tuple[int, list[Range]]] = {
    "neighbours": (7, [(-1, 4), (2, 7), (5, 8)]),
    "far": (7, [(-4, 7), (-1, 10), (2, 11)]),
    "uneven": (7, [(0, 2), (2, 6), (0, 7)]),
    "nothing for one": (7, [(0, 4), (0, 0), (3, 7)]),
    "few rows": (2, [(-1, 2), (0, 3), (1, 4)]),
    "moved": (7, [(4, 7), (0, 0), (0, 3)]),
    "where they are": (7, [(0, 3), (3, 6), (6, 7)]),
}


def rows_of(x: Tensor, dim: int, wanted: Range, fill: float) -> Tensor:
    """Rows of the whole tensor, `fill` beyond its ends."""
    taken = [
        x.select(dim, row) if 0 <= row < x.shape[dim] else torch.full_like(x.select(dim, 0), fill)
        for row in range(*wanted)
    ]
    return torch.stack(taken, dim) if taken else x.narrow(dim, 0, 0)


@pytest.mark.parametrize("name", WANTED)
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("fill", [0.0, float("-inf"), 2.5])
def test_each_device_gets_the_rows_that_it_needs(name: str, dim: int, fill: float) -> None:
    size, wanted = WANTED[name]
    x = torch.rand(*((size, 4) if dim == 0 else (4, size)))
    held = chunks(size, 3)

    def body(comm: Communicator) -> Tensor:
        me = comm.index("space")
        mine = x.narrow(dim, held[me][0], held[me][1] - held[me][0])
        made = comm.halo(mine, "space", dim, held, wanted, fill)
        assert made.is_contiguous()
        return made

    for rank, made in enumerate(run_lockstep(MESH, body)):
        assert torch.equal(made, rows_of(x, dim, wanted[rank % 3], fill))


@pytest.mark.parametrize("name", WANTED)
def test_source_and_target_changed_over_give_the_adjoint(name: str) -> None:
    """<y, A x> is <A* y, x>: gradients of copies are added where the row is held."""
    size, wanted = WANTED[name]
    held = chunks(size, 3)

    def body(comm: Communicator) -> tuple[Tensor, Tensor]:
        me = comm.index("space")
        seeded = torch.Generator().manual_seed(me)
        x = torch.rand(held[me][1] - held[me][0], 5, dtype=torch.float64, generator=seeded)
        y = torch.rand(wanted[me][1] - wanted[me][0], 5, dtype=torch.float64, generator=seeded)
        there = comm.halo(x, "space", 0, held, wanted)
        back = comm.halo(y, "space", 0, wanted, held)
        assert back.shape == x.shape
        return (y * there).sum(), (back * x).sum()

    left, right = zip(*run_lockstep(MESH, body)[:3], strict=True)
    torch.testing.assert_close(sum(left), sum(right))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    x = (torch.rand(7, 2) * 9).to(dtype)
    held, wanted = chunks(7, 3), WANTED["neighbours"][1]

    def body(comm: Communicator) -> Tensor:
        me = comm.index("space")
        return comm.halo(x[slice(*held[me])], "space", 0, held, wanted, 1)

    for rank, made in enumerate(run_lockstep(MESH, body)):
        assert torch.equal(made, rows_of(x, 0, wanted[rank % 3], 1))


def test_the_log_counts_what_the_busiest_device_sends() -> None:
    held, wanted = chunks(7, 3), WANTED["neighbours"][1]
    assert rows_sent(held, wanted) == 2  # the middle device, one row each way
    assert rows_sent(wanted, held) == 2
    assert rows_sent(held, held) == 0

    def body(comm: Communicator) -> tuple[Collective, ...]:
        me = comm.index("space")
        comm.halo(torch.ones(held[me][1] - held[me][0], 5), "space", 0, held, wanted)
        return comm.log.summary()

    for ran in run_lockstep(MESH, body):
        assert ran == (Collective(kind="halo", axis="space", count=1, bytes=2 * 5 * 4),)


def test_chunks_and_overlaps() -> None:
    assert chunks(7, 3) == ((0, 3), (3, 6), (6, 7))
    assert chunks(2, 4) == ((0, 1), (1, 2), (2, 2), (2, 2))
    assert overlap((0, 3), (2, 9)) == (2, 3)
    assert overlap((0, 3), (5, 9)) == (5, 5)


def test_processes_agree_with_lockstep(tmp_path: Path) -> None:
    logs = fork_processes(halo_in_processes, 3, tmp_path)
    assert logs[0]
    assert logs[0] == logs[1] == logs[2]


def halo_in_processes(payload: dict[str, object]) -> list[dict[str, object]]:
    """Both transports between processes, held against threads."""
    from meshwright.runtime.collectives import NativeTransport, device_mesh
    from meshwright.runtime.worker import init_process

    process = init_process()
    mesh = Mesh((("space", 3),))

    def body(comm: Communicator) -> list[Tensor]:
        me, found = comm.rank, []
        for size, wanted in WANTED.values():
            held = chunks(size, 3)
            for dtype in (torch.float32, torch.bool, torch.bfloat16):
                seeded = torch.Generator().manual_seed(me)
                x = torch.rand(3, held[me][1] - held[me][0], 2, generator=seeded) * 9
                x = x.to(dtype)
                found.append(comm.halo(x, "space", 1, held, wanted))
                if dtype is not torch.bool:
                    y = torch.rand(3, wanted[me][1] - wanted[me][0], 2, generator=seeded) * 9
                    found.append(comm.halo(y.to(dtype), "space", 1, wanted, held))
        return found

    comm = connect(mesh)
    native = Communicator(mesh, comm.rank, NativeTransport(device_mesh(mesh)))
    expected = run_lockstep(mesh, body)[process.rank]
    for transport in (comm, native):
        for mine, theirs in zip(body(transport), expected, strict=True):
            assert torch.equal(mine, theirs)
    return [item.model_dump() for item in comm.log.summary()]

"""Collectives checked against what they mean, all ranks as threads of one process."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from meshwright.cluster.mesh import Mesh
from meshwright.errors import RunError, UsageError
from meshwright.layout.types import Layout, Split, cuts, local_shape
from meshwright.plan.types import Collective
from meshwright.runtime.comm import Communicator, connect
from meshwright.runtime.lockstep import run_lockstep
from meshwright.runtime.primitives import Cut, shard

MESH = Mesh((("data", 2), ("tensor", 3)))
# (shape, cut): even, uneven, empty parts, several outer, first and last dims, an inner minor.
CUTS = [
    ((6, 4), Cut(0, 1, 6, 1)),
    ((5, 4), Cut(0, 1, 5, 1)),
    ((2, 3), Cut(0, 1, 2, 1)),
    ((4, 7), Cut(1, 1, 7, 1)),
    ((2, 12, 3), Cut(1, 3, 4, 1)),
    ((2, 24, 3), Cut(1, 3, 4, 2)),
    ((2, 3, 10), Cut(2, 1, 5, 2)),
    ((3, 1), Cut(1, 1, 1, 1)),
    ((4, 3), Cut(1, 1, 3, 1)),  # one element of a row for each device
    ((0, 6), Cut(1, 1, 6, 1)),
]


def whole(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return (values * 8).to(dtype) if dtype is not torch.bool else values > 0.7


def on_tensor_axis(body: Callable[[Communicator, int], Tensor]) -> list[Tensor]:
    """Run by all six ranks; results of the ranks with data coordinate 0, in tensor order."""
    results = run_lockstep(MESH, lambda comm: body(comm, comm.index("tensor")))
    for twin, result in zip(results[3:], results[:3], strict=True):
        assert torch.equal(twin, result)
    return results[:3]


@pytest.mark.parametrize(("shape", "cut"), CUTS)
def test_all_gather_undoes_shard(shape: tuple[int, ...], cut: Cut) -> None:
    x = whole(shape)

    def body(comm: Communicator, i: int) -> Tensor:
        return comm.all_gather(comm.shard(x, "tensor", *cut), "tensor", *cut)

    for result in on_tensor_axis(body):
        assert torch.equal(result, x)
        assert result.is_contiguous()


@pytest.mark.parametrize("reduce", ["sum", "max", "min", "prod"])
@pytest.mark.parametrize(("shape", "cut"), CUTS)
def test_reduce_scatter_is_all_reduce_then_shard(
    shape: tuple[int, ...], cut: Cut, reduce: str
) -> None:
    def body(comm: Communicator, i: int) -> Tensor:
        x = whole(shape, seed=i)
        scattered = comm.reduce_scatter(x, "tensor", *cut, reduce=reduce)
        reduced = comm.all_reduce(x, "tensor", reduce=reduce)
        assert torch.equal(x, whole(shape, seed=i))
        assert torch.equal(scattered, comm.shard(reduced, "tensor", *cut))
        assert scattered.is_contiguous()
        return reduced

    terms = torch.stack([whole(shape, seed=i) for i in range(3)])
    expected = {
        "sum": terms.sum(0),
        "max": terms.amax(0),
        "min": terms.amin(0),
        "prod": terms.prod(0),
    }[reduce]
    torch.testing.assert_close(on_tensor_axis(body)[0], expected)


ALL_TO_ALL = [
    ((6, 9), Cut(0, 1, 6, 1), Cut(1, 1, 9, 1)),
    ((5, 7), Cut(0, 1, 5, 1), Cut(1, 1, 7, 1)),
    ((5, 7), Cut(1, 1, 7, 1), Cut(0, 1, 5, 1)),
    ((2, 24, 4), Cut(1, 3, 4, 2), Cut(2, 2, 2, 1)),
    ((2, 3, 1), Cut(0, 1, 2, 1), Cut(2, 1, 1, 1)),
    # both cuts on one dim
    ((2, 12, 2), Cut(1, 1, 12, 1), Cut(1, 3, 4, 1)),
    ((14, 2), Cut(0, 2, 7, 1), Cut(0, 1, 7, 2)),
    ((4,), Cut(0, 1, 4, 1), Cut(0, 2, 2, 1)),
]


@pytest.mark.parametrize(("shape", "old", "new"), ALL_TO_ALL)
def test_all_to_all_moves_the_cut(shape: tuple[int, ...], old: Cut, new: Cut) -> None:
    x = whole(shape)

    def body(comm: Communicator, i: int) -> Tensor:
        return comm.all_to_all(comm.shard(x, "tensor", *old), "tensor", tuple(old), tuple(new))

    for index, result in enumerate(on_tensor_axis(body)):
        assert torch.equal(result, shard(x, new, index, 3))
        assert result.is_contiguous()


def test_non_contiguous_inputs() -> None:
    x = whole((6, 4, 5)).permute(2, 0, 1)  # [5, 6, 4]
    cut = Cut(1, 1, 6, 1)

    def body(comm: Communicator, i: int) -> Tensor:
        part = x[:, 2 * i : 2 * i + 2]
        torch.testing.assert_close(comm.reduce_scatter(x, "tensor", *cut), part * 3)
        moved = comm.all_to_all(part, "tensor", tuple(cut), (2, 1, 4, 1))
        assert torch.equal(moved, shard(x, Cut(2, 1, 4, 1), i, 3))
        return comm.all_gather(part, "tensor", *cut)

    assert torch.equal(on_tensor_axis(body)[0], x)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.int16, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    cut = Cut(0, 1, 7, 1)

    def body(comm: Communicator, i: int) -> Tensor:
        x = whole((7, 2), i, dtype)
        total = comm.all_reduce(x, "tensor")
        assert total.dtype is dtype
        part = comm.reduce_scatter(x, "tensor", *cut)
        assert torch.equal(part, comm.shard(total, "tensor", *cut))
        assert torch.equal(comm.all_gather(part, "tensor", *cut), total)
        return total

    terms = [whole((7, 2), i, dtype) for i in range(3)]
    assert torch.equal(on_tensor_axis(body)[0], terms[0] + terms[1] + terms[2])


@pytest.mark.parametrize("size", [5, 6, 7, 12])
@pytest.mark.parametrize("outer", [1, 2])
def test_two_axes_on_one_dim(size: int, outer: int) -> None:
    """The part that each rank ends up with is the one that the layout says."""
    shape, split = (outer * size, 2), Split(0, outer, size)
    layout = Layout((("tensor", split), ("data", split)))
    x = whole(shape)

    def body(comm: Communicator) -> Tensor:
        coordinate = MESH.coordinate(comm.rank)
        levels = [
            (s.dim, s.outer, extent, 1) for s, _, _, extent in cuts(shape, layout, MESH, coordinate)
        ]
        part = comm.shard(comm.shard(x, "tensor", *levels[0]), "data", *levels[1])
        assert tuple(part.shape) == local_shape(shape, layout, MESH, coordinate)
        back = comm.all_gather(part, "data", *levels[1])
        return comm.all_gather(back, "tensor", *levels[0])

    assert all(torch.equal(result, x) for result in run_lockstep(MESH, body))


def test_log_counts_payloads() -> None:
    def body(comm: Communicator) -> tuple[Collective, ...]:
        x = torch.ones(4, 5)
        comm.all_reduce(x, "tensor")
        comm.all_reduce(x, "tensor", reduce="max")
        part = comm.reduce_scatter(x, "data", 0, 1, 4, 1)  # [2, 5]
        comm.all_gather(part, "data", 0, 1, 4, 1)
        comm.all_to_all(part, "data", (0, 1, 4, 1), (1, 1, 5, 1))
        summary = comm.log.summary()
        comm.log.reset()
        assert comm.log.summary() == ()
        return summary

    assert run_lockstep(MESH, body)[0] == (
        Collective(kind="all_gather", axis="data", count=1, bytes=80),
        Collective(kind="all_reduce", axis="tensor", count=2, bytes=160),
        Collective(kind="all_to_all", axis="data", count=1, bytes=40),
        Collective(kind="reduce_scatter", axis="data", count=1, bytes=80),
    )


def test_axis_of_one_is_free() -> None:
    comm = connect(Mesh((("data", 1),)))
    x = torch.ones(3)
    cut = (0, 1, 3, 1)
    assert comm.all_reduce(x, "data") is x
    assert comm.all_gather(x, "data", *cut) is x
    assert comm.reduce_scatter(x, "data", *cut) is x
    assert comm.all_to_all(x, "data", cut, cut) is x
    assert comm.log.summary() == ()


def test_connect_needs_one_process_a_device() -> None:
    with pytest.raises(UsageError, match="4 devices, but 1 processes"):
        connect(Mesh((("data", 4),)))


def test_lockstep_names_the_failing_rank() -> None:
    def body(comm: Communicator) -> None:
        if comm.rank == 2:
            raise ValueError("boom")
        comm.all_reduce(torch.ones(1), "tensor")

    with pytest.raises(ValueError, match="boom") as caught:
        run_lockstep(MESH, body)
    assert caught.value.__notes__ == ["on rank 2"]


def test_lockstep_finds_ranks_that_wait_for_each_other() -> None:
    def body(comm: Communicator) -> None:
        comm.all_reduce(torch.ones(1), "tensor" if comm.rank % 2 else "data")

    with pytest.raises(RunError, match="none can go on"):
        run_lockstep(MESH, body)

    with pytest.raises(RunError, match=r"Ranks \[0, 3, 4, 5\] have ended"):
        run_lockstep(
            MESH, lambda comm: comm.rank in (1, 2) and comm.all_reduce(torch.ones(1), "tensor")
        )


@pytest.mark.parametrize("kind", ["shape", "method"])
def test_lockstep_finds_calls_that_differ(kind: str) -> None:
    def body(comm: Communicator) -> None:
        if comm.rank and kind == "method":
            comm.all_gather(torch.ones(2), "tensor", 0, 1, 6, 1)
        else:
            comm.all_reduce(torch.ones(comm.rank + 1), "tensor")

    with pytest.raises(RunError, match="called different collectives: rank"):
        run_lockstep(MESH, body)


def test_lockstep_is_deterministic() -> None:
    def body(comm: Communicator) -> Tensor:
        return comm.all_reduce(whole((100,), comm.rank), "tensor")

    runs = [run_lockstep(MESH, body) for _ in range(5)]
    for first, second in itertools.pairwise(runs):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

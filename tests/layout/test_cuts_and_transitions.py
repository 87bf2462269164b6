"""Layouts as properties: parts cover the whole, and transitions lead where they say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from layout_strategies import tensors, transitions
from torch import Tensor

from meshwright.cluster.mesh import Mesh
from meshwright.layout.cuts import compatible, local_cut, ordered
from meshwright.layout.transitions import transition
from meshwright.layout.types import REPLICATED, Layout, Split, local_shape
from meshwright.runtime.comm import Communicator
from meshwright.runtime.lockstep import run_lockstep
from meshwright.runtime.place import local_part, relay

SQUARE = Mesh((("data", 2), ("tensor", 2)))


def counted(shape: tuple[int, ...]) -> Tensor:
    return torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float64).view(shape)


@given(tensors())
@settings(max_examples=150, deadline=None)
def test_parts_have_the_predicted_shape_and_cover_the_whole_once(
    case: tuple[Mesh, tuple[int, ...], Layout],
) -> None:
    mesh, shape, layout = case
    whole = counted(shape)
    seen: dict[float, int] = {}
    replicas = mesh.size
    for axis, _ in layout.shards:
        replicas //= mesh.extent(axis)
    for rank in range(mesh.size):
        part = local_part(whole, layout, mesh, mesh.coordinate(rank))
        assert tuple(part.shape) == local_shape(shape, layout, mesh, mesh.coordinate(rank))
        for number in part.reshape(-1).tolist():
            seen[number] = seen.get(number, 0) + 1
    assert seen == dict.fromkeys(whole.reshape(-1).tolist(), replicas)


@given(tensors())
@settings(max_examples=150, deadline=None)
def test_a_local_cut_is_a_view_of_the_local_dim(
    case: tuple[Mesh, tuple[int, ...], Layout],
) -> None:
    mesh, shape, layout = case
    for axis, split in layout.shards:
        for rank in range(mesh.size):
            coordinate = mesh.coordinate(rank)
            cut = local_cut(shape, layout, axis, split, mesh, coordinate)
            local = local_shape(shape, layout.without(axis), mesh, coordinate)
            assert cut.outer * cut.extent * cut.minor == local[cut.dim]


def relayed(
    mesh: Mesh, shape: tuple[int, ...], source: Layout, target: Layout
) -> tuple[Tensor, list[Tensor]]:
    """The whole tensor, and what each rank holds after the transition.

    Along a pending axis each device holds a term of its own; the whole is what they combine to.
    """
    coordinates = [mesh.coordinate(rank) for rank in range(mesh.size)]
    pending = tuple(axis for axis, _ in source.partial)
    generator = torch.Generator().manual_seed(0)
    terms: dict[tuple[int, ...], Tensor] = {}
    for coordinate in coordinates:
        key = tuple(coordinate[axis] for axis in pending)
        if key not in terms:
            terms[key] = torch.randint(-50, 50, shape, generator=generator).double()

    def combine(keep: tuple[tuple[str, int], ...]) -> Tensor:
        """Terms combined over all pending axes but those in `keep`."""
        chosen = [
            term
            for key, term in terms.items()
            if all(key[pending.index(axis)] == index for axis, index in keep)
        ]
        stacked = torch.stack(chosen)
        reduce = source.partial[0][1] if source.partial else "sum"
        return stacked.sum(0) if reduce == "sum" else stacked.amax(0)

    def rank(comm: Communicator) -> Tensor:
        coordinate = coordinates[comm.rank]
        term = terms[tuple(coordinate[axis] for axis in pending)]
        mine = local_part(term, source, mesh, coordinate)
        return relay(mine, shape, source, target, comm)

    held = run_lockstep(mesh, rank)
    expected = [
        local_part(
            combine(tuple((axis, coordinate[axis]) for axis, _ in target.partial)),
            target, mesh, coordinate,
        )
        for coordinate in coordinates
    ]  # fmt: skip
    for mine, theirs in zip(held, expected, strict=True):
        assert mine.shape == theirs.shape
        assert torch.equal(mine, theirs), (mine, theirs)
    return combine(()), held


@given(transitions())
@settings(max_examples=300, deadline=None)
@example((SQUARE, (4, 4), Layout((("data", Split(0, 1, 4)), ("tensor", Split(1, 1, 4)))),
          Layout((("data", Split(1, 1, 4)), ("tensor", Split(1, 1, 4))))))  # fmt: skip
@example((SQUARE, (4,), Layout((("tensor", Split(0, 1, 4)),)),
          Layout((("data", Split(0, 1, 4)), ("tensor", Split(0, 1, 4))))))  # fmt: skip
def test_a_transition_ends_in_its_target(
    case: tuple[Mesh, tuple[int, ...], Layout, Layout],
) -> None:
    relayed(*case)


@given(transitions())
@settings(max_examples=100, deadline=None)
def test_steps_name_the_layout_that_they_leave(
    case: tuple[Mesh, tuple[int, ...], Layout, Layout],
) -> None:
    mesh, _, source, target = case
    steps = transition(source, target)
    after = ordered(steps[-1].after, mesh) if steps else source
    assert ordered(after, mesh) == target
    assert not steps or source != target


@pytest.mark.parametrize(
    ("source", "target", "kinds"),
    [
        (Layout(), Layout(), []),
        (Layout(), Layout((("data", Split(0, 1, 8)),)), ["shard"]),
        (Layout((("data", Split(0, 1, 8)),)), REPLICATED, ["all_gather"]),
        (Layout(partial=(("data", "sum"),)), REPLICATED, ["all_reduce"]),
        (Layout(partial=(("data", "sum"),)), Layout((("data", Split(0, 1, 8)),)),
         ["reduce_scatter"]),
        (Layout((("data", Split(0, 1, 8)),)), Layout((("data", Split(1, 1, 8)),)),
         ["all_to_all"]),
        # Reduced over one axis, cut over the other: what moves is already cut.
        (Layout(partial=(("data", "sum"),)), Layout((("tensor", Split(0, 1, 8)),)),
         ["shard", "all_reduce"]),
        (Layout((("data", Split(0, 1, 8)), ("tensor", Split(0, 1, 8)))), REPLICATED,
         ["all_gather", "all_gather"]),
    ],
)  # fmt: skip
def test_the_collectives_of_common_transitions(
    source: Layout, target: Layout, kinds: list[str]
) -> None:
    assert [step.kind for step in transition(source, target)] == kinds


def test_a_replica_is_never_made_a_pending_sum() -> None:
    with pytest.raises(AssertionError, match="partial"):
        transition(REPLICATED, Layout(partial=(("data", "sum"),)))


def test_cuts_that_cross_are_no_target() -> None:
    crossing = Layout((("data", Split(0, 4, 3)), ("tensor", Split(0, 6, 3))))
    pending = Layout((("data", Split(0, 4, 3)),), (("tensor", "sum"),))
    with pytest.raises(AssertionError, match="can't be turned into"):
        transition(pending, crossing)


def test_splits_that_cross_are_incompatible() -> None:
    assert compatible(Split(0, 1, 4), Split(1, 1, 4))
    assert compatible(Split(0, 1, 4), Split(0, 4, 3))
    assert not compatible(Split(0, 1, 4), Split(0, 2, 4))

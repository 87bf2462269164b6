"""Cuts whose first part lies on another device than the first, up to one that has it all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from meshwright.cluster.mesh import Mesh
from meshwright.layout.transitions import transition
from meshwright.layout.types import REPLICATED, Layout, Split, local_shape
from meshwright.runtime.comm import Communicator
from meshwright.runtime.lockstep import run_lockstep
from meshwright.runtime.place import local_part, relay

MESH = Mesh((("data", 2), ("expert", 3)))
OWNED = [Layout((("expert", Split(0, 1, 1, device)),)) for device in range(3)]
LAYOUTS = [
    *OWNED,
    Layout((("expert", Split(0, 1, 6, 2)),)),
    Layout((("expert", Split(1, 2, 2, 1)),)),
    Layout((("expert", Split(1, 1, 4)),)),
    Layout((("data", Split(0, 1, 6)), ("expert", Split(0, 1, 1, 1)))),
    Layout((("expert", Split(0, 1, 1, 2)), ("data", Split(0, 1, 6)))),
    REPLICATED,
]


@pytest.mark.parametrize("device", range(3))
def test_one_device_has_it_all(device: int) -> None:
    for rank in range(6):
        coordinate = MESH.coordinate(rank)
        held = local_shape((6, 4), OWNED[device], MESH, coordinate)
        assert held == ((6, 4) if coordinate["expert"] == device else (0, 4))


@pytest.mark.parametrize("source", LAYOUTS, ids=str)
@pytest.mark.parametrize("target", LAYOUTS, ids=str)
def test_a_tensor_gets_from_one_layout_to_another(source: Layout, target: Layout) -> None:
    x = torch.arange(24.0).view(6, 4)

    def rank(comm: Communicator) -> tuple[Tensor, Tensor]:
        coordinate = MESH.coordinate(comm.rank)
        local = local_part(x, source, MESH, coordinate)
        assert tuple(local.shape) == local_shape((6, 4), source, MESH, coordinate)
        return relay(local, (6, 4), source, target, comm), local_part(x, target, MESH, coordinate)

    for made, expected in run_lockstep(MESH, rank):
        assert torch.equal(made, expected)


@pytest.mark.parametrize("target", LAYOUTS[:6], ids=str)
def test_terms_are_added_where_they_go(target: Layout) -> None:
    x = torch.arange(24.0).view(6, 4)
    source = REPLICATED.with_partial("expert", "sum")
    assert [step.kind for step in transition(source, target)] == ["reduce_scatter"]

    def rank(comm: Communicator) -> tuple[Tensor, Tensor]:
        coordinate = MESH.coordinate(comm.rank)
        made = relay(x * (coordinate["expert"] + 1), (6, 4), source, target, comm)
        return made, local_part(6 * x, target, MESH, coordinate)

    for made, expected in run_lockstep(MESH, rank):
        assert torch.equal(made, expected)

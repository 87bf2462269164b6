"""A local program that is shared by devices is the one that each would get by itself."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import pytest

from meshwright.api import Model, plan
from meshwright.cluster.mesh import Mesh
from meshwright.layout.assignment import assign
from meshwright.layout.lowered import LoweredProgram
from meshwright.lower.lower import lower
from meshwright.lower.shared import Lowerings, Noted, first
from meshwright.zoo.reference import load_task

OPTIONS = {
    "zoo:gpt": {"layers": "1", "width": "12", "heads": "3", "seq_len": "10", "vocab": "21",
                "global_batch": "6", "dropout": "0.1"},
    "zoo:mlp": {"classes": "5", "hidden": "10", "global_batch": "8"},
    "zoo:convnet": {"width": "4", "global_batch": "4"},
    "zoo:moe": {"size": "tiny", "layers": "1", "router": "loop"},
    "zoo:gns": {"size": "tiny", "steps": "1", "side": "7"},
}  # fmt: skip


@cache
def model(name: str) -> Model:
    return Model(load_task(name, OPTIONS[name]))


@pytest.mark.parametrize(
    ("name", "strategy", "least"),
    [
        ("zoo:mlp", "data=4", 1),  # 8 examples in 4 equal parts: all devices do the same
        ("zoo:mlp", "data=2,tensor=2,zero=3", 2),
        ("zoo:mlp", "tensor=4", 3),  # 5 classes: 2, 2, 1 and none
        ("zoo:gpt", "tensor=4", 3),
        ("zoo:gpt", "data=2,tensor=2,sequence,zero=1", 2),
        ("zoo:gpt", "context=4", 2),
        ("zoo:convnet", "replica=2,data=2,zero=3", 1),
        ("zoo:convnet", "spatial=4", 2),
        ("zoo:moe", "expert=4", 2),
        ("zoo:gns", "edge=4", 2),
    ],
)
def test_each_device_gets_its_own(name: str, strategy: str, least: int) -> None:
    known = model(name)
    made = plan(known.task, "local:4", strategy, model=known, clip_norm=1.0)
    analysis, mesh = known.microbatch(1)[1], Mesh(tuple(made.mesh.items()))
    assignment = assign(analysis, mesh, made.decisions, made.parameters, True)
    asked: list[Mapping[str, int]] = []

    def make(coordinate: Mapping[str, int]) -> LoweredProgram:
        asked.append(coordinate)
        return lower(analysis, assignment, coordinate, made.bucket_bytes)

    shared = Lowerings()
    for _ in range(2):
        for rank in range(mesh.size):
            coordinate = mesh.coordinate(rank)
            found = shared.get((analysis, assignment), mesh, coordinate, make)
            assert found == lower(analysis, assignment, coordinate, made.bucket_bytes)
    assert least <= len(asked) <= mesh.size


def test_what_is_asked_decides_for_whom_it_holds() -> None:
    noted = Noted({"data": 1, "tensor": 2})
    assert noted.holds_for({"data": 0, "tensor": 0})
    assert not first(noted, "tensor")
    assert noted.holds_for({"data": 0, "tensor": 3})
    assert not noted.holds_for({"data": 0, "tensor": 0})
    assert noted["data"] == 1
    assert not noted.holds_for({"data": 0, "tensor": 3})
    assert noted.holds_for({"data": 1, "tensor": 3})
    assert dict(noted) == {"data": 1, "tensor": 2}
    assert not noted.holds_for({"data": 1, "tensor": 3})
    assert first({"data": 0}, "data")


def test_other_plans_are_told_apart_and_few_are_kept() -> None:
    shared, plans = Lowerings(), [object() for _ in range(3)]
    made: list[object] = []

    def make(coordinate: Mapping[str, int]) -> LoweredProgram:
        made.append(coordinate)
        return len(made)  # type: ignore[return-value]  # what is made is only handed on

    found = [shared.get((each,), None, {"data": 0}, make) for each in plans]
    assert found == [1, 2, 3]
    assert shared.get((plans[2],), None, {"data": 1}, make) == 3
    assert shared.get((plans[2],), "other settings", {"data": 1}, make) == 4
    assert shared.get((plans[0],), None, {"data": 1}, make) == 5

"""Which collectives are merged, by the rule alone and in lowered programs."""

from __future__ import annotations

import pytest

from meshwright.api import Model, plan
from meshwright.cluster.mesh import Mesh
from meshwright.layout.assignment import assign
from meshwright.layout.buckets import Packing, blocks_of
from meshwright.layout.lowered import LoweredProgram
from meshwright.layout.merge import merge, row_length, tensors_of
from meshwright.lower.lower import lower
from meshwright.program.types import Op
from meshwright.zoo.gpt import gpt_task
from meshwright.zoo.reference import load_task


def members(limit: int, *items: tuple[str, int]) -> list[list[int]]:
    packing = Packing[int](limit)
    for number, (key, nbytes) in enumerate(items):
        packing.add(key, number, nbytes)
    return [bucket.members for bucket in packing.buckets]


def test_a_bucket_is_full_once_it_holds_its_size() -> None:
    assert members(10, ("a", 4), ("a", 4), ("a", 4), ("a", 4)) == [[0, 1, 2], [3]]
    assert members(10, ("a", 4), ("b", 4), ("a", 4)) == [[0, 2], [1]]


def test_a_large_tensor_goes_alone_and_closes_nothing() -> None:
    assert members(10, ("a", 4), ("a", 10), ("a", 4), ("a", 99)) == [[0, 2], [1], [3]]


def test_no_size_merges_nothing() -> None:
    assert members(0, ("a", 0), ("a", 4), ("a", 4)) == [[0], [1], [2]]


def test_blocks_are_members_of_the_outermost_list_with_two_alike() -> None:
    block = {"attn.q.weight": (4, 4), "mlp.0.weight": (8, 4), "mlp.1.weight": (8, 4)}
    shapes = {f"layers.{n}.{path}": shape for n in range(2) for path, shape in block.items()}
    stages = {f"stages.{n}.blocks.{k}.w": (n, 3) for n in range(2) for k in range(2)}
    found = blocks_of({**shapes, **stages, "embed.weight": (9, 4), "convs.0.w": (1,)})
    assert {path: name for path, name in found.items() if path in shapes} == {
        path: ".".join(path.split(".")[:2]) for path in shapes
    }
    assert found["stages.1.blocks.0.w"] == "stages.1.blocks.0"
    assert found["embed.weight"] == found["convs.0.w"] == ""


def test_the_longest_row() -> None:
    """Five rows of four and three of two over two devices: 12 + 4 elements, and 8 + 2."""
    cuts = [(0, 1, 5, 1, 0), (0, 1, 3, 1, 0)]
    assert row_length([20, 6], cuts, 2) == 16
    shifted = [(0, 1, 5, 1, 0), (0, 1, 3, 1, 1)]  # the second begins with the other device
    assert row_length([20, 6], shifted, 2) == 14


MODELS = {
    "zoo:gpt": {"layers": "2", "width": "16", "heads": "4", "vocab": "20", "seq_len": "6"},
    "zoo:mlp": {"hidden": "15", "classes": "5"},
}


def programs(name: str, strategy: str, bucket_bytes: int) -> list[LoweredProgram]:
    """Of every device."""
    model = Model(load_task(name, MODELS[name]))
    made = plan(model.task, "local:4", strategy, model=model, clip_norm=1.0)
    mesh = Mesh(tuple(made.mesh.items()))
    analysis = model.microbatch(made.microbatches)[1]
    assignment = assign(analysis, mesh, made.decisions, made.parameters, True)
    return [
        merge(lower(analysis, assignment, mesh.coordinate(rank), bucket_bytes)) for rank in range(4)
    ]


def collectives(lowered: LoweredProgram) -> list[tuple[object, ...]]:
    sections = (lowered.gather, lowered.forward, lowered.backward, lowered.reduce, lowered.clip)
    return [
        (op.target, dict(op.kwargs)["axis"], tensors_of(op))
        for section in sections
        for op in section.ops
        if "axis" in dict(op.kwargs) and op.target != "mesh.shard"
    ]


@pytest.mark.parametrize("strategy", ["zero=1", "zero=3", "data=2,tensor=2,zero=3", "tensor"])
@pytest.mark.parametrize("name", MODELS)
def test_all_devices_run_the_same_collectives(name: str, strategy: str) -> None:
    """Also where parts are of different sizes, or some devices have none."""
    for bucket_bytes in (500, 25 << 20):
        first, *others = map(collectives, programs(name, strategy, bucket_bytes))
        assert all(other == first for other in others)
        assert any(count > 1 for *_, count in first) or strategy == "tensor"


def test_gathers_of_a_microbatch_stay_inside_a_block() -> None:
    program = programs("zoo:gpt", "zero=3", 25 << 20)[0]
    block = {item.value: item.path.rpartition(".")[0] for item in program.parameters}

    def blocks(op: Op) -> set[str]:
        return {".".join(block[name].split(".")[:2]) for name in op.operands()}

    merged = [op for op in program.forward.ops if tensors_of(op) > 1]
    assert {frozenset(blocks(op)) for op in merged if "blocks" in str(blocks(op))} == {
        frozenset({"blocks.0"}), frozenset({"blocks.1"}),
    }  # fmt: skip


def test_merged_programs_are_kept_while_theirs_live() -> None:
    model = Model(gpt_task(layers=1, width=16, heads=4, vocab=20, seq_len=6, global_batch=8))
    made = plan(model.task, "local:2", "data", model=model)
    mesh = Mesh(tuple(made.mesh.items()))
    assignment = assign(model.microbatch(1)[1], mesh, made.decisions, made.parameters)
    program = lower(model.microbatch(1)[1], assignment, mesh.coordinate(0), 1 << 20)
    assert merge(program) is merge(program)
    assert merge(merge(program)) is merge(program)

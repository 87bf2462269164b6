"""Repeated blocks are found by structure, lowered once, and lowered to what they would be alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshwright.api import Model, plan
from meshwright.cluster.mesh import Mesh
from meshwright.layout.assignment import Assignment, assign
from meshwright.layout.lowered import LoweredProgram
from meshwright.lower import lower as lowering_module
from meshwright.lower.lower import Lowering, lower
from meshwright.program.blocks import Repeat, correspondence, repeats
from meshwright.program.types import Op, Ref
from meshwright.zoo.gpt import gpt_task

LAYERS = 6


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(
        gpt_task(layers=LAYERS, width=16, heads=4, vocab=20, seq_len=6, global_batch=8, dropout=0.1)
    )


def assignment(model: Model, strategy: str) -> Assignment:
    made = plan(model.task, "local:4", strategy, model=model)
    mesh = Mesh(tuple(made.mesh.items()))
    return assign(model.microbatch(1)[1], mesh, made.decisions, made.parameters)


def without_names(program: LoweredProgram) -> list[object]:
    """Every op with values as numbers in order of appearance."""
    numbers: dict[str, int] = {}

    def number(name: str | None) -> object:
        if name is None:
            return None
        value = program.values.get(name)
        known = value and (value.shape, value.dtype, program.layouts[name])
        return numbers.setdefault(name, len(numbers)), known

    sections = (program.gather, program.forward, program.backward, program.reduce)
    return [
        (
            op.target, op.source, op.kwargs,
            [number(name) for name in op.operands()], [number(name) for name in op.results],
        )
        for section in sections
        for op in section.ops
    ]  # fmt: skip


@pytest.mark.parametrize(
    "strategy",
    ["data", "zero=2", "zero=3", "data=2,tensor=2,zero=3", "tensor,sequence", "context=2,tensor=2"],
)
@pytest.mark.parametrize("rank", [0, 3])
def test_copies_are_what_lowering_op_by_op_gives(model, strategy, rank, monkeypatch) -> None:
    made = assignment(model, strategy)
    analysis, coordinate = model.microbatch(1)[1], made.mesh.coordinate(rank)
    counted: list[str] = []
    lower_op = Lowering.lower_op

    def count(self: Lowering, op: Op) -> None:
        counted.append(op.name)
        lower_op(self, op)

    monkeypatch.setattr(Lowering, "lower_op", count)
    repeated = lower(analysis, made, coordinate)
    by_copying = len(counted)
    counted.clear()

    def one_by_one(lowering: Lowering, ops: tuple[Op, ...]) -> None:
        for op in ops:
            lowering.lower_op(op)

    monkeypatch.setattr(lowering_module, "lower_repeats", one_by_one)
    plain = lower(analysis, made, coordinate)
    assert without_names(repeated) == without_names(plain)
    # The first block meets other layouts than the rest, so two of six are lowered.
    assert by_copying < len(counted) / 2


def test_layers_are_found_in_forward_and_backward(model) -> None:
    program = model.microbatch(1)[0].program
    for phase in ("forward", "backward"):
        ops = program.phase_ops(phase)
        (found,) = repeats(program, ops)
        assert found.count == LAYERS
        first = found.run(0, ops)
        assert all(correspondence(first, found.run(k, ops)) for k in range(LAYERS))


def test_a_layer_of_another_kind_ends_the_stretch(model) -> None:
    program = model.microbatch(1)[0].program
    ops = list(program.phase_ops("forward"))
    (found,) = repeats(program, ops)
    odd = found.start + 3 * found.length
    ops[odd] = replace(ops[odd], target="aten.other.default")
    before, *after = repeats(program, ops)
    assert before == Repeat(found.start, found.length, 3)
    assert all(other.start > odd for other in after)


def op(target: str, operands: list[str], result: str) -> Op:
    refs = tuple(Ref(name) for name in operands)
    return Op(result, target, refs, (), (result,), False, "forward")


def test_runs_whose_values_are_joined_otherwise_do_not_correspond() -> None:
    one = [op("f", ["x"], "a"), op("g", ["a", "x"], "b")]
    assert correspondence(one, [op("f", ["y"], "c"), op("g", ["c", "y"], "d")]) == {
        "x": "y", "a": "c", "b": "d",
    }  # fmt: skip
    assert correspondence(one, [op("f", ["y"], "c"), op("g", ["c", "z"], "d")]) is None
    assert correspondence(one, [op("f", ["y"], "c"), op("g", ["y", "y"], "d")]) is None

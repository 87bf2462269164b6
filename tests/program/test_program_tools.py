"""The verifier refuses what is illegal, the printer is readable, the fingerprint is exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from meshwright.program.fingerprint import fingerprint, parameters_fingerprint
from meshwright.program.printer import format_program
from meshwright.program.types import Input, Op, Program, Ref, Source, Symbol, Value
from meshwright.program.verifier import IllegalProgram, problems_of, verify_program


def op(name: str, target: str, args: tuple[Any, ...], phase: Any, **more: Any) -> Op:
    fields: dict[str, Any] = {"kwargs": (), "results": (name,), "returns_tuple": False, **more}
    return Op(name=name, target=target, args=args, phase=phase, **fields)


def value(name: str, *shape: int, storage: str = "", dtype: str = "float32") -> Value:
    return Value(name, shape, dtype, storage or name)


def small() -> Program:
    """loss = sum(x @ w.t()), with a counter."""
    values = [
        value("w", 3, 2), value("n", dtype="int64"), value("batch", 4, 2), value("tangent"),
        value("t", 2, 3, storage="w"), value("mm", 4, 3), value("sum"), value("add", dtype="int64"),
        value("backward/expand", 4, 3, storage="tangent"),
        value("backward/t", 3, 4, storage="tangent"), value("backward/mm", 3, 2),
    ]  # fmt: skip
    source = Source("layer", "/home/someone/model.py", 12, "x @ w.t()")
    return Program(
        values={item.name: item for item in values},
        inputs=(
            Input("w", "parameter", "w", trainable=True, aliases=("v",)),
            Input("n", "buffer", "n"),
            Input("batch", "batch", "batch"),
            Input("tangent", "tangent", "tangent"),
        ),
        ops=(
            op("t", "aten.t.default", (Ref("w"),), "forward", source=source),
            op("mm", "aten.mm.default", (Ref("batch"), Ref("t")), "forward", source=source),
            op(
                "sum", "aten.sum.default", (Ref("mm"),), "forward",
                kwargs=(("dtype", Symbol("dtype", "float32")),),
            ),
            op("add", "aten.add.Tensor", (Ref("n"), 1), "forward"),
            op("backward/expand", "aten.expand.default", (Ref("tangent"), (4, 3)), "backward"),
            op("backward/t", "aten.t.default", (Ref("backward/expand"),), "backward"),
            op("backward/mm", "aten.mm.default", (Ref("backward/t"), Ref("batch")), "backward"),
        ),
        loss="sum",
        gradients={"w": "backward/mm"},
        buffer_updates={"n": "add"},
    )  # fmt: skip


def with_op(program: Program, index: int, **changes: Any) -> Program:
    ops = list(program.ops)
    ops[index] = replace(ops[index], **changes)
    return replace(program, ops=tuple(ops))


def with_value(program: Program, name: str, **changes: Any) -> Program:
    return replace(
        program, values={**program.values, name: replace(program.values[name], **changes)}
    )


def moved_last(program: Program, index: int) -> Program:
    ops = list(program.ops)
    ops.append(ops.pop(index))
    return replace(program, ops=tuple(ops))


def test_a_legal_program_has_no_problems() -> None:
    assert list(problems_of(small())) == []
    verify_program(small())


BROKEN: dict[str, tuple[Callable[[Program], Program], str]] = {
    "undefined": (lambda p: with_op(p, 1, args=(Ref("nowhere"),)), "uses nowhere"),
    "order": (lambda p: moved_last(p, 0), "uses t, which is not defined before"),
    "phase order": (lambda p: moved_last(p, 3), "comes after the backward began"),
    "forward uses tangent": (
        lambda p: with_op(p, 2, args=(Ref("tangent"),)), "uses tangent of the backward",
    ),
    "twice": (lambda p: replace(p, ops=(*p.ops, p.ops[-1])), "a second time"),
    "two names": (lambda p: with_op(p, 1, name="t"), "two ops are named t"),
    "no type": (
        lambda p: replace(p, values={k: v for k, v in p.values.items() if k != "mm"}),
        "mm, which has no type",
    ),
    "orphan": (
        lambda p: replace(p, values={**p.values, "x": value("x")}), "x is defined nowhere",
    ),
    "dtype": (lambda p: with_value(p, "mm", dtype="float31"), "unknown dtype 'float31'"),
    "shape": (lambda p: with_value(p, "mm", shape=(4, -1)), r"has the shape \(4, -1\)"),
    "storage": (lambda p: with_value(p, "t", storage="u"), "u, which is no value"),
    "view of view": (lambda p: with_value(p, "backward/mm", storage="t"), "itself a view"),
    "late storage": (
        lambda p: with_value(p, "t", storage="backward/mm"), "which is defined later",
    ),
    "loss": (lambda p: replace(p, loss="mm"), "not a floating-point scalar"),
    "loss type": (lambda p: replace(p, loss="add"), "not a floating-point scalar"),
    "gradient shape": (lambda p: replace(p, gradients={"w": "mm"}), "the gradient of w is"),
    "gradient missing": (lambda p: replace(p, gradients={}), "w is trainable or has a gradient"),
    "update": (lambda p: replace(p, buffer_updates={"m": "add"}), "of no buffer"),
    "update shape": (lambda p: replace(p, buffer_updates={"n": "mm"}), "the update of n is"),
    "symbol": (
        lambda p: with_op(p, 2, args=(Ref("mm"), (Symbol("colour", "red"),))), "kind 'colour'",
    ),
    "results": (lambda p: with_op(p, 1, results=(None,)), "returns one tensor but"),
    "path": (lambda p: replace(p, inputs=(*p.inputs, p.inputs[0])), "two inputs are the"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_illegal_is_named(name: str) -> None:
    damage, message = BROKEN[name]
    with pytest.raises(IllegalProgram, match=message):
        verify_program(damage(small()))


def test_the_listing() -> None:
    assert format_program(small()) == (
        "parameter w: f32[3, 2]  (trainable, also v)\n"
        "buffer n: i64[]\n"
        "batch batch: f32[4, 2]\n"
        "tangent tangent: f32[]\n"
        "\n"
        "forward: 4 ops\n"
        "  t: f32[2, 3] ~w = aten.t(%w)\n"
        "  mm: f32[4, 3] = aten.mm(%batch, %t)\n"
        "  sum: f32[] = aten.sum(%mm, dtype=float32)\n"
        "  add: i64[] = aten.add.Tensor(%n, 1)\n"
        "\n"
        "backward: 3 ops\n"
        "  backward/expand: f32[4, 3] ~tangent = aten.expand(%tangent, [4, 3])\n"
        "  backward/t: f32[3, 4] ~tangent = aten.t(%backward/expand)\n"
        "  backward/mm: f32[3, 2] = aten.mm(%backward/t, %batch)\n"
        "\n"
        "loss sum\n"
        "gradient of w: backward/mm\n"
        "update of n: add\n"
    )
    assert "# layer (/home/someone/model.py:12)" in format_program(small(), sources=True)


def test_the_fingerprint_is_the_same_everywhere() -> None:
    assert fingerprint(small()) == fingerprint(small())
    assert len(fingerprint(small())) == 64
    assert (
        fingerprint(small()) == "42710b8ba17da66339e77eba5704190c52bb24a3e94ba34b06dfe075a1adbe30"
    ), "the fingerprint's form changed: plans made before will not be recognised"


def test_the_fingerprint_ignores_where_the_code_is() -> None:
    moved = with_op(small(), 0, source=Source("layer", "/elsewhere/model.py", 99, "other"))
    assert fingerprint(moved) == fingerprint(small())


CHANGES: dict[str, Callable[[Program], Program]] = {
    "shape": lambda p: with_value(p, "mm", shape=(3, 4)),
    "dtype": lambda p: with_value(p, "mm", dtype="bfloat16"),
    "storage": lambda p: with_value(p, "t", storage="t"),
    "target": lambda p: with_op(p, 1, target="aten.bmm.default"),
    "int or float": lambda p: with_op(p, 3, args=(Ref("n"), 1.0)),
    "int or bool": lambda p: with_op(p, 3, args=(Ref("n"), True)),
    "ref or text": lambda p: with_op(p, 3, args=("n", 1)),
    "symbol": lambda p: with_op(p, 2, kwargs=(("dtype", Symbol("dtype", "float64")),)),
    "infinity": lambda p: with_op(p, 3, args=(Ref("n"), float("-inf"))),
    "gradient": lambda p: replace(p, gradients={"w": None}),
    "frozen": lambda p: replace(p, inputs=(replace(p.inputs[0], trainable=False), *p.inputs[1:])),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_fingerprint_sees_every_change(name: str) -> None:
    assert fingerprint(CHANGES[name](small())) != fingerprint(small())


def test_the_parameters_fingerprint_sees_only_parameters_and_buffers() -> None:
    program = small()
    expected = parameters_fingerprint(program)
    assert parameters_fingerprint(CHANGES["target"](program)) == expected
    assert parameters_fingerprint(replace(program, inputs=program.inputs[::-1])) == expected
    assert parameters_fingerprint(CHANGES["frozen"](program)) != expected
    assert parameters_fingerprint(with_value(program, "w", shape=(2, 3))) != expected

"""Ops that make tensors from nothing, and random draws."""

from __future__ import annotations

from dataclasses import replace

from meshwright.program.types import Argument, Op
from meshwright.rules.build import broadcast
from meshwright.rules.registry import Call, rule
from meshwright.rules.types import Factor, OpRule, Shape


@rule("aten.full.default", "aten.zeros.default", "aten.ones.default", "aten.empty.memory_format")
def full(call: Call) -> OpRule:
    def localize(
        op: Op, operands: tuple[Shape, ...], results: tuple[Shape | None, ...]
    ) -> tuple[Argument, ...]:
        assert results[0] is not None
        return (results[0], *op.args[1:])

    return broadcast((), call.results, localize=localize)


@rule(
    "aten.arange.default",
    "aten.arange.start",
    "aten.arange.start_step",
    "aten.linspace.default",
    "aten.eye.default",
    "aten.scalar_tensor.default",
    "aten.eye.m",
    "aten.logspace.default",
    "aten.tril_indices.default",
    "aten.triu_indices.default",
    "aten.hann_window.default",
    "aten.hann_window.periodic",
    "aten.hamming_window.default",
    "aten.hamming_window.periodic",
    "aten.blackman_window.default",
)
def positional(call: Call) -> OpRule:
    """What an element holds depends on where it stands: made whole, then cut where needed."""
    made = broadcast((), call.results)
    return OpRule(
        tuple(Factor(factor.size, shardable=False) for factor in made.factors),
        made.operands,
        made.results,
    )


SHAPE_ALONE = frozenset({
    "aten.new_zeros.default", "aten.new_ones.default", "aten.new_full.default",
    "aten.new_empty.default", "aten.new_empty_strided.default",
})  # fmt: skip
"""Ops that take a dtype from their operand and nothing else: any part of it will do."""


@rule("aten.new_zeros.default", "aten.new_ones.default", "aten.new_full.default",
      "aten.new_empty.default")  # fmt: skip
def new(call: Call) -> OpRule:
    """The first operand gives only its dtype; its dims follow the result's where they agree."""

    def localize(
        op: Op, operands: tuple[Shape, ...], results: tuple[Shape | None, ...]
    ) -> tuple[Argument, ...]:
        assert results[0] is not None
        return (op.args[0], results[0], *op.args[2:])

    made = broadcast((), call.results, localize=localize)
    result = call.results[0]
    dims = made.results[0] if call.shapes[0] == result else ((),) * len(call.shapes[0])
    assert dims is not None
    return OpRule(made.factors, (dims,), made.results, localize=localize)


@rule("aten.new_empty_strided.default")
def new_empty_strided(call: Call) -> OpRule:
    """What is uninitialised needs no particular strides: those of the local part will do."""
    made = new(call)

    def localize(
        op: Op, operands: tuple[Shape, ...], results: tuple[Shape | None, ...]
    ) -> tuple[Argument, ...]:
        assert results[0] is not None
        return (op.args[0], results[0])

    return replace(made, localize=localize, target="aten.new_empty.default")


@rule(
    "aten.native_dropout.default",
    "aten.bernoulli.p",
    "aten.bernoulli.default",
    "aten.rand_like.default",
    "aten.randn_like.default",
    "aten.rand.default",
    "aten.randn.default",
)
def random(call: Call) -> OpRule:
    """Draws are by global position (see `meshwright.runtime.random`), so any dim can be cut."""
    return broadcast(call.shapes, call.results)


@rule("aten.triu.default", "aten.tril.default")
def triangle(call: Call) -> OpRule:
    """The last two dims say what is kept."""
    made = broadcast(call.shapes, call.results)
    rank = len(call.shapes[0])
    last = {made.operands[0][dim][0] for dim in (rank - 2, rank - 1) if made.operands[0][dim]}
    return OpRule(
        tuple(
            Factor(factor.size, shardable=index not in last)
            for index, factor in enumerate(made.factors)
        ),
        made.operands,
        made.results,
        "unary",
    )

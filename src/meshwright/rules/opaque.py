"""Modules that run as they are: cut along the batch or not at all."""

from __future__ import annotations

from collections.abc import Callable

from meshwright.program.types import Argument, Op
from meshwright.rules.registry import Call, rule
from meshwright.rules.types import Dims, Factor, Localize, OpRule, Shape

WHOLE, CUT, SUMMED = 0, 1, 2  # how a tensor of the call goes with the batch

_Share = Callable[[tuple[Shape, ...], tuple[Shape | None, ...]], float]

FLOPS, BYTES, LAUNCHES = 5, 6, 7  # positions of a call's cost among its arguments


@rule("mesh.opaque.default")
def opaque(call: Call) -> OpRule:
    """(state, inputs, …) -> what autograd keeps, outputs, updated buffers.

    What autograd keeps has the batch as dim 0, so that the backward is cut as
    the forward was.
    """
    state = len(_tuple(call, 0))
    cut = call.ints(3, "inputs_cut")
    outputs = call.ints(4, "outputs_cut")
    size = _batch(call.shapes[state:], cut)
    kept = call.results[0]
    assert kept is not None
    if size < 2:
        return OpRule((), _bare(call.shapes), _bare_results(call))
    kinds = (CUT, *outputs, *[WHOLE] * (len(call.results) - 1 - len(outputs)))
    return OpRule(
        (Factor(size, combine="sum"),),
        tuple(
            _dims(shape, kind)
            for shape, kind in zip(call.shapes, (*[WHOLE] * state, *cut), strict=True)
        ),
        tuple(
            None if shape is None else _dims(shape, kind)
            for shape, kind in zip(call.results, kinds, strict=True)
        ),
        localize=_localize(lambda operands, results: (results[0] or (0,))[0] / size),
        unreduced=frozenset((k, 0) for k, kind in enumerate(kinds) if kind == WHOLE),
    )


@rule("mesh.opaque_backward.default")
def opaque_backward(call: Call) -> OpRule:
    """(gradients of outputs, what autograd kept, state, …) -> gradients of state and inputs."""
    gradients = sum(item is not None for item in _tuple(call, 0))
    state = len(_tuple(call, 2))
    cut = call.ints(4, "gradients_cut")
    outputs, results = cut[:gradients], cut[gradients:]
    kept = call.shapes[gradients]
    if kept[0] < 2 or CUT not in cut:
        return OpRule((), _bare(call.shapes), _bare_results(call), follows=gradients)
    size = kept[0]
    return OpRule(
        (Factor(size, combine="sum"),),
        tuple(
            _dims(shape, kind)
            for shape, kind in zip(
                call.shapes, (*outputs, CUT, *[WHOLE] * state), strict=True
            )
        ),
        tuple(
            None if shape is None else _dims(shape, kind)
            for shape, kind in zip(call.results, results, strict=True)
        ),
        localize=_localize(lambda operands, results: operands[gradients][0] / size),
        follows=gradients,
    )  # fmt: skip


def _localize(share_of: _Share) -> Localize:
    def localize(
        op: Op, operands: tuple[Shape, ...], results: tuple[Shape | None, ...]
    ) -> tuple[Argument, ...]:
        share = share_of(operands, results)
        args = list(op.args)
        for position in (FLOPS, BYTES):
            number = args[position]
            assert isinstance(number, (int, float))
            args[position] = number * share
        return tuple(args)

    return localize


def _tuple(call: Call, position: int) -> tuple[Argument, ...]:
    argument = call.op.args[position]
    assert isinstance(argument, tuple), argument
    return argument


def _batch(inputs: tuple[Shape, ...], cut: tuple[int, ...]) -> int:
    sizes = [shape[0] for shape, kind in zip(inputs, cut, strict=True) if kind == CUT]
    return sizes[0] if sizes else 0


def _dims(shape: Shape, kind: int) -> Dims:
    return ((0,), *[()] * (len(shape) - 1)) if kind == CUT else ((),) * len(shape)


def _bare(shapes: tuple[Shape, ...]) -> tuple[Dims, ...]:
    return tuple(((),) * len(shape) for shape in shapes)


def _bare_results(call: Call) -> tuple[Dims | None, ...]:
    return tuple(None if shape is None else ((),) * len(shape) for shape in call.results)

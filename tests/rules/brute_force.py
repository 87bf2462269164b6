"""An op cut along one factor, run part by part as its rule says, and put together again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from meshwright.cluster.mesh import Mesh
from meshwright.layout.lowered import Section
from meshwright.layout.types import Layout, Split, local_shape
from meshwright.lower.emit import emit
from meshwright.lower.empty import emptied, known_results, neutral
from meshwright.program.types import Argument, Op, Ref, Symbol, Value
from meshwright.rules import FactorCut, OpRule, rule_of
from meshwright.runtime.place import local_part
from meshwright.runtime.primitives import Cut, positions
from rules.rule_cases import Case

AXIS = "x"


@dataclass(frozen=True)
class Recorded:
    """A case as an op over values, with the tensors of its operands and what it gave."""

    op: Op
    values: Mapping[str, Value]
    tensors: Mapping[str, Tensor]
    whole: tuple[Tensor | None, ...]

    @property
    def rule(self) -> OpRule:
        return rule_of(self.op, self.values)


def record(case: Case) -> Recorded:
    """Run a case whole."""
    tensors: dict[str, Tensor] = {}

    def argument(item: Any) -> Argument:
        if isinstance(item, Tensor):
            name = f"operand{len(tensors)}"
            tensors[name] = item
            return Ref(name)
        if isinstance(item, (list, tuple)):
            return tuple(argument(part) for part in item)
        if isinstance(item, torch.dtype):
            return Symbol("dtype", str(item).removeprefix("torch."))
        return item

    args = tuple(argument(item) for item in case.args)
    kwargs = tuple((name, argument(item)) for name, item in case.kwargs.items())
    name, overload = case.target.split(".")
    made = getattr(getattr(torch.ops.aten, name), overload)(
        *(item.clone() if isinstance(item, Tensor) else item for item in case.args), **case.kwargs
    )
    tupled = not isinstance(made, Tensor)
    whole = tuple(made) if tupled else (made,)
    results = tuple(None if x is None else f"result{k}" for k, x in enumerate(whole))
    op = Op("op", f"aten.{case.target}", args, kwargs, results, tupled, "forward")
    named = {name: x for name, x in zip(results, whole, strict=True) if name is not None}
    values = {
        name: Value(name, tuple(x.shape), str(x.dtype).removeprefix("torch."), name)
        for name, x in {**tensors, **named}.items()
    }
    return Recorded(op, values, tensors, whole)


def run_op(op: Op, values: Mapping[str, Value], tensors: Mapping[str, Tensor]) -> list[Any]:
    """Run one op through the code generator; a result that the op leaves out is None."""
    inputs = tuple(dict.fromkeys(op.operands()))
    outputs = tuple(result for result in op.results if result is not None)
    run, _ = emit("op", Section(inputs, (op,), outputs), values, {}, torch.device("cpu"))
    made = dict(zip(outputs, run([tensors[name].clone() for name in inputs]), strict=True))
    return [None if result is None else made[result] for result in op.results]


def cuts_of(rule: OpRule, special: bool = False) -> Iterator[FactorCut]:
    """Every way to cut a shardable factor that some tensor holds: whole, and strided."""
    for factor, described in enumerate(rule.factors):
        held = any(
            factor in dim
            for dims in (*rule.operands, *rule.results)
            if dims is not None
            for dim in dims
        )
        if not described.shardable or not held or bool(described.special) != special:
            continue
        for outer in range(1, described.size):
            if described.size % outer == 0:
                yield FactorCut(factor, outer, described.size // outer)
                if outer > 1 and described.size // outer % 2 == 0 and described.size > 4:
                    yield FactorCut(factor, outer, described.size // outer // 2)


def run_in_parts(recorded: Recorded, cut: FactorCut, parts: int) -> list[Tensor | None]:
    """The op on each of `parts` devices, and its results combined as the rule says."""
    rule, op = recorded.rule, recorded.op
    mesh = Mesh(((AXIS, parts),))
    names = tuple(op.operands())
    found = []
    for index in range(parts):
        coordinate = {AXIS: index}
        tensors = {
            name: local_part(recorded.tensors[name], _layout(rule, dims, cut), mesh, coordinate)
            for name, dims in zip(names, rule.operands, strict=True)
        }
        shapes = tuple(
            None
            if name is None or dims is None
            else local_shape(
                recorded.values[name].shape, _layout(rule, dims, cut), mesh, coordinate
            )
            for name, dims in zip(op.results, rule.results, strict=True)
        )
        known = known_results(rule, emptied({AXIS: cut}, mesh, coordinate), shapes)
        if known is not None:
            found.append(
                [
                    None
                    if shape is None or whole is None
                    else torch.full(
                        shape,
                        neutral(reduce, str(whole.dtype).removeprefix("torch.")),
                        dtype=whole.dtype,
                    )
                    for shape, reduce, whole in zip(shapes, known, recorded.whole, strict=True)
                ]
            )
            continue
        local = op
        if rule.localize is not None:
            operands = tuple(tuple(tensors[name].shape) for name in names)
            local = replace(
                op, args=rule.localize(op, operands, shapes), target=rule.target or op.target
            )
        made = run_op(local, recorded.values, tensors)
        for shape, result in zip(shapes, made, strict=True):
            assert shape is None or tuple(result.shape) == shape, (
                f"part {index} of {parts} has shape {list(result.shape)}, the rule says {shape}"
            )
        found.append(made)
    return [
        _combined(rule, position, cut, [made[position] for made in found], whole)
        for position, whole in enumerate(recorded.whole)
    ]


def _layout(rule: OpRule, dims: Any, cut: FactorCut) -> Layout:
    split = rule.to_split(dims, cut)
    return Layout() if split is None else Layout(((AXIS, split),))


def _combined(
    rule: OpRule, position: int, cut: FactorCut, parts: list[Any], whole: Tensor | None
) -> Tensor | None:
    dims = rule.results[position]
    if whole is None or dims is None:
        return None
    split = rule.to_split(dims, cut)
    if split is not None:
        return joined(parts, split, tuple(whole.shape))
    if rule.reduces(position, cut.factor):
        terms = torch.stack(parts)
        combine = rule.factors[cut.factor].combine
        return {
            "sum": lambda: terms.sum(0, dtype=terms.dtype),
            "prod": lambda: terms.prod(0),
            "max": lambda: terms.amax(0),
            "min": lambda: terms.amin(0),
        }[combine or "sum"]()
    for part in parts[1:]:
        torch.testing.assert_close(part, parts[0], rtol=1e-4, atol=1e-5, equal_nan=True)
    return parts[0]


def joined(parts: list[Tensor], split: Split, shape: tuple[int, ...]) -> Tensor:
    """The whole tensor from its parts along one split."""
    minor = shape[split.dim] // (split.outer * split.extent)
    cut = Cut(split.dim, split.outer, split.extent, minor)
    whole = parts[0].new_empty(shape)
    for index, part in enumerate(parts):
        whole.index_copy_(split.dim, positions(cut, index, len(parts)), part)
    return whole

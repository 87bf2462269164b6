"""Running an op on small inputs, whole and in parts, for `probing`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from meshwright.layout.types import Reduce, Split
from meshwright.lower.emit import symbol
from meshwright.program.types import Argument, Ref, Symbol
from meshwright.rules.pattern import Place
from meshwright.rules.probe import Scheme, schemes, with_sizes
from meshwright.rules.registry import Call

Results = list[Tensor | None]

REDUCTIONS: tuple[Reduce, ...] = ("sum", "max", "min", "prod")
# Magnitudes of draws: an op may change what it does beyond some size.
_SCALES = (1.0, 1.0, 20.0, 0.05, 1000.0)
_MOST_ELEMENTS = 1 << 24  # in all operands of one run
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Run:
    """A whole run: sizes, operands and what the op gave."""

    scheme: Scheme
    operands: tuple[Tensor, ...]
    results: Results


def op_of(target: str) -> Any:
    namespace, name, overload = target.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)


def run_op(call: Call, args: tuple[Argument, ...], operands: Sequence[Tensor]) -> Results:
    """The op on other operands and positional arguments; results that it leaves out are None."""
    following = iter(operands)

    def real(argument: Argument) -> Any:
        if isinstance(argument, Ref):
            return next(following)
        if isinstance(argument, Symbol):
            return symbol(argument, _CPU)
        if isinstance(argument, tuple):
            return [real(item) for item in argument]
        return argument

    positional = [real(argument) for argument in args]
    named = {name: real(argument) for name, argument in call.op.kwargs}
    output = op_of(call.op.target)(*positional, **named)
    outputs = list(output) if call.op.returns_tuple else [output]
    if len(outputs) != len(call.op.results):
        raise RuntimeError(f"it gave {len(outputs)} results, not {len(call.op.results)}")
    return [
        item if name is not None and isinstance(item, Tensor) else None
        for name, item in zip(call.op.results, outputs, strict=True)
    ]


def whole_runs(call: Call, wanted: Callable[[Scheme], bool]) -> tuple[list[Run], str]:
    """Whole runs with some schemes that work, each with several draws; or why none does."""
    runs: list[Run] = []
    failure = "none of the sizes tried suits it"
    kept = 0
    places = None
    for scheme in schemes(call):
        if kept >= 2 or any(run.scheme == scheme for run in runs):
            continue
        if places is not None and scheme.places != places:
            break
        shapes = [scheme.shape(shape) for shape in call.shapes]
        if sum(_numel(shape) for shape in shapes) > _MOST_ELEMENTS or not wanted(scheme):
            continue
        made: list[Run] = []
        for draw, scale in enumerate(_SCALES if not kept else _SCALES[:3]):
            operands = tuple(drawn(call, shapes, draw, scale))
            try:
                results = run_op(call, scheme.args(call.op.args), operands)
            except Exception as error:
                failure = f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"
                break
            if any(
                result is not None and shape is not None and result.dim() != len(shape)
                for result, shape in zip(results, call.results, strict=True)
            ):
                failure = "its results have other dims there"
                break
            if all(result is None or _meaningful(result) for result in results):
                made.append(Run(scheme, operands, results))
        else:
            if len(made) >= 2:
                runs += made
                kept += 1
                places = scheme.places
    return runs, failure


def drawn(
    call: Call, shapes: Sequence[tuple[int, ...]], draw: int, scale: float
) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1234 + draw)
    lowest = min((size for shape in shapes for size in shape if size > 1), default=2)
    for name, shape in zip(call.op.operands(), shapes, strict=True):
        dtype: torch.dtype = getattr(torch, call.values[name].dtype)
        if dtype == torch.bool:
            yield torch.rand(shape, generator=generator) < 0.5
        elif dtype.is_floating_point or dtype.is_complex:
            drawn = torch.randn(shape, generator=generator) * scale
            yield (drawn.abs() if draw == 1 else drawn).to(dtype)
        else:
            yield torch.randint(lowest, shape, generator=generator, dtype=torch.int64).to(dtype)


def positions(size: int, split: Split, parts: int) -> list[Tensor]:
    """Indices of each part of a dim of `size` that is cut by `split`."""
    minor = size // (split.outer * split.extent)
    whole = torch.arange(size).reshape(split.outer, split.extent, minor)
    found = []
    for index in range(parts):
        start, count = split.part(index, parts)
        found.append(whole[:, start : start + count].reshape(-1))
    return [piece for piece in found if len(piece)]


def run_parts(
    call: Call,
    run: Run,
    dims: Sequence[int | None],
    pieces: Sequence[Sequence[Tensor]],
    places: Sequence[Place],
    held: Sequence[Tensor],
) -> list[Results] | None:
    """The op on each part, operand k cut along `dims[k]` at `pieces[k]`; None when it raises."""
    made = []
    for index in range(len(held)):
        operands = [
            x if dim is None else x.index_select(dim, cut[index])
            for x, dim, cut in zip(run.operands, dims, pieces, strict=True)
        ]
        args = run.scheme.args(call.op.args)
        args = with_sizes(args, {place: len(held[index]) for place in places})
        try:
            made.append(run_op(call, args, operands))
        except Exception:
            return None
    return made


def reduced(terms: Sequence[Tensor], reduce: Reduce) -> Tensor:
    stacked = torch.stack(list(terms))
    if stacked.dtype == torch.bool:
        return stacked.any(0) if reduce == "max" else stacked.all(0)
    if reduce == "sum":
        return stacked.sum(0, dtype=stacked.dtype)
    if reduce == "prod":
        return stacked.prod(0)
    if stacked.is_complex():
        return stacked[0]
    return stacked.amax(0) if reduce == "max" else stacked.amin(0)


def close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not (one.dtype.is_floating_point or one.dtype.is_complex):
        return torch.equal(one, other)
    tolerance = 1e-4 if one.dtype.itemsize >= 4 else 2e-2
    finite = other[torch.isfinite(other)]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance * 0.1 * scale, equal_nan=True)


def all_close(one: Results, other: Results) -> bool:
    return all(
        (a is None) == (b is None) and (a is None or b is None or close(a, b))
        for a, b in zip(one, other, strict=True)
    )


def _meaningful(result: Tensor) -> bool:
    if not result.is_floating_point() or not result.numel():
        return True
    return bool(torch.isfinite(result).float().mean() > 0.5)


def _numel(shape: tuple[int, ...]) -> int:
    made = 1
    for size in shape:
        made *= size
    return made


def joined(
    terms: list[Tensor], whole: Tensor, dim: int, outer: int, size: int, pieces: Sequence[Tensor]
) -> Tensor | None:
    minor = whole.shape[dim] // (outer * size)
    before, after = whole.shape[:dim], whole.shape[dim + 1 :]
    made = whole.new_empty((*before, outer, size, minor, *after))
    for term, piece in zip(terms, pieces, strict=True):
        if tuple(term.shape) != (*before, outer * len(piece) * minor, *after):
            return None
        view = term.reshape(*before, outer, len(piece), minor, *after)
        made.index_copy_(dim + 1, piece, view)
    return made.reshape(whole.shape)

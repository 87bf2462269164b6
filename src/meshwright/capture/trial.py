"""Runs an opaque module for real on a few examples, to learn what it returns and costs.

It runs in a thread of its own, where none of the modes is on under which a step
is captured, on drawn inputs and (where the model has none yet) drawn
parameters: shapes and what depends on what are wanted, not numbers.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from meshwright.as_is import LIKE_INPUT, Leaf, Mark, OpaqueCall, runnable
from meshwright.draws import generator_seeded
from meshwright.errors import CaptureError
from meshwright.torch_private import TorchDispatchMode, flatten, storage_key

T = TypeVar("T")

WHOLE, CUT, SUMMED = 0, 1, 2  # as in meshwright.rules.opaque
EXAMPLES = 4
_MOST_ELEMENTS = 1 << 28
_MOST_DOUBTFUL = 4
_GIVE_OUTPUTS = (
    "Say what it returns: opaque(module, outputs=lambda *inputs: …) with tensors of the right "
    "shapes, or outputs='like input'."
)
_MIXES = (
    "Mark it with opaque(module, batch=False): it then runs on the whole batch on every device."
)


@dataclass(frozen=True)
class Trial:
    """What one call gives, at the sizes of the step.

    outputs: for each whether it is cut along the batch. differentiable: which
    have a gradient. flops, moved, launches: of the forward. kept: bytes that
    autograd keeps. random: whether it draws random numbers.
    """

    call: OpaqueCall
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    differentiable: tuple[bool, ...]
    flops: float = 0.0
    moved: float = 0.0
    launches: int = 0
    kept: int = 1
    random: bool = False


@dataclass(frozen=True)
class _Outcome:
    leaves: list[Any]
    tree: Any
    state: dict[str, Tensor]

    @property
    def tensors(self) -> list[Tensor]:
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]


def tried(
    call: OpaqueCall,
    mark: Mark,
    given: Sequence[Tensor],
    values: Callable[[], dict[str, Tensor]],
    known: dict[Hashable, tuple[int, Trial]],
) -> Trial:
    """Fill in what a call returns. `given` are its inputs without values.

    values: makes real values for the state. known: trials of this model, with
    the batch that each was scaled to; a batch of another length needs no other.
    Raises CaptureError, with what to do, when the module can't be run or mixes
    examples that it should not.
    """
    inputs = [(tuple(int(n) for n in x.shape), x.dtype) for x in given]
    sizes = [shape[0] for shape, _ in inputs if shape]
    batch = sizes[0] if mark.batch and sizes and sizes[0] > 1 else 0
    cut = tuple(CUT if shape and shape[0] == batch else WHOLE for shape, _ in inputs)
    if mark.outputs is not None:
        return _told(call, mark, inputs, batch, cut)
    count = sum(
        _numel(shape) * (min(EXAMPLES, batch) / batch if kind == CUT else 1)
        for (shape, _), kind in zip(inputs, cut, strict=True)
    )
    count += sum(x.numel() for x in call.skeleton.parameters())
    if count > _MOST_ELEMENTS:
        raise CaptureError(
            f"The opaque module {call.path} is too large to be run while planning: {count:,.0f} "
            "elements in its parameters and inputs.",
            _GIVE_OUTPUTS,
        )
    key = (
        call.path, call.state, call.arguments, repr(call.arguments_tree), call.tracked, call.batch,
        call.autocast, min(batch, EXAMPLES), call.skeleton.training,
        *((shape[1:] if kind == CUT else shape, dtype, kind)
          for (shape, dtype), kind in zip(inputs, cut, strict=True)),
    )  # fmt: skip
    if all(isinstance(item, (Leaf, bool, int, float, str, type(None))) for item in call.arguments):
        found = known.get(key)
    else:  # an object that may be another one next time
        found, known = None, {}
    if found is not None:
        return _scaled(found[1], call, found[0], batch)
    try:
        made = _alone(lambda: _first_that_holds(_Try(call, inputs, batch, values()), cut))
        known[key] = batch, made
        return made
    except CaptureError:
        raise
    except Exception as error:
        text = str(error).strip() or "no message"
        raise CaptureError(
            f"The opaque module {call.path} raised {type(error).__name__} when it was run on "
            f"drawn inputs to learn what it returns: {text}",
            _GIVE_OUTPUTS,
        ) from error


def _scaled(trial: Trial, call: OpaqueCall, before: int, batch: int) -> Trial:
    """A trial that was scaled to a batch of `before` examples, for one of `batch`."""
    shapes = tuple(
        (batch, *shape[1:]) if kind == CUT else shape
        for shape, kind in zip(trial.call.shapes, trial.outputs, strict=True)
    )
    scale = batch / before if before else 1.0
    return replace(
        trial, flops=trial.flops * scale, moved=trial.moved * scale,
        call=replace(trial.call, skeleton=call.skeleton, shapes=shapes),
    )  # fmt: skip


def _told(
    call: OpaqueCall,
    mark: Mark,
    inputs: Sequence[tuple[tuple[int, ...], torch.dtype]],
    batch: int,
    cut: tuple[int, ...],
) -> Trial:
    """What the user says that it returns."""

    def shaped() -> Any:
        blank = [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in inputs]
        if mark.outputs == LIKE_INPUT:
            return blank[0]
        args, kwargs = call.bound(blank)
        assert callable(mark.outputs)
        return mark.outputs(*args, **kwargs)

    try:
        leaves, tree = flatten(_alone(shaped))
    except Exception as error:
        raise CaptureError(
            f"What opaque() was given as outputs of {call.path} raised {type(error).__name__}: "
            f"{error}",
            "It is called with the forward's arguments, tensors without memory in place of "
            "tensors, and returns tensors of the right shapes and dtypes.",
        ) from error
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    shapes = tuple(tuple(x.shape) for x in tensors)
    outputs = tuple(CUT if batch and shape and shape[0] == batch else WHOLE for shape in shapes)
    floats = tuple(x.is_floating_point() for x in tensors)
    if batch and any(k == WHOLE and f for k, f in zip(outputs, floats, strict=True)):
        raise CaptureError(
            f"An output of the opaque module {call.path} does not have the batch as dim 0.", _MIXES
        )
    return Trial(
        _with_results(call, leaves, tree, shapes, batch), cut, outputs, floats
    )  # fmt: skip


def _with_results(
    call: OpaqueCall, leaves: Sequence[Any], tree: Any, shapes: tuple[tuple[int, ...], ...],
    batch: int,
) -> OpaqueCall:  # fmt: skip
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not tensors:
        raise CaptureError(
            f"The opaque module {call.path} returns no tensor.", "Return what it computes."
        )
    numbers = iter(range(len(tensors)))
    results: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            results.append(Leaf(next(numbers)))
        elif leaf is None or isinstance(leaf, (bool, int, str)):
            results.append(leaf)
        else:
            raise CaptureError(
                f"The opaque module {call.path} returns a {type(leaf).__name__}, which may "
                "depend on values.",
                "Return tensors, and only such numbers as are always the same.",
            )
    return replace(
        call, results=tuple(results), results_tree=tree, shapes=shapes,
        dtypes=tuple(x.dtype for x in tensors), batch=bool(batch),
    )  # fmt: skip


def _first_that_holds(trial: _Try, cut: tuple[int, ...]) -> Trial:
    """With all inputs that look as if they held the batch cut, or with some of them whole: a
    mask of [length, length] looks so where the batch is as long as the sequence."""
    doubtful = [k for k, kind in enumerate(cut) if kind == CUT][1:][:_MOST_DOUBTFUL]
    failure: Exception | None = None
    for count in range(len(doubtful) + 1):
        for whole in combinations(doubtful, count):
            tried_cut = tuple(WHOLE if k in whole else kind for k, kind in enumerate(cut))
            try:
                return trial.run(tried_cut)
            except Exception as error:
                failure = failure or error
    assert failure is not None
    raise failure


class _Try:
    """Runs of one call, whole and in parts."""

    def __init__(
        self,
        call: OpaqueCall,
        inputs: Sequence[tuple[tuple[int, ...], torch.dtype]],
        batch: int,
        values: Mapping[str, Tensor],
    ) -> None:
        self.call, self.inputs, self.batch, self.values = call, inputs, batch, values
        self.count = min(EXAMPLES, batch)
        self.module = runnable(call.skeleton, torch.device("cpu"))
        self.buffers = {name for name, _ in call.skeleton.named_buffers()}

    def run(self, cut: tuple[int, ...]) -> Trial:
        whole, cost = self._counted(cut)
        again = self._run(cut, 0, self.count, seed=1)
        random = not all(_close(a, b) for a, b in zip(whole.tensors, again.tensors, strict=True))
        outputs = self._outputs(cut, whole, random)
        updates = tuple(
            name for name, x in whole.state.items()
            if not torch.equal(x, self.values[name])
        )  # fmt: skip
        shapes = tuple(
            (self.batch, *x.shape[1:]) if kind == CUT else tuple(x.shape)
            for x, kind in zip(whole.tensors, outputs, strict=True)
        )
        call = replace(
            _with_results(self.call, whole.leaves, whole.tree, shapes, self.batch),
            updates=updates,
        )
        scale = self.batch / self.count if self.count else 1.0
        return Trial(
            call, cut, outputs, tuple(x.requires_grad for x in whole.tensors),
            cost.flops * scale, cost.moved * scale, cost.launches,
            max(1, round(cost.kept / max(self.count, 1))), random,
        )  # fmt: skip

    def _outputs(self, cut: tuple[int, ...], whole: _Outcome, random: bool) -> tuple[int, ...]:
        """How each output goes with the batch, seen by running parts of it."""
        tensors = whole.tensors
        if not self.batch:
            return (WHOLE,) * len(tensors)
        if self.count < 2:
            return tuple(CUT if x.dim() and x.shape[0] == self.count else WHOLE for x in tensors)
        bounds = (0, self.count - 1, self.count)
        try:
            parts = [self._run(cut, start, stop) for start, stop in pairwise(bounds)]
        except Exception as error:
            raise self._mixing(f"it does not run on part of the batch ({error})") from error
        kinds = []
        for k, x in enumerate(tensors):
            terms = [part.tensors[k] for part in parts if len(part.tensors) == len(tensors)]
            kind = _kind(x, terms, bounds, random)
            if len(terms) < len(parts) or kind is None or (kind == WHOLE and x.requires_grad):
                raise self._mixing(f"output {k} on part of the batch is not that part of it")
            kinds.append(kind)
        for name, x in whole.state.items():
            if any(not _close(part.state[name], x) for part in parts):
                raise self._mixing(f"its buffer {name} depends on the whole batch")
        return tuple(kinds)

    def _mixing(self, what: str) -> CaptureError:
        return CaptureError(
            f"In the opaque module {self.call.path} examples of a batch influence each other: "
            f"{what}.",
            _MIXES,
        )

    def _run(self, cut: tuple[int, ...], start: int, stop: int, seed: int = 0) -> _Outcome:
        state = {
            name: x.clone().requires_grad_(tracked)
            for (name, x), tracked in zip(self.values.items(), self.call.tracked, strict=False)
        }
        tracked = self.call.tracked[len(self.call.state) :]
        inputs = []
        for x, kind, track in zip(self._drawn(cut), cut, tracked, strict=True):
            part = x[start:stop] if kind == CUT else x
            inputs.append(part.clone().requires_grad_(track))
        args, kwargs = self.call.bound(inputs)
        with (
            generator_seeded(seed), torch.set_grad_enabled(any(self.call.tracked)),
            torch.autocast("cpu", self.call.autocast or torch.bfloat16,
                           enabled=self.call.autocast is not None),
        ):  # fmt: skip
            output = torch.func.functional_call(self.module, state, args, kwargs)
        leaves, tree = flatten(output)
        buffers = {name: x.detach() for name, x in state.items() if name in self.buffers}
        return _Outcome(leaves, tree, buffers)

    def _drawn(self, cut: tuple[int, ...]) -> list[Tensor]:
        generator = torch.Generator().manual_seed(20)
        made = []
        for (shape, dtype), kind in zip(self.inputs, cut, strict=True):
            size = (self.count, *shape[1:]) if kind == CUT else shape
            if dtype.is_floating_point or dtype.is_complex:
                made.append(torch.randn(size, generator=generator).to(dtype))
            else:
                made.append(torch.randint(2, size, generator=generator).to(dtype))
        return made

    def _counted(self, cut: tuple[int, ...]) -> tuple[_Outcome, _Cost]:
        cost = _Cost({storage_key(x) for x in self.values.values()})
        with (
            FlopCounterMode(display=False) as flops,
            cost,
            saved_tensors_hooks(cost.pack, lambda held: held),
        ):
            made = self._run(cut, 0, self.count)
        cost.flops = float(flops.get_total_flops())
        return made, cost


class _Cost(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts ops, and bytes that they read and write; `pack` what autograd keeps."""

    def __init__(self, state: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops, self.moved, self.launches, self.kept = 0.0, 0.0, 0, 0
        self._seen = set(state)
        self._held: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.launches += 1
            for x in (*flatten((args, kwargs))[0], *flatten(output)[0]):
                if isinstance(x, Tensor):
                    self.moved += x.numel() * x.element_size()
        return output

    def pack(self, x: Tensor) -> Tensor:
        key = storage_key(x)
        if key not in self._seen:
            self._seen.add(key)
            self._held.append(x)
            self.kept += x.untyped_storage().nbytes()
        return x


def _kind(x: Tensor, terms: list[Tensor], bounds: Sequence[int], random: bool) -> int | None:
    sizes = [stop - start for start, stop in pairwise(bounds)]
    if x.dim() and x.shape[0] == bounds[-1] and all(
        term.shape == (size, *x.shape[1:]) for term, size in zip(terms, sizes, strict=True)
    ):  # fmt: skip
        return CUT if random or _close(torch.cat(terms), x) else None
    if any(term.shape != x.shape for term in terms):
        return None
    if all(_close(term, x) for term in terms):
        return WHOLE
    return SUMMED if _close(torch.stack(terms).sum(0, dtype=x.dtype), x) else None


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    tolerance = 1e-4 if one.dtype.itemsize >= 4 else 2e-2
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)


def _numel(shape: Sequence[int]) -> int:
    made = 1
    for size in shape:
        made *= size
    return made


def _alone(run: Callable[[], T]) -> T:
    """Run in a new thread: modes, and the state of autograd and of autocast, are of a thread.

    The caller's turn at PyTorch's generator is the new thread's, which it waits for.
    """
    found: list[T] = []
    failed: list[BaseException] = []

    def target() -> None:
        try:
            found.append(run())
        except BaseException as error:
            failed.append(error)

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(target,), name="opaque-trial")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]

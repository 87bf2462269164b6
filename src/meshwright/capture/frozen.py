"""Python state that the step changes: a captured step can't, so it is told or refused.

Capture runs Python once. A plain attribute that the forward changes (a counter, a
flag, a tensor kept for the next step) has in every captured step the value that
it had then.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from meshwright.errors import CaptureError

_TABLES = frozenset({"_parameters", "_buffers", "_modules"})
_PLAIN = (bool, int, float, str, type(None))
_DEPTH = 3  # of lists and dicts within an attribute


class FrozenState(UserWarning):
    """The step changes Python state, which stays as it was in a captured step."""


class PythonState:
    """The plain attributes of a module's tree, and Python's random generators, at one time."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._values = dict(_attributes(module))
        self._contents = [copy for _, value in self._values.items() for copy in _containers(value)]
        self._random = random.getstate()
        self._numpy = _numpy_state()

    def changes(self) -> list[str]:
        """What changed that is a number, a text or a random generator, by name."""
        found = [
            f"{path} ({self._values[path]!r}, then {value!r})"
            for path, value in _attributes(self._module)
            if path in self._values
            and isinstance(value, _PLAIN)
            and isinstance(self._values[path], _PLAIN)
            and _differ(value, self._values[path])
        ]
        if random.getstate() != self._random:
            found.append("the generator of Python's random")
        if _numpy_state() != self._numpy:
            found.append("the generator of NumPy's random")
        return found

    def tensors(self) -> Iterator[tuple[str, Tensor | None, Tensor]]:
        """Tensors in place of others or of None: path, what was there, what is there now."""
        for path, value in _attributes(self._module):
            if path not in self._values or not isinstance(value, Tensor):
                continue
            before = self._values[path]
            if before is None or (isinstance(before, Tensor) and value is not before):
                yield path, before, value

    def restore(self) -> None:
        """Put back what is within lists, dicts and sets, and the random generators."""
        random.setstate(self._random)
        for container, before in self._contents:
            container.clear()
            if isinstance(container, list):
                container.extend(before)
            else:
                container.update(before)


def warn_of(changes: list[str]) -> None:
    if changes:
        warnings.warn(
            f"The step changes {', '.join(changes)}. A captured step has what was there at "
            "first in every step; keep what numbers depend on in a buffer, as a tensor, and draw "
            "random numbers with PyTorch.",
            FrozenState,
            stacklevel=2,
        )


def carried(
    state: PythonState, depends: Callable[[Tensor], bool], used: Callable[[Tensor], bool]
) -> list[str]:
    """Tensors that were None before and are kept for the next step, by name.

    depends: whether a tensor is computed from a batch, parameters or draws. used:
    whether the step computes with a tensor. Raises CaptureError for an attribute
    that one step reads and sets anew for the next.
    """
    kept = []
    for path, before, now in state.tensors():
        if not depends(now):
            continue
        if before is None:
            kept.append(f"{path} (None, then a tensor computed from the batch)")
        elif used(before):
            raise CaptureError(
                f"{path} is a plain attribute that the step reads, and sets for the next step.",
                "Register the tensor with register_buffer, so that its updates are part of the "
                "step.",
            )
    return kept


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for prefix, owner in module.named_modules():
        for key, value in owner.__dict__.items():
            if key not in _TABLES:
                yield f"{prefix}.{key}" if prefix else key, value


def _containers(value: Any, depth: int = _DEPTH) -> Iterator[tuple[Any, Any]]:
    if depth and type(value) in (list, dict, set):
        yield value, value.copy()
        for item in value.values() if isinstance(value, dict) else value:
            yield from _containers(item, depth - 1)


def _differ(one: Any, other: Any) -> bool:
    return type(one) is not type(other) or (one != other and (one == one or other == other))


def _numpy_state() -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    kind, keys, *rest = numpy.random.get_state()
    return kind, keys.tobytes(), *rest


__all__ = ["FrozenState", "PythonState", "carried", "warn_of"]

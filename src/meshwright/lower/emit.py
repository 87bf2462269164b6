"""From a section to Python: one straight function over PyTorch ops.

The function takes ONE list, which it empties, so that nobody outside holds a
value that its last use has freed; it returns a list. Each value is dropped
right after its last use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import CodeType
from typing import Any

import torch
from torch import Tensor

import meshwright.own_ops  # noqa: F401  (registers torch.ops.mesh)
from meshwright.layout.lowered import Section
from meshwright.program.types import Argument, Op, Ref, Symbol, Value

Run = Callable[[list[Tensor]], list[Tensor]]
Wrap = Callable[[str, Callable[..., Any]], Callable[..., Any]]

# A view that was legal on the whole tensor can meet other strides locally, after a
# collective: reshape takes the same view wherever one exists.
_RENAMED = {"aten.view.default": "aten.reshape.default",
            "aten._unsafe_view.default": "aten.reshape.default"}  # fmt: skip


def emit(
    name: str,
    section: Section,
    values: Mapping[str, Value],
    local_ops: Mapping[str, Callable[..., Any]],
    device: torch.device,
    wrap: Wrap | None = None,
) -> tuple[Run, str]:
    """The section as a function and as the text that was compiled.

    `local_ops` gives the function of each of Meshwright's own ops by target;
    `wrap` what is to be called in an op's place, given its target and function.
    """
    writer = _Writer(section, local_ops, device, wrap)
    text = writer.write(name)
    scope: dict[str, Any] = dict(writer.globals)
    exec(_compiled(name, text), scope)
    run: Run = scope[name]
    return run, text


@lru_cache(maxsize=16)
def _compiled(name: str, text: str) -> CodeType:
    """Ranks that are threads of one process mostly run the same text."""
    return compile(text, f"<meshwright {name}>", "exec")


class _Writer:
    def __init__(
        self,
        section: Section,
        local_ops: Mapping[str, Callable[..., Any]],
        device: torch.device,
        wrap: Wrap | None = None,
    ) -> None:
        self.section = section
        self.wrap = wrap
        self.local_ops = local_ops
        self.device = device
        self.globals: dict[str, Any] = {}
        self._names: dict[str, str] = {}
        self._functions: dict[str, str] = {}
        self._constants: dict[Any, str] = {}

    def write(self, name: str) -> str:
        last: dict[str, int] = {}
        for index, op in enumerate(self.section.ops):
            for used in (*op.operands(), *(r for r in op.results if r is not None)):
                last[used] = index
        kept = set(self.section.outputs)
        ends: dict[int, list[str]] = {}
        for value, index in last.items():
            if value not in kept:
                ends.setdefault(index, []).append(self._name(value))
        lines = [f"def {name}(values):"]
        if self.section.inputs:
            inputs = ", ".join(self._name(value) for value in self.section.inputs)
            lines.append(f"    {inputs}, = values")
        lines.append("    values.clear()")
        for value in self.section.inputs:
            if value not in last and value not in kept:
                lines.append(f"    del {self._name(value)}")
        where = None
        for index, op in enumerate(self.section.ops):
            if op.source.module != where:
                where = op.source.module
                lines.append(f"    # {_comment(where)}")
            lines.append(f"    {self._statement(op)}")
            if index in ends:
                lines.append(f"    del {', '.join(ends[index])}")
        outputs = ", ".join(self._name(value) for value in self.section.outputs)
        lines.append(f"    return [{outputs}]")
        return "\n".join(lines) + "\n"

    def _statement(self, op: Op) -> str:
        function = self._function(op.target)
        arguments = [self._text(argument) for argument in op.args]
        arguments += [
            f"{name}={self._text(argument)}" for name, argument in op.kwargs if name != "pin_memory"
        ]
        call = f"{function}({', '.join(arguments)})"
        if not op.returns_tuple:
            return f"{self._name(op.results[0] or '_')} = {call}"
        targets = ", ".join("_" if r is None else self._name(r) for r in op.results)
        return f"{targets}, = {call}"

    def _name(self, value: str) -> str:
        found = self._names.get(value)
        if found is None:
            stem = re.sub(r"\W+", "_", value, flags=re.ASCII)
            found = self._names[value] = f"v{len(self._names)}_{stem[-40:]}"
        return found

    def _function(self, target: str) -> str:
        found = self._functions.get(target)
        if found is None:
            found = self._functions[target] = f"f{len(self._functions)}_{target.split('.')[1]}"
            function = self.local_ops.get(target) or _resolve(target)
            self.globals[found] = self.wrap(target, function) if self.wrap else function
        return found

    def _text(self, argument: Argument) -> str:
        if isinstance(argument, Ref):
            return self._name(argument.name)
        if isinstance(argument, tuple):
            return f"[{', '.join(self._text(item) for item in argument)}]"
        if isinstance(argument, Symbol):
            return self._constant(argument)
        if isinstance(argument, (float, complex, str)):
            return self._constant(argument)  # inf and nan have no literal
        assert argument is None or isinstance(argument, (bool, int)), argument
        return repr(argument)

    def _constant(self, argument: Symbol | float | complex | str) -> str:
        key = (type(argument), repr(argument))
        found = self._constants.get(key)
        if found is None:
            found = self._constants[key] = f"k{len(self._constants)}"
            self.globals[found] = (
                symbol(argument, self.device) if isinstance(argument, Symbol) else argument
            )
        return found


def symbol(argument: Symbol, device: torch.device) -> Any:
    """The PyTorch object that a Symbol names; every device is the one that runs the program."""
    if argument.kind == "device":
        return device
    found = getattr(torch, argument.text)
    assert isinstance(found, (torch.dtype, torch.layout, torch.memory_format)), argument
    return found


def _resolve(target: str) -> Callable[..., Any]:
    namespace, name, overload = _RENAMED.get(target, target).split(".")
    packet = getattr(getattr(torch.ops, namespace), name)
    found: Callable[..., Any] = getattr(packet, overload)
    return found


def _comment(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii") or "top module"

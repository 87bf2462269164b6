"""Where an op comes from: the module that is running and the user's source line."""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import CodeType, FrameType, TracebackType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from meshwright import draws
from meshwright.program.types import Source

_TORCH = os.path.dirname(torch.__file__) + os.sep
_TORCH_MODULES = os.path.join(_TORCH, "nn", "modules") + os.sep
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_DRAWS = os.path.abspath(draws.__file__)

_MACHINERY = 0  # neither of the user nor of a layer: never shown
_LAYER = 1  # inside torch.nn.modules: shown when there is no user's line
_USER = 2

Line = tuple[str, int]
NOWHERE: Line = ("", 0)


class Lines:
    """Finds the user's line of the op that is being run; classifies each code object once."""

    def __init__(self) -> None:
        self._kinds: dict[CodeType, int] = {}

    def _kind(self, code: CodeType) -> int:
        kind = self._kinds.get(code)
        if kind is None:
            file = code.co_filename
            if file.startswith(_TORCH_MODULES) and code.co_name == "forward":
                kind = _LAYER
            elif (
                file.startswith((_TORCH, _HERE, _DRAWS)) or file == __file__ or file.startswith("<")
            ):
                kind = _MACHINERY
            else:
                kind = _USER
            self._kinds[code] = kind
        return kind

    def is_user(self, code: CodeType) -> bool:
        return self._kind(code) == _USER

    def running(self, stop: CodeType) -> Line:
        """The innermost user's line of the running stack, looking no further than `stop`."""
        frame: FrameType | None = sys._getframe(1)
        layer: Line = NOWHERE
        while frame is not None and frame.f_code is not stop:
            kind = self._kind(frame.f_code)
            if kind == _USER:
                return frame.f_code.co_filename, frame.f_lineno
            if kind == _LAYER and layer is NOWHERE:
                layer = frame.f_code.co_filename, frame.f_lineno
            frame = frame.f_back
        return layer

    def raised(self, traceback: TracebackType | None, stop: CodeType) -> Line:
        """The innermost user's line that an exception passed through, below `stop`."""
        user: Line = NOWHERE
        layer: Line = NOWHERE
        while traceback is not None:
            code = traceback.tb_frame.f_code
            kind = self._kind(code)
            if code is stop:
                user = layer = NOWHERE
            elif kind == _USER:
                user = code.co_filename, traceback.tb_lineno
            elif kind == _LAYER:
                layer = code.co_filename, traceback.tb_lineno
            traceback = traceback.tb_next
        return user if user is not NOWHERE else layer


def source(module: str, line: Line) -> Source:
    file, number = line
    code = linecache.getline(file, number).strip() if file else ""
    return Source(module, file, number, code)


def located(where: Source) -> str:
    """The source with its code, for messages."""
    return f"{where}: {where.code}" if where.code else str(where)


class RunningModules:
    """The stack of modules whose forward is running, by fully qualified name.

    When a forward raises, the stack stays as it was: `innermost` then names
    the module that failed.
    """

    def __init__(self, root: nn.Module) -> None:
        self._names: dict[nn.Module, str] = {}
        for name, module in root.named_modules():
            self._names[module] = name
        self._stack: list[str] = []

    @property
    def inside(self) -> bool:
        return bool(self._stack)

    @property
    def innermost(self) -> str:
        return self._stack[-1] if self._stack else ""

    def _enter(self, module: nn.Module, args: Sequence[Any]) -> None:
        # A module that isn't the model's own (one that the loss holds, or one
        # made on the fly) has no name there: its ops count as its caller's.
        name = self._names.get(module)
        if name is not None or self._stack:
            self._stack.append(self.innermost if name is None else name)

    def _leave(self, module: nn.Module, args: Sequence[Any], output: Any) -> None:
        if self._stack and (module in self._names or len(self._stack) > 1):
            self._stack.pop()

    @contextmanager
    def watch(self) -> Iterator[None]:
        self._stack.clear()
        enter = register_module_forward_pre_hook(self._enter)
        leave = register_module_forward_hook(self._leave)
        try:
            yield
        finally:
            enter.remove()
            leave.remove()

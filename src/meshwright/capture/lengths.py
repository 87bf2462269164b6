"""The lengths that PyTorch's shape functions ask about while a step is captured."""

from __future__ import annotations

import sys
from typing import Any

from meshwright.capture.location import Lines
from meshwright.errors import CaptureError
from meshwright.torch_private import LengthsEnvironment

_SYMBOLIC = ("torch/fx/experimental/", "torch/utils/_sympy/", "sympy/", "/torch_private.py")
_ASKING = ("torch/__init__.py", "torch/_tensor.py")


class Lengths(LengthsEnvironment):
    """Answers for every length with its stand-in, and tells when the user's code asked.

    PyTorch's own questions (is it contiguous, is it broadcast) have the same answer for
    every length. A condition in the user's code may not: it is told to `asked`.
    """

    def __init__(self, asked: Any) -> None:
        super().__init__(specialize_zero_one=False, duck_shape=False)
        self.hints: dict[Any, Any] = {}  # what stands for each length in conditions
        self.bounds: dict[Any, Any] = {}  # the largest that each can be
        self._values: dict[Any, Any] = {}
        self._parts: dict[str, str] = {}  # what part of PyTorch a file is
        self._asked = asked
        self._lines = Lines()

    def evaluate_expr(self, orig_expr: Any, *args: Any, **kwargs: Any) -> Any:
        value = self._values.get(orig_expr)
        if value is None:
            value = orig_expr.xreplace(self.hints) if orig_expr.free_symbols else orig_expr
            self._values[orig_expr] = value
        if not value.is_Boolean and not orig_expr.free_symbols:
            return value
        by, line = self._asker()
        if by in ("__bool__", "bool_") and line:
            self._asked(f"a condition on a length is {bool(value)}")
        elif not value.is_Boolean:
            if not line:
                raise CaptureError(
                    "An op needs to know a length that is only known when the step runs.",
                    "Write it with ops that take any number of rows, such as indexing, "
                    "matrix products and index_add.",
                )
            self._asked("a length is used as a plain number, the largest it can be")
            value = orig_expr.xreplace(self.bounds)
        return value

    def _asker(self) -> tuple[str, bool]:
        """How a Python number was asked for, and whether the user's own line did."""
        frame = sys._getframe(2)
        by = ""
        while frame is not None and self._part(frame.f_code.co_filename) == "symbolic":
            frame = frame.f_back  # type: ignore[assignment]
        while frame is not None and self._part(frame.f_code.co_filename) == "asking":
            by = by or frame.f_code.co_name
            frame = frame.f_back  # type: ignore[assignment]
        return by, bool(by) and frame is not None and self._lines.is_user(frame.f_code)

    def _part(self, file: str) -> str:
        found = self._parts.get(file)
        if found is None:
            symbolic = any(part in file for part in _SYMBOLIC)
            found = "symbolic" if symbolic else "asking" if file.endswith(_ASKING) else "other"
            self._parts[file] = found
        return found

"""Turns what goes wrong in the user's forward into errors that say where and what to do."""

from __future__ import annotations

import re
from types import CodeType
from typing import Any

from meshwright.capture.batch import describe_leaves
from meshwright.capture.location import Lines, RunningModules, located, source
from meshwright.capture.values import NeedsValues
from meshwright.errors import CaptureError, MeshwrightError
from meshwright.torch_private import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)

MOVE_IT_OUT = (
    "A captured step runs the same ops every time. Move this out of the model "
    "(into the data preparation), pass a module that avoids it, or have it run as it is with "
    "meshwright.opaque(module)."
)

_NO_FAKE = "no fake impl registered"  # what PyTorch says of a custom op without one


def _named_op(text: str) -> str:
    found = re.search(r"\w+::\w+", text)
    return found.group().replace("::", ".") if found else "A custom op"


def explained(
    error: Exception, phase: str, modules: RunningModules, stop: CodeType, batch: Any
) -> MeshwrightError:
    """What to raise instead of `error`, which left the user's code or the backward."""
    if isinstance(error, MeshwrightError) and not isinstance(error, CaptureError):
        return error
    where = source(modules.innermost, Lines().raised(error.__traceback__, stop))
    place = located(where)
    if isinstance(error, CaptureError):
        return type(error)(f"In {place}\n{error.message}", error.remedy)
    if isinstance(error, (DataDependentOutputException, DynamicOutputShapeException)):
        what = "values" if isinstance(error, DataDependentOutputException) else "the shapes"
        return NeedsValues(
            f"The step depends on {what} of a tensor, by {error.func}, in {place}",
            MOVE_IT_OUT,
        )
    text = str(error).strip() or "no message"
    if isinstance(error, UnsupportedOperatorException) or _NO_FAKE in text:
        func = getattr(error, "func", None)
        what = f"{func} has" if func is not None else f"{_named_op(text)} has"
        return CaptureError(
            f"{what} no fake implementation, so its results' shapes aren't known, in {place}",
            "Register one with torch.library.register_fake: a function of the same arguments "
            "that makes empty tensors of the right shapes and dtypes. For an op of your own "
            "that is to be cut, see also meshwright.register_rule.",
        )
    return CaptureError(
        f"The {phase} raised {type(error).__name__} in {place}\n{text}",
        f"The batch was {describe_leaves(batch)}. Check that the model runs on it by itself.",
    )

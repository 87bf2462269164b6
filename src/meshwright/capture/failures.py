"""Turns what goes wrong in the user's forward into errors that say where and what to do."""

from __future__ import annotations

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
    "(into the data preparation), or pass a module that avoids it."
)


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
    if isinstance(error, UnsupportedOperatorException):
        return CaptureError(
            f"{error.func} can't run without real values, in {place}",
            "Register a fake implementation for it with torch.library.register_fake.",
        )
    text = str(error).strip() or "no message"
    return CaptureError(
        f"The {phase} raised {type(error).__name__} in {place}\n{text}",
        f"The batch was {describe_leaves(batch)}. Check that the model runs on it by itself.",
    )

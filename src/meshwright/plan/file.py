"""A plan as a file: JSON, written whole or not at all, checked when it is read."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from pydantic import ValidationError

from meshwright.errors import PlanError
from meshwright.plan.types import FORMAT_VERSION, Plan


def save_plan(plan: Plan, path: str | Path) -> None:
    """Write `plan` as JSON; an interrupted write leaves what was there before."""
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=target.parent, suffix=".tmp", delete=False, encoding="utf-8"
        ) as file:
            file.write(plan.model_dump_json(indent=2) + "\n")
        os.replace(file.name, target)
    except OSError as error:
        raise PlanError(
            f"The plan can't be written to {target}: {error.strerror}.",
            "Give a path in a folder that you can write to.",
        ) from error


def load_plan(path: str | Path) -> Plan:
    """Read a plan; raises PlanError when it is missing, damaged, or of a newer format."""
    source = Path(path)
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise PlanError(f"The plan {source} can't be read: {reason}.", "Check the path.") from error
    return parse_plan(text, str(source))


def parse_plan(text: str, source: str = "the plan") -> Plan:
    try:
        data = json.loads(text)
    except RecursionError as error:
        raise PlanError(
            f"{source} is nested too deeply to be a plan.", "Make the plan again."
        ) from error
    except json.JSONDecodeError as error:
        raise PlanError(
            f"{source} is not whole JSON: {error.msg} at line {error.lineno}, "
            f"column {error.colno}.",
            "The file may be truncated or was edited by mistake; make the plan again.",
        ) from error
    if not isinstance(data, dict) or "format_version" not in data:
        raise PlanError(
            f"{source} is JSON, but no Meshwright plan: it has no format_version.",
            "Give a file that `meshwright plan --out FILE` wrote.",
        )
    version = data["format_version"]
    if type(version) is not int or version > FORMAT_VERSION or version < 1:
        raise PlanError(
            f"{source} has plan format {version!r}; this version reads format {FORMAT_VERSION} "
            "and older.",
            "Upgrade Meshwright, or make the plan again with this version.",
        )
    try:
        return Plan.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise PlanError(
            f"{source} has a wrong value at '{where}': {first['msg']}.",
            "Correct the field, or make the plan again.",
        ) from error

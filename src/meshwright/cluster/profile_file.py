"""Profiles as JSON files, and the built-in ones."""

from __future__ import annotations

import os
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TypeGuard, TypeVar

from pydantic import BaseModel, ValidationError

from meshwright.cluster.plausible import implausible_profile, unit_of
from meshwright.cluster.types import Profile
from meshwright.errors import ClusterError

_Model = TypeVar("_Model", bound=BaseModel)

_FOLDER = files("meshwright.cluster") / "profiles"


def check_writable(path: str | Path) -> None:
    """Raise the ClusterError of `save_profile` now, before a minute is spent on measuring."""
    path = Path(path)
    if path.is_dir():
        raise _unwritable(path, "it is a folder")
    if not path.parent.is_dir():
        raise _unwritable(path, f"there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise _unwritable(path, "you may not write there")


def _unwritable(path: str | Path, reason: str) -> ClusterError:
    return ClusterError(
        f"the profile can't be written to {path}: {reason}",
        "Name a file in a folder that exists and that you may write to.",
    )


def save_profile(profile: Profile, path: str | Path) -> None:
    """Write `profile` as JSON. Raises ClusterError when the file can't be written."""
    try:
        Path(path).write_text(profile.model_dump_json(indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from error


def load_profile(path: str | Path) -> Profile:
    """Read a profile. Raises ClusterError that names the file, the field and what was expected."""
    return plausible(validated(Profile, read_text(path), str(path)), str(path))


def plausible(profile: Profile, where: str) -> Profile:
    """`profile`, unless a figure of it is none that a device has; `where` names it in errors."""
    found = implausible_profile(profile)
    if found is not None:
        raise ClusterError(f"{where}: the field {found.field} {found.message}.", found.remedy)
    return profile


def read_text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # no text, or no path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ClusterError(
            f"{path} can't be read: {reason}", "Give the path of a JSON file that exists."
        ) from error


def validated(model: type[_Model], text: str, where: str) -> _Model:
    """Parse JSON `text` as `model`; `where` names its file in errors."""
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise ClusterError(*explain(error, where, tuple(model.model_fields))) from None


def explain(
    error: ValidationError, where: str, known: tuple[str, ...] = (), prefix: str = ""
) -> tuple[str, str]:
    """Message and remedy for the first thing that is wrong; `prefix` goes before its field."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return (
            f"{where} is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}",
            "Mend the JSON at that place.",
        )
    path = (prefix + ".".join(str(part) for part in first["loc"])).strip(".")
    field = f"the field {path}" if path else "the whole file"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        close = get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        return f"{where}: {field} is unknown{more}.", f"Remove or rename it.{hint}"
    if first["type"] == "missing":
        return f"{where}: {field} is missing{more}.", f"Add it{_in_unit(path)}."
    expected = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if first["type"] == "value_error" and isinstance(first["input"], dict):
        # About how the fields of one object fit together: the text names them.
        return f"{where}: {field}: {expected}{more}.", "Make them fit together."
    got = repr(first["input"])
    got = got if len(got) <= 60 else got[:57] + "..."
    return (
        f"{where}: {field} is wrong: got {got}; it {expected}{more}.",
        f"Correct that field{_in_unit(path)}.",
    )


def _in_unit(field: str) -> str:
    unit = unit_of(field)
    return f", in {unit}" if unit else ""


def whole_number(value: object) -> TypeGuard[int]:
    """Whether `value` is a count: a whole number of at least one, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@cache
def builtin_kinds() -> tuple[str, ...]:
    """Names of the built-in profiles of accelerators, sorted."""
    names = (item.name for item in _FOLDER.iterdir())
    kinds = (name.removesuffix(".json") for name in names if name.endswith(".json"))
    return tuple(sorted(kind for kind in kinds if kind != "cpu"))


@cache
def builtin_profile(kind: str) -> Profile:
    """A built-in profile; `cpu` is the conservative one, in no list of kinds.

    Raises ClusterError that lists the known kinds and the closest one.
    """
    if kind != "cpu" and kind not in builtin_kinds():
        close = _close_kinds(kind.lower())
        hint = f"Did you mean {' or '.join(close)}? " if close else ""
        raise ClusterError(
            f"unknown kind of device {kind!r}",
            f"{hint}Known are {', '.join(builtin_kinds())}; a path to a profile's JSON file "
            "works too.",
        )
    text = (_FOLDER / f"{kind}.json").read_text(encoding="utf-8")
    where = f"the built-in profile {kind}"
    return plausible(validated(Profile, text, where), where)


def _close_kinds(name: str) -> list[str]:
    """Kinds that `name` may have been meant for: it begins them, resembles one, or begins alike."""
    kinds = builtin_kinds()
    if name and (begun := [kind for kind in kinds if kind.startswith(name)]):
        return begun
    if alike := get_close_matches(name, kinds, n=1, cutoff=0.75):
        return alike
    for length in range(len(name), 1, -1):
        if begun := [kind for kind in kinds if kind.startswith(name[:length])]:
            return begun
    return get_close_matches(name, kinds, n=1, cutoff=0.4)

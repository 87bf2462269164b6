"""Configs of well-known models that come with the package, under short names: dims, no weights.

Each file has the fields of a `config.json` of transformers, and `about`: the published number of
parameters and where the dims are published.
"""

from __future__ import annotations

import difflib
import json
import re
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

_FOLDER = files("meshwright.zoo") / "configs"


class About(NamedTuple):
    """parameters: as published, rounded where the publication rounds. source: of the dims."""

    parameters: int
    source: str


@cache
def shipped_names() -> tuple[str, ...]:
    """The short names, by family and size."""
    names = (item.name.removesuffix(".json") for item in _FOLDER.iterdir())
    return tuple(sorted((name for name in names if name and name[0] != "_"), key=_by_size))


def shipped_config(name: str) -> tuple[dict[str, Any], About]:
    """The config's fields, and what is said of it. Raises KeyError for another name."""
    if name not in shipped_names():
        raise KeyError(name)
    fields = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    about = fields.pop("about")
    return fields, About(**about)


def is_shipped(name: str) -> bool:
    return name in shipped_names()


def close_names(name: str) -> list[str]:
    """Short names that `name` may have been meant for, the likeliest first."""
    word = re.sub(r"[^a-z0-9.]+", "-", name.lower().rpartition("/")[2]).removesuffix(".json")
    known = shipped_names()
    if word in known:
        return [word]
    bare = {re.sub(r"[-.]", "", item): item for item in known}
    squeezed = re.sub(r"[-.]", "", word).removeprefix("meta")
    if squeezed in bare:
        return [bare[squeezed]]
    begun = [item for item in known if word and item.startswith(word)]
    close = difflib.get_close_matches(squeezed, list(bare), 3, 0.7)
    return list(dict.fromkeys([*begun, *(bare[item] for item in close)]))[:4]


def _by_size(name: str) -> tuple[str, int, str]:
    family = re.split(r"[-\d]", name, maxsplit=1)[0]
    return family, shipped_parameters(name), name


@cache
def shipped_parameters(name: str) -> int:
    return int(json.loads((_FOLDER / f"{name}.json").read_text())["about"]["parameters"])

"""Sizes of a zoo model: named configurations, any field of which an option replaces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from meshwright.errors import ModelError
from meshwright.zoo.checks import require_positive, require_probability

Config = TypeVar("Config")


def config_of(sizes: Mapping[str, Config], size: str, **given: Any) -> Config:
    """The configuration named `size` with the fields of `given` that are not None.

    Raises ModelError for an unknown size, a whole number below 1 and a `dropout`
    that is no probability.
    """
    if size not in sizes:
        raise ModelError(f"There is no size {size!r}.", f"Give size={', '.join(sizes)}.")
    chosen = {name: value for name, value in given.items() if value is not None}
    config: Any = replace(sizes[size], **chosen)  # type: ignore[type-var]
    for field in fields(config):
        value = getattr(config, field.name)
        if type(value) is int:
            require_positive(**{field.name: value})
        if field.name == "dropout":
            require_probability("dropout", value)
    made: Config = config
    return made

"""Which blocks of a model are equal as far as can be seen before it runs.

What `capture.shorten` finds by running the whole forward, supposed from what the members of
module lists hold: the same modules with the same settings, parameters and buffers. That they
also do the same is proven when the plan is laid out on the whole model, by the one forward
that this leaves to run.
"""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from meshwright.capture.shorten import Shortening, hooked, lists_of, shortening_of

_Key = tuple[str, str]  # a module's path in its member, and one of its attributes


def suppose(module: nn.Module) -> Shortening | None:
    """Runs of members that hold alike, None where there are none."""
    uses = Counter(id(item) for _, item in module.named_parameters(remove_duplicate=False))
    return shortening_of(
        (path, keys, _kinds(module, path, keys, uses)) for path, keys in lists_of(module)
    )


def _kinds(
    module: nn.Module, path: str, keys: Sequence[str], uses: Mapping[int, int]
) -> list[int] | None:
    """A number for each member, the same for those that hold alike; None: not to be supposed."""
    owner = module.get_submodule(path)
    members = [owner.get_submodule(key) for key in keys]
    if any(hooked(member) for member in members[:-1]):
        return None
    # A parameter that has a second place in the model ties members to others.
    if any(uses[id(item)] > 1 for member in members for item in member.parameters()):
        return None
    settings = [_settings(member) for member in members]
    numbering = _numbering(settings)
    kinds: dict[Hashable, int] = {}
    return [
        kinds.setdefault(
            (_shape(member), tuple(item for item in said.items() if item[0] not in numbering)),
            len(kinds),
        )
        for member, said in zip(members, settings, strict=True)
    ]


def _shape(member: nn.Module) -> Hashable:
    return tuple(
        (
            path,
            type(part),
            *_tensors(part._parameters.items()),
            "buffers",
            *_tensors(part._buffers.items()),
        )
        for path, part in member.named_modules()
    )


def _tensors(items: Iterable[tuple[str, Tensor | None]]) -> Iterable[Hashable]:
    for name, item in items:
        if item is None:
            yield name, None
        else:
            yield name, tuple(item.shape), item.dtype, item.requires_grad


def _settings(member: nn.Module) -> dict[_Key, Hashable]:
    """What the modules of a member hold beside tensors and modules, where it can be compared."""
    return {
        (path, name): said
        for path, part in member.named_modules()
        for name, value in sorted(vars(part).items())
        if (said := _setting(value)) is not None
    }


def _setting(value: Any) -> Hashable | None:
    if isinstance(value, bool | int | float | str):
        return type(value).__name__, value
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | type):
        return value.__module__ or "", value.__qualname__
    if isinstance(value, tuple | list):
        found = tuple(_setting(item) for item in value)
        return None if None in found else found
    return None


def _numbering(settings: Sequence[Mapping[_Key, Hashable]]) -> set[_Key]:
    """Attributes that say which member of the list it is, as `layer_idx` does."""

    def counts(key: _Key) -> bool:
        told = [said.get(key) for said in settings]
        first = told[0]
        return (
            isinstance(first, tuple)
            and first[0] == "int"
            and told == [("int", first[1] + number) for number in range(len(told))]
        )

    return {key for key in settings[0] if counts(key)}

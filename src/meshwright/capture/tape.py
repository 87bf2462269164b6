"""How a model is built, as data, so that it can be built for real later.

Tensors are told apart by the memory that they lie on, not by their identity:
a `View` is a region of a numbered storage. So views need no replay, and neither
`parameter.data = ...` nor tied parameters need special care.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from meshwright.torch_private import storage_key, without_modes


@dataclass(frozen=True, slots=True)
class View:
    """A region of a storage, read as elements of a dtype; all but `storage` as in as_strided."""

    storage: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


@dataclass(slots=True)
class Step:
    """One op of the construction. `generator` numbers the one it draws from, 0 the default.

    Before drawing, the generator is put in `state` if there is one (the user
    seeded it), or in the state that it had after the step `resume`, -1 being
    the start (the user put an earlier state back).
    """

    name: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[View | None, ...]
    writes: frozenset[int]
    default_dtype: torch.dtype
    random: bool = False
    generator: int = 0
    state: Tensor | None = None
    resume: int | None = None


@dataclass
class Tape:
    """The construction: steps in order, storage sizes in bytes, and storages that came filled."""

    steps: list[Step] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    given: dict[int, Tensor] = field(default_factory=dict)  # storage -> its bytes
    _numbers: dict[int, int] = field(default_factory=dict)
    _held: list[Any] = field(default_factory=list)  # storages, so that their identities last

    def knows(self, tensor: Tensor) -> bool:
        return storage_key(tensor) in self._numbers

    def view(self, tensor: Tensor) -> View:
        return View(
            self._numbers[storage_key(tensor)],
            tensor.dtype,
            tuple(int(n) for n in tensor.shape),
            tuple(int(n) for n in tensor.stride()),
            int(tensor.storage_offset()),
        )

    def add(self, tensor: Tensor) -> int:
        number = len(self.sizes)
        self.sizes.append(int(tensor.untyped_storage().nbytes()))
        self._numbers[storage_key(tensor)] = number
        self._held.append(tensor.untyped_storage())
        return number

    def add_given(self, real: Tensor, fake: Tensor) -> None:
        """A real tensor that the construction uses, such as one from NumPy."""
        if not self.knows(fake):
            number = self.add(fake)
            self._numbers[storage_key(real)] = number
            self._held.append(real.untyped_storage())
            if real.device.type == "meta":
                return
            with without_modes():
                whole = torch.empty(0, dtype=torch.uint8).set_(real.untyped_storage())
                self.given[number] = whole.clone()


def views_in(item: Any) -> Iterator[View]:
    """All views in an argument, or in a tuple of arguments."""
    if isinstance(item, View):
        yield item
    elif isinstance(item, tuple):
        for part in item:
            yield from views_in(part)

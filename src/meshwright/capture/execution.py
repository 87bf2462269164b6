"""Runs chosen steps of a construction for real, holding little memory at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from meshwright.capture.tape import Step, Tape, View

Keep = Callable[[str, Tensor], Tensor]


@dataclass(slots=True)
class Node:
    """A step with the versions that it touches and the steps that come before it."""

    step: Step
    versions: dict[int, int] = field(default_factory=dict)  # storage -> version
    needs: set[int] = field(default_factory=set)  # whose results it uses
    after: set[int] = field(default_factory=set)  # that read what it overwrites


class Execution:
    """One execution: memory by version, freed or handed over after its last use."""

    def __init__(
        self,
        tape: Tape,
        nodes: list[Node],
        live: set[int],
        wanted: Mapping[int, list[str]],
        finals: Mapping[str, View],
        keep: Keep,
    ) -> None:
        self._tape, self._nodes, self._live = tape, nodes, live
        self._wanted, self._finals, self._keep = wanted, finals, keep
        self._memory: dict[int, torch.UntypedStorage] = {}
        self._generators: dict[int, torch.Generator] = {0: torch.default_generator}
        self._states = {  # of generators after steps that a later one goes back to
            node.step.resume: torch.default_generator.get_state()
            for node in nodes
            if node.step.resume is not None
        }
        self._done: set[int] = set()
        self._uses: dict[int, int] = defaultdict(int)
        self._users: dict[int, list[int]] = defaultdict(list)
        for index in sorted(live):
            for version in nodes[index].versions.values():
                self._uses[version] += 1
                self._users[version].append(index)
        self.kept: dict[str, Tensor] = {}

    def execute(self, randoms: list[int]) -> None:
        ready_after = self._ready_after()
        for index in randoms:
            if index in self._live:
                self._pull(index)
            else:
                self._draw(index)
            for follower in ready_after.get(index, ()):
                self._pull(follower)
        for version in self._wanted:
            for index in self._users[version]:
                self._pull(index)
            self._deliver(version)

    def _ready_after(self) -> dict[int, list[int]]:
        """Deterministic live steps, by the last random step that they depend on."""
        last: dict[int, int] = {}
        followers: dict[int, list[int]] = defaultdict(list)
        for index in sorted(self._live):
            node = self._nodes[index]
            before = (node.needs | node.after) & self._live
            last[index] = index if node.step.random else max(
                (last[i] for i in before), default=-1
            )  # fmt: skip
            if not node.step.random and last[index] >= 0:
                followers[last[index]].append(index)
        return followers

    def _pull(self, index: int) -> None:
        """Runs a step after those that must come before it."""
        pending = [index]
        while pending:
            top = pending[-1]
            if top in self._done:
                pending.pop()
                continue
            node = self._nodes[top]
            missing = [
                i for i in node.needs | node.after if i in self._live and i not in self._done
            ]
            if missing:
                pending.extend(missing)
            else:
                pending.pop()
                self._done.add(top)
                self._execute(top)

    def _execute(self, index: int) -> None:
        node = self._nodes[index]
        step = node.step
        output = self._call(index, lambda view: self._tensor(view, node.versions[view.storage]))
        outputs = output if isinstance(output, (tuple, list)) else (output,)
        outputs = outputs if step.outputs else ()
        for view, real in zip(step.outputs, outputs, strict=True):
            if view is not None:
                self._memory[node.versions[view.storage]] = self._laid_out(view, real)
        del output, outputs
        for version in node.versions.values():
            self._uses[version] -= 1
            if self._uses[version] == 0:
                self._deliver(version)

    def _deliver(self, version: int) -> None:
        for name in self._wanted.get(version, ()):
            if name not in self.kept:
                self.kept[name] = self._keep(name, self._tensor(self._finals[name], version))
        self._memory.pop(version, None)

    def _draw(self, index: int) -> None:
        """Advances the generator as a step does whose result nothing depends on."""
        self._call(
            index, lambda view: torch.empty_strided(view.size, view.stride, dtype=view.dtype)
        )

    def _call(self, index: int, resolve: Callable[[View], Tensor]) -> Any:
        step = self._nodes[index].step
        kwargs = {key: _resolved(item, resolve) for key, item in step.kwargs.items()}
        if torch.get_default_dtype() != step.default_dtype:
            torch.set_default_dtype(step.default_dtype)
        if not step.random:
            return step.func(*(_resolved(item, resolve) for item in step.args), **kwargs)
        generator = self._generators.setdefault(step.generator, torch.Generator())
        if step.state is not None:
            generator.set_state(step.state)
        elif step.resume is not None:
            generator.set_state(self._states[step.resume])
        if step.generator:
            kwargs["generator"] = generator
        output = step.func(*(_resolved(item, resolve) for item in step.args), **kwargs)
        if index in self._states:
            self._states[index] = generator.get_state()
        return output

    def _tensor(self, view: View, version: int) -> Tensor:
        memory = self._memory.get(version)
        if memory is None:
            given = self._tape.given.get(view.storage)
            memory = (
                _memory(self._tape.sizes[view.storage])
                if given is None
                else given.clone().untyped_storage()
            )
            self._memory[version] = memory
        return torch.empty(0, dtype=view.dtype).set_(memory, view.offset, view.size, view.stride)

    def _laid_out(self, view: View, real: Tensor) -> torch.UntypedStorage:
        same = real.stride() == view.stride and real.storage_offset() == view.offset
        if same and real.untyped_storage().nbytes() >= self._tape.sizes[view.storage]:
            return real.untyped_storage()
        memory = _memory(self._tape.sizes[view.storage])
        target = torch.empty(0, dtype=view.dtype)
        target.set_(memory, view.offset, view.size, view.stride).copy_(real)
        return memory


@contextmanager
def default_dtype_restored() -> Iterator[None]:
    before = torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _memory(nbytes: int) -> torch.UntypedStorage:
    return torch.empty(nbytes, dtype=torch.uint8).untyped_storage()


def _resolved(item: Any, resolve: Callable[[View], Tensor]) -> Any:
    if isinstance(item, View):
        return resolve(item)
    if isinstance(item, tuple):
        return [_resolved(part, resolve) for part in item]
    return item

"""Builds parameters for real from a Tape, about one at a time.

What makes this more than running the steps again:

- Random ops run in recorded order, since they draw from one generator. One
  whose result nothing wanted depends on still runs, on scratch memory.
- Writes that cover a whole storage without reading it (`normal_` after the
  default init) start a new *version* of it, so that the old one is dead.
- Other ops run as soon as the random ops that they depend on have run, and the
  rest at the end, so that a finished parameter is handed over and dropped
  before the next one is made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from meshwright.capture.tape import Step, Tape, View
from meshwright.errors import CaptureError

Keep = Callable[[str, Tensor], Tensor]

_FILLS = frozenset({
    "aten::normal_", "aten::uniform_", "aten::zero_", "aten::fill_", "aten::copy_",
    "aten::random_", "aten::exponential_", "aten::log_normal_", "aten::cauchy_",
    "aten::geometric_", "aten::bernoulli_", "trunc_normal_",
})  # fmt: skip

# Random ops that draw alike whatever the values that they are given.
_DRAW_BY_SHAPE = _FILLS | frozenset({
    "aten::rand", "aten::randn", "aten::randint", "aten::rand_like", "aten::randn_like",
    "aten::randint_like",
})  # fmt: skip


@dataclass(slots=True)
class _Node:
    """A step with the versions that it touches and the steps that come before it."""

    step: Step
    versions: dict[int, int] = field(default_factory=dict)  # storage -> version
    needs: set[int] = field(default_factory=set)  # whose results it uses
    after: set[int] = field(default_factory=set)  # that read what it overwrites


class Replay:
    """The dependences of a tape's steps, and their execution."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._nodes: list[_Node] = []
        self._version_of: dict[int, int] = {}  # storage -> its latest version
        self._storages: list[int] = []  # version -> storage
        self._writer: dict[int, int] = {}  # version -> its last writer
        readers: dict[int, list[int]] = defaultdict(list)
        for index, step in enumerate(tape.steps):
            node = _Node(step)
            fill = _filled(step, tape)
            for view in _views((step.args, *step.kwargs.values())):
                storage = view.storage
                version = self._new(storage) if storage == fill else self._latest(storage)
                node.versions[storage] = version
                if version in self._writer:
                    node.needs.add(self._writer[version])
                if storage in step.writes:
                    node.after.update(readers.pop(version, ()))
                elif storage != fill:
                    readers[version].append(index)
            made = {view.storage for view in step.outputs if view is not None}
            for storage in made:
                node.versions[storage] = self._new(storage)
            for storage in step.writes | made:
                self._writer[node.versions[storage]] = index
            self._nodes.append(node)

    def _new(self, storage: int) -> int:
        self._storages.append(storage)
        self._version_of[storage] = len(self._storages) - 1
        return len(self._storages) - 1

    def _latest(self, storage: int) -> int:
        version = self._version_of.get(storage)
        return self._new(storage) if version is None else version

    def is_random(self, view: View) -> bool:
        writer = self._writer.get(self._latest(view.storage))
        return writer is not None and any(
            self._nodes[index].step.random for index in self._closure([writer])
        )

    def run(
        self, seed: int, finals: Mapping[str, View], keep: Keep, draw: bool = True
    ) -> dict[str, Tensor]:
        """Builds `finals` and hands each to `keep`. The caller's random state is untouched.

        draw: whether to advance generators for what isn't wanted; without it
        the finals must not be random.
        """
        wanted: dict[int, list[str]] = defaultdict(list)
        for name, view in finals.items():
            wanted[self._latest(view.storage)].append(name)
        roots = [self._writer[version] for version in wanted if version in self._writer]
        randoms = [i for i, node in enumerate(self._nodes) if node.step.random] if draw else []
        roots += [i for i in randoms if not _draws_by_shape(self._nodes[i].step)]
        live = self._closure(roots)
        with torch.random.fork_rng(devices=[]), torch.no_grad(), _default_dtype_restored():
            torch.default_generator.manual_seed(seed)
            run = _Run(self._tape, self._nodes, live, wanted, finals, keep)
            run.execute(randoms)
        return {name: run.kept[name] for name in finals}

    def _closure(self, roots: Iterable[int]) -> set[int]:
        found: set[int] = set()
        pending = list(roots)
        while pending:
            index = pending.pop()
            if index not in found:
                found.add(index)
                pending.extend(self._nodes[index].needs)
        return found


class _Run:
    """One execution: memory by version, freed or handed over after its last use."""

    def __init__(
        self,
        tape: Tape,
        nodes: list[_Node],
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


def _memory(nbytes: int) -> torch.UntypedStorage:
    return torch.empty(nbytes, dtype=torch.uint8).untyped_storage()


def _views(item: Any) -> Iterator[View]:
    if isinstance(item, View):
        yield item
    elif isinstance(item, tuple):
        for part in item:
            yield from _views(part)


def _resolved(item: Any, resolve: Callable[[View], Tensor]) -> Any:
    if isinstance(item, View):
        return resolve(item)
    if isinstance(item, tuple):
        return [_resolved(part, resolve) for part in item]
    return item


def _filled(step: Step, tape: Tape) -> int | None:
    """The storage that a step overwrites entirely without reading it, if there is one."""
    if step.name not in _FILLS or not isinstance(step.args[0], View):
        return None
    target: View = step.args[0]
    others = _views((step.args[1:], *step.kwargs.values()))
    if any(view.storage == target.storage for view in others):
        return None
    numel, expected = 1, 1
    for size, stride in sorted(
        zip(target.size, target.stride, strict=True), key=lambda pair: (pair[1], pair[0])
    ):
        if size != 1 and stride != expected:
            return None
        expected *= size
        numel *= size
    covers = numel * target.dtype.itemsize == tape.sizes[target.storage]
    return target.storage if covers and target.offset == 0 else None


def _draws_by_shape(step: Step) -> bool:
    tensors = sum(1 for _ in _views((step.args, *step.kwargs.values())))
    return step.name in _DRAW_BY_SHAPE and tensors <= 1


class _default_dtype_restored:
    def __enter__(self) -> None:
        self._dtype = torch.get_default_dtype()

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(self._dtype)


def constant_value(replay: Replay, view: View) -> Tensor:
    """The value of a tensor that the model keeps as a plain attribute."""
    if replay.is_random(view):
        raise CaptureError(
            f"The model keeps a random tensor of shape {view.size} as a plain attribute.",
            "Register the tensor with register_buffer, so that it is made from the seed.",
        )
    return replay.run(0, {"value": view}, lambda _, tensor: tensor.clone(), draw=False)["value"]

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
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from meshwright.capture.execution import Execution, Keep, Node, default_dtype_restored
from meshwright.capture.tape import Step, Tape, View, views_in
from meshwright.draws import generator_seeded
from meshwright.errors import CaptureError

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


class Replay:
    """The dependences of a tape's steps, and their execution."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._nodes: list[Node] = []
        self._version_of: dict[int, int] = {}  # storage -> its latest version
        self._storages: list[int] = []  # version -> storage
        self._writer: dict[int, int] = {}  # version -> its last writer
        readers: dict[int, list[int]] = defaultdict(list)
        for index, step in enumerate(tape.steps):
            node = Node(step)
            fill = _filled(step, tape)
            for view in views_in((step.args, *step.kwargs.values())):
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
        with generator_seeded(seed), torch.no_grad(), default_dtype_restored():
            run = Execution(self._tape, self._nodes, live, wanted, finals, keep)
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


def _filled(step: Step, tape: Tape) -> int | None:
    """The storage that a step overwrites entirely without reading it, if there is one."""
    if step.name not in _FILLS or not isinstance(step.args[0], View):
        return None
    target: View = step.args[0]
    others = views_in((step.args[1:], *step.kwargs.values()))
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
    tensors = sum(1 for _ in views_in((step.args, *step.kwargs.values())))
    return step.name in _DRAW_BY_SHAPE and tensors <= 1


def constant_value(replay: Replay, view: View) -> Tensor:
    """The value of a tensor that the model keeps as a plain attribute."""
    if replay.is_random(view):
        raise CaptureError(
            f"The model keeps a random tensor of shape {view.size} as a plain attribute.",
            "Register the tensor with register_buffer, so that it is made from the seed.",
        )
    return replay.run(0, {"value": view}, lambda _, tensor: tensor.clone(), draw=False)["value"]

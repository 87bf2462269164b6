"""What passes between the segments of a lowered program, found from its dataflow alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from meshwright.cost.families import family_of
from meshwright.layout.lowered import LoweredProgram
from meshwright.layout.merge import tensors_of
from meshwright.program.types import Op
from meshwright.simulate.segments import Segments

_CARRIES = frozenset({"view", "copy", "collective"})


class Kept(NamedTuple):
    """A storage that one segment's forward makes and only its own backward uses.

    derived: made of a parameter alone, by gathering, copying or casting.
    """

    storage: str
    nbytes: int
    derived: bool


class Crossing(NamedTuple):
    """A storage that segment `made` makes in the forward and others use.

    sent: bytes that travel where the model is cut between; 0 for what each stage
    makes again by itself, since it follows from parameters or from the batch alone.
    forward, backward: segments whose forward and whose backward use it. derived: as in `Kept`.
    """

    storage: str
    nbytes: int
    sent: int
    made: int
    forward: tuple[int, ...]
    backward: tuple[int, ...]
    derived: bool


class Gradient(NamedTuple):
    """A storage that segment `made` makes in the backward and earlier ones use, down to `end`.

    shared: a term of the gradient of a parameter that several segments use; it is
    added to the others' once a step, and does not travel with each microbatch.
    """

    storage: str
    nbytes: int
    sent: int
    made: int
    end: int
    shared: bool


@dataclass(frozen=True)
class Traffic:
    """`users` says for each parameter and buffer, by value, which segments use it.

    `to_weights` holds the backward's ops that lead to gradients of parameters alone,
    as far as their segment goes. `derived` are storages made of a parameter alone.
    """

    private: tuple[tuple[Kept, ...], ...]
    crossing: tuple[Crossing, ...]
    gradients: tuple[Gradient, ...]
    derived: frozenset[str]
    users: Mapping[str, tuple[int, ...]]
    to_weights: frozenset[str]


def traffic(lowered: LoweredProgram, parts: Segments) -> Traffic:
    return _Analysis(lowered, parts).run()


class _Analysis:
    def __init__(self, lowered: LoweredProgram, parts: Segments) -> None:
        self.lowered, self.parts = lowered, parts
        self.values, self.operands = lowered.values, parts.operands
        self.forward = [(n, op) for n, group in enumerate(parts.forward) for op in group]
        count = len(parts.names)
        self.backward = [(n, op) for n in range(count - 1, -1, -1) for op in parts.backward[n]]

    def run(self) -> Traffic:
        users, derived, from_parameters = self._parameters()
        private, crossing = self._forward(derived, from_parameters)
        shared = self._shared()
        return Traffic(
            private,
            crossing,
            self._gradients(shared),
            frozenset(derived),
            users,
            self._to_weights(shared),
        )

    def _parameters(self) -> tuple[dict[str, tuple[int, ...]], set[str], set[str]]:
        """Users of parameters, storages made of one alone, values that depend on any."""
        lowered, values = self.lowered, self.values
        root = {item.value: item.value for item in (*lowered.parameters, *lowered.buffers)}
        depends = {item.value for item in lowered.parameters}
        stored = {values[item.value].storage for item in lowered.parameters}
        derived: set[str] = set()
        users: dict[str, set[int]] = {}
        gathers = [(None, op) for op in lowered.gather.ops]
        for number, op in (*gathers, *self.forward):
            names = self.operands[op.name]
            results = [name for name in op.results if name is not None]
            carries = len(set(names)) == 1 and family_of(op.target) in _CARRIES
            if depends.intersection(names):
                depends.update(results)
            pairs = [(names[0], name) for name in results] if carries else []
            if tensors_of(op) > 1:
                pairs = list(zip(names, results, strict=True))
            if pairs and all(source in root for source, _ in pairs):
                for source, name in pairs:
                    root[name] = root[source]
                    storage = values[name].storage
                    if storage not in stored and source in depends:
                        derived.add(storage)
            elif number is not None:
                for name in names:
                    if name in root:
                        users.setdefault(root[name], set()).add(number)
        return {name: tuple(sorted(found)) for name, found in users.items()}, derived, depends

    def _forward(
        self, derived: set[str], from_parameters: set[str]
    ) -> tuple[tuple[tuple[Kept, ...], ...], tuple[Crossing, ...]]:
        values = self.values
        made: dict[str, int] = {}
        size: dict[str, int] = {}
        travels: dict[str, bool] = {}
        uses: dict[str, set[int]] = {}
        sent: dict[str, int] = {}
        backward: dict[str, set[int]] = {}
        for number, op in self.forward:
            for name in self.operands[op.name]:
                storage = values[name].storage
                if storage in made and number > made[storage]:
                    uses[storage].add(number)
                    sent[storage] = max(sent.get(storage, 0), values[name].nbytes)
            for result in op.results:
                if result is not None and values[result].storage not in made:
                    storage = values[result].storage
                    if storage == result or storage not in values:
                        made[storage], uses[storage] = number, set()
                        size[storage] = values.get(storage, values[result]).nbytes
                        travels[storage] = result in from_parameters and storage not in derived
        for number, op in self.backward:
            for name in self.operands[op.name]:
                storage = values[name].storage
                if storage in made:
                    backward.setdefault(storage, set()).add(number)
                    if number != made[storage]:
                        sent[storage] = max(sent.get(storage, 0), values[name].nbytes)
        private: list[list[Kept]] = [[] for _ in self.parts.names]
        crossing = []
        for storage, number in made.items():
            again = tuple(sorted(backward.get(storage, ())))
            if not uses[storage] and again in ((), (number,)):
                if again:
                    private[number].append(Kept(storage, size[storage], storage in derived))
                continue
            moved = sent.get(storage, 0) if travels[storage] else 0
            forward = tuple(sorted(uses[storage]))
            crossing.append(
                Crossing(storage, size[storage], moved, number, forward, again, storage in derived)
            )
        return tuple(tuple(group) for group in private), tuple(crossing)

    def _shared(self) -> frozenset[str]:
        """Values of the backward that only add up, be it in several steps, to a gradient."""
        users: dict[str, list[Op]] = {}
        for _, op in self.backward:
            for name in self.operands[op.name]:
                users.setdefault(name, []).append(op)
        ends = set(self.lowered.accumulated.values())
        found: set[str] = set()
        for _, op in reversed(self.backward):
            for result in op.results:
                if result is None:
                    continue
                uses = users.get(result, ())
                if (result in ends or uses) and all(
                    _adds(use) and all(r in found for r in use.results if r) for use in uses
                ):
                    found.add(result)
        return frozenset(found)

    def _gradients(self, shared: frozenset[str]) -> tuple[Gradient, ...]:
        values = self.values
        made: dict[str, tuple[int, str]] = {}
        end: dict[str, int] = {}
        sent: dict[str, int] = {}
        terms: dict[str, bool] = {}
        for number, op in self.backward:
            for name in self.operands[op.name]:
                storage = values[name].storage
                if storage in made and number < made[storage][0]:
                    end[storage] = min(end.get(storage, number), number)
                    sent[storage] = max(sent.get(storage, 0), values[name].nbytes)
                    terms[storage] = terms.get(storage, True) and name in shared
            for result in op.results:
                if result is not None:
                    made.setdefault(values[result].storage, (number, result))
        return tuple(
            Gradient(
                storage,
                values.get(storage, values[made[storage][1]]).nbytes,
                0 if terms[storage] else sent[storage],
                made[storage][0],
                number,
                terms[storage],
            )
            for storage, number in end.items()
        )

    def _to_weights(self, shared: frozenset[str]) -> frozenset[str]:
        """Ops of which, inside their segment, nothing but parameters' gradients comes."""
        where = {name: n for n, op in self.backward for name in op.results if name is not None}
        leads: dict[str, bool] = {}  # to another segment, by value
        users: dict[str, list[tuple[int, Op]]] = {}
        for number, op in self.backward:
            for name in self.operands[op.name]:
                users.setdefault(name, []).append((number, op))
        found: set[str] = set()
        for number, op in reversed(self.backward):
            results = [name for name in op.results if name is not None]
            for name in results:
                leads[name] = any(
                    (user != number and name not in shared)
                    or any(leads.get(r, False) for r in _names(use.results) if where[r] == number)
                    for user, use in users.get(name, ())
                )
            if not any(leads[name] for name in results):
                found.add(op.name)
        return frozenset(found)


def _names(results: Iterable[str | None]) -> list[str]:
    return [name for name in results if name is not None]


def _adds(op: Op) -> bool:
    packet = op.target.split(".")[1]
    return packet in ("add", "add_", "sum_to_size") or family_of(op.target) in _CARRIES

"""What planning looks at: few of many equal blocks, and how a plan of few is one of all.

Where a model has no equal blocks in a row, or they can't be proven equal, few are all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from meshwright.cost.flops import op_flops
from meshwright.layout.groups import Analysis
from meshwright.lower.probing import Probing
from meshwright.plan.types import Decision, ParameterPlan
from meshwright.program.rolled import OfUnit
from meshwright.program.types import Op
from meshwright.program.unroll import Unrolled
from meshwright.search.types import Candidate


@dataclass
class Outline:
    """The step of one microbatch for planning.

    few: the analysed Program in which one block stands for several, `stands_for` says which for
    how many. `whole` is that of all blocks, made when it is asked for; asking may raise
    `program.rolled.Irregular`, since only then the proof is made for this microbatch.
    derived: `few` was worked out from those of other microbatches, not captured.
    """

    few: Analysis
    stands_for: Mapping[str, int] = field(default_factory=dict)
    unrolled: Unrolled | None = None
    complete: Callable[[], Unrolled] | None = None
    prober: Probing | None = None
    derived: bool = False

    @property
    def shortened(self) -> bool:
        return self.unrolled is not None

    @cached_property
    def _all(self) -> Unrolled:
        assert self.complete is not None
        return self.complete()

    @cached_property
    def whole(self) -> Analysis:
        return Analysis(self._all.program, self.prober) if self.shortened else self.few

    @cached_property
    def flops(self) -> float:
        """Of one microbatch of the whole model, as the model is written."""
        program = self.few.program
        return sum(op_flops(op, program.values) * self._times(op) for op in program.ops)

    def _times(self, op: Op) -> int:
        if self.unrolled is None:
            return 1
        key = self._keys[next(name for name in op.results if name is not None)]
        return self.unrolled.meant[key.run] if isinstance(key, OfUnit) else 1

    @cached_property
    def _keys(self) -> Mapping[str, str | OfUnit]:
        """What each value of `few` is, by name."""
        assert self.unrolled is not None
        return {name: key for key, name in self.unrolled.names.items()}

    def expand(self, candidate: Candidate) -> Candidate:
        """The candidate for all blocks: what it decides of one holds for those it stands for."""
        if not self.shortened:
            return candidate
        return replace(
            candidate,
            decisions=tuple(self._decisions(candidate.decisions)),
            parameters=self._parameters(candidate.parameters),
        )

    def _parameters(self, plans: Mapping[str, ParameterPlan]) -> dict[str, ParameterPlan]:
        assert self.unrolled is not None
        paths = {item.value: item.path for item in self.few.program.inputs}
        keys = {name: key for key, name in self._all.names.items()}
        found = {}
        for item in self.whole.program.inputs_of("parameter"):
            key = keys[item.value]
            if isinstance(key, OfUnit):
                key = replace(key, unit=0)
            path = paths[self.unrolled.names[key]]
            if path in plans:
                found[item.path] = plans[path]
        return found

    def _decisions(self, decisions: Iterable[Decision]) -> Iterable[Decision]:
        """Decisions on blocks of one run that follow each other are made block by block."""
        together: list[tuple[Decision, OfUnit]] = []
        values = {item.path: item.value for item in self.few.program.inputs}
        for decision in decisions:
            key = self._keys[values.get(decision.value, decision.value)]
            if together and (not isinstance(key, OfUnit) or key.run != together[0][1].run
                             or decision.axis != together[0][0].axis):  # fmt: skip
                yield from self._repeated(together)
                together = []
            if isinstance(key, OfUnit):
                together.append((decision, key))
            else:
                yield decision.model_copy(update={"value": self._named(key)})
        yield from self._repeated(together)

    def _repeated(self, together: list[tuple[Decision, OfUnit]]) -> Iterable[Decision]:
        if not together:
            return
        run = together[0][1].run
        units = self._all.units[run]
        own = "|".join(re.escape(member) for member in units[0])
        pattern = re.compile(rf"(?<![\w.])({own})(?=[./\s,]|$)")
        for number, unit in enumerate(units):
            named = dict(zip(units[0], unit, strict=True))
            for decision, key in together:
                why = pattern.sub(partial(_renamed, named), decision.why)
                value = self._named(replace(key, unit=number))
                yield decision.model_copy(update={"value": value, "why": why})

    def _named(self, key: str | OfUnit) -> str:
        """The name in the whole Program; for an input its path."""
        name = self._all.names[key]
        return self._paths.get(name, name)

    @cached_property
    def _paths(self) -> Mapping[str, str]:
        return {item.value: item.path for item in self.whole.program.inputs}


def _renamed(names: Mapping[str, str], found: re.Match[str]) -> str:
    return names[found[0]]

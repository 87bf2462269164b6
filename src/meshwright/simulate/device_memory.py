"""The memory of one stage's device through a step: what is held, and what each turn adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from meshwright.simulate.pieces import Held, Piece
from meshwright.simulate.schedules import Turn
from meshwright.simulate.section import ACTIVATIONS, GATHERED, GRADIENTS
from meshwright.simulate.types import MemoryMoment

_BLOCK = 2 * 2**20  # what the allocator of accelerators asks the device for at a time


@dataclass
class DeviceMemory:
    """`always`: bytes held throughout, by kind. `gradient_buffer`: as in `Executor`.

    unused: the share of activations, gradients and gathered parameters that the
    allocator holds beside what is in use; None where memory is given back at once.
    """

    always: dict[str, int]
    gradient_buffer: bool
    unused: float | None
    peak: dict[str, int] = field(default_factory=dict)
    peak_bytes: int = -1
    peak_at: str = ""
    peak_source: str = ""
    curve: list[MemoryMoment] = field(default_factory=list)

    def see(
        self, label: str, at: str, source: str, parts: Sequence[int], start_s: float, detail: bool
    ) -> None:
        """parts: activations, gathered parameters, gradients in use at one moment."""
        total = sum(self.always.values()) + sum(parts)
        allocator = 0
        if self.unused is not None:
            allocator = int(sum(parts) * self.unused)
            allocator += -(total + allocator) % _BLOCK
        total += allocator
        if detail:
            self.curve.append(MemoryMoment(label, total, start_s))
        if total > self.peak_bytes:
            self.peak_bytes, self.peak_source = total, source
            self.peak_at = f"{label}: {at}" if at else label
            self.peak = {
                **self.always,
                "activations": parts[ACTIVATIONS],
                "gathered": parts[GATHERED],
                "gradients": parts[GRADIENTS],
                **({"allocator": allocator} if self.unused is not None else {}),
            }

    def turns(
        self,
        pieces: Sequence[Piece],
        turns: Sequence[tuple[Turn, float, float]],
        gathered: int,
        detail: bool,
    ) -> None:
        """The turns of a step in order; `pieces` by chunk, `gathered` held all step long."""
        weights_apart = any(turn.phase == "W" for turn, _, _ in turns)
        live = [0, gathered, 0]
        flying = [0] * len(pieces)
        if self.gradient_buffer:
            live[GRADIENTS] = sum(piece.accumulated for piece in pieces)
        added = [False] * len(pieces)
        seen: set[tuple[object, ...]] = set()
        for turn, begin, _ in turns:
            piece = pieces[turn.chunk]
            label = _label(turn)
            key = (turn.phase, turn.chunk, *live)
            again = key in seen and not detail  # nothing new to see
            seen.add(key)
            if turn.phase == "F":
                if not again:
                    self._with(label, live, piece.forward_memory, begin, detail)
                if not flying[turn.chunk]:
                    live[GATHERED] += piece.saved[GATHERED]
                flying[turn.chunk] += 1
                live[ACTIVATIONS] += piece.saved[ACTIVATIONS]
                continue
            if turn.phase == "B":
                if not again:
                    self._with(label, live, piece.backward_memory, begin, detail)
                if not self.gradient_buffer and not (again and added[turn.chunk]):
                    if added[turn.chunk]:
                        both = [live[0], live[1], live[2] + piece.accumulated]
                        both[ACTIVATIONS] -= piece.saved[ACTIVATIONS]
                        if flying[turn.chunk] == 1:
                            both[GATHERED] -= piece.saved[GATHERED]
                        self.see("accumulate", "", "", both, begin, False)
                    else:
                        live[GRADIENTS] += piece.accumulated
                added[turn.chunk] = True
            if turn.phase == "W" or not weights_apart:
                flying[turn.chunk] -= 1
                live[ACTIVATIONS] -= piece.saved[ACTIVATIONS]
                if not flying[turn.chunk]:
                    live[GATHERED] -= piece.saved[GATHERED]

    def _with(
        self, label: str, live: Sequence[int], held: Held, begin: float, detail: bool
    ) -> None:
        parts = [one + other for one, other in zip(live, held.peak, strict=True)]
        if self.gradient_buffer:
            parts[GRADIENTS] -= held.peak[GRADIENTS]
        self.see(label, held.at, held.source, parts, begin, detail)


def _label(turn: Turn) -> str:
    return {"F": "forward", "B": "backward", "W": "weights"}[turn.phase]

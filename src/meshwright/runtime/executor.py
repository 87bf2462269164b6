"""One device's compiled step: the sections of a lowered program as functions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from meshwright.as_is import OpaqueCall
from meshwright.layout.ahead import ahead
from meshwright.layout.lowered import LoweredProgram, Section
from meshwright.layout.merge import merge
from meshwright.layout.overlap import ending, started
from meshwright.lower.emit import Run, emit
from meshwright.program.types import Value
from meshwright.runtime.comm import Communicator
from meshwright.runtime.local_ops import RandomKey, local_ops
from meshwright.runtime.opaque import OpaqueRuns


class Executable:
    """Runs the sections of one lowered program.

    `text` maps each section's name to the Python that runs for it.
    """

    def __init__(
        self,
        lowered: LoweredProgram,
        constants: Mapping[str, Tensor],
        comm: Communicator,
        key: RandomKey,
        device: torch.device,
        opaque: Mapping[str, OpaqueCall] | None = None,
    ) -> None:
        """`constants` are the tensors that the step closes over, by value name; `opaque` the
        calls of modules that run as they are, by the name that ops give."""
        self.lowered = lowered = merge(lowered)
        self._constants = constants
        self.text: dict[str, str] = {}
        self._runs: dict[str, Run] = {}
        self._sections: dict[str, Section] = {}
        self._values: dict[str, Mapping[str, Value]] = {}
        self.overlaps = False
        self._comm, self._device = comm, device
        self._functions = {**local_ops(comm, key), **OpaqueRuns(opaque or {}, device).functions()}
        for name in ("gather", "forward", "backward", "reduce", "clip"):
            self._emit(name, getattr(lowered, name))

    def overlap(self) -> None:
        """Gather parameters and reduce gradients beside compute.

        See `meshwright.layout.ahead` and `meshwright.layout.overlap`.
        """
        if not self.overlaps and self.lowered.uniform:
            self.overlaps = True
            self.lowered = lowered = ahead(self.lowered)
            self._emit("gather", lowered.gather)
            self._emit("forward", lowered.forward)
            self._emit("backward", started(lowered.backward, lowered.values))

    def end(self, adds: bool) -> str:
        """The name of the section that ends a step, emitted when it is first asked for."""
        name = "end_adding" if adds else "end"
        if name not in self._runs:
            made = ending(self.lowered, adds)
            self._emit(name, made.section, made.values)
        return name

    def _emit(self, name: str, section: Section, values: Mapping[str, Value] | None = None) -> None:
        self._sections[name] = section
        self._values[name] = values or self.lowered.values
        self._runs[name], self.text[name] = emit(
            name, section, self._values[name], self._functions, self._device
        )

    def run(
        self, name: str, kept: Mapping[str, Tensor], taken: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Run one section; its outputs by value name.

        Inputs in `taken` are removed from it, so that the section frees each
        after its last use; those in `kept` stay with the caller.
        """
        section = self._sections[name]
        taken = {} if taken is None else taken
        values = [
            taken.pop(value)
            if value in taken
            else kept[value]
            if value in kept
            else self._constants[value]
            for value in section.inputs
        ]
        run = self._runs[name] if self._comm.trace is None else self._traced(name)
        outputs = run(values)
        return dict(zip(section.outputs, outputs, strict=True))

    def _traced(self, name: str) -> Run:
        """The section with its ops timed, emitted once for each trace."""
        trace = self._comm.trace
        assert trace is not None
        found = trace.emitted.get((self, name))
        if found is None:
            found = trace.emitted[self, name] = emit(
                name, self._sections[name], self._values[name], self._functions, self._device,
                trace.wrap,
            )[0]  # fmt: skip
        return found

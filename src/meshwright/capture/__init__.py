"""From a torch module, a loss and an example batch to a Program.

    Task ──blueprint──▶ Blueprint (fakes, and how to make the weights)
         ──capture────▶ Captured  (Program, constants, batch structure)

`blueprint.py` and below it `tape.py`, `replay.py`, `meta.py`, `copying.py` build
models without memory; `trace.py` runs the step, `recorder.py` records it and
`assemble.py` makes it a Program; `interpret.py` runs a Program op by op.
"""

from meshwright.capture.batch import BatchSpec
from meshwright.capture.blueprint import Blueprint, blueprint
from meshwright.capture.interpret import interpret
from meshwright.capture.trace import Captured, capture

__all__ = ["BatchSpec", "Blueprint", "Captured", "blueprint", "capture", "interpret"]

"""From a torch module, a loss and an example batch to a Program.

    Task ──blueprint──▶ Blueprint (fakes, and how to make the weights)
         ──capture────▶ Captured  (Program, constants, batch structure)

Building without memory, `blueprint.py`: `construction.py` records what a callable
does as a `tape.py`, `replay.py` and `execution.py` do it for real; `copying.py`
and `meta.py` are for modules that are there already.

Capturing, `trace.py`: `recorder.py` records the ops of the step, with `state.py`
putting tensors in the module's place and `location.py` telling where an op comes
from; `assemble.py` makes it a Program. `interpret.py` runs one op by op.
"""

from meshwright.capture.batch import BatchSpec
from meshwright.capture.blueprint import Blueprint, blueprint
from meshwright.capture.interpret import interpret
from meshwright.capture.trace import Captured, capture

__all__ = ["BatchSpec", "Blueprint", "Captured", "blueprint", "capture", "interpret"]

"""What loading a model of transformers leaves unloaded, looked at in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("sklearn")

_LOADS = """
import sys
from meshwright.zoo.reference import load_task
load_task("hf:gpt2", {"n_layer": "1", "seq_len": "8"})
assert "torch" in sys.modules and "transformers.generation.utils" in sys.modules
assert "sklearn" not in sys.modules and "scipy.stats" not in sys.modules
from transformers.utils import is_sklearn_available
assert is_sklearn_available()
from transformers.generation import candidate_generator
rates = candidate_generator.roc_curve([0, 1], [0.1, 0.9])
assert "sklearn" in sys.modules and len(rates) == 3
print("looked")
"""


def test_scikit_learn_is_loaded_when_it_is_called_for():
    done = subprocess.run(
        [sys.executable, "-c", _LOADS], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "looked", done.stderr

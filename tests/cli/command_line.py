"""Running the command line from a test: in this process, or as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from meshwright.cli.main import run

GPT = ("zoo:gpt", "-o", "layers=2", "-o", "width=64", "-o", "seq_len=32", "--global-batch", "8")
MLP = ("zoo:mlp", "-o", "hidden=32", "-o", "layers=1", "--global-batch", "8")
COMMAND = (sys.executable, "-m", "meshwright")


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def object(self) -> dict[str, Any]:
        """The one object on standard output."""
        found: dict[str, Any] = json.loads(self.out)
        return found


class Here:
    """Runs commands in this process, which has PyTorch already."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd = capfd

    def __call__(self, *words: str | Path) -> Done:
        self.capfd.readouterr()
        code = run([str(word) for word in words])
        return Done(code, *self.capfd.readouterr())


def outside(
    *words: str | Path, cwd: Path, timeout_s: float = 120, env: dict[str, str] | None = None
) -> Done:
    """Runs `python -m meshwright` in a process of its own."""
    done = subprocess.run(
        [*COMMAND, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=timeout_s,
        check=False, env=dict(os.environ) | (env or {}),
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


def check_error(done: Done, code: int, *told: str) -> None:
    """One clear error, with what to do and without a traceback."""
    assert done.code == code, done.err
    assert done.out == ""
    errors = [line for line in done.err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, done.err
    assert "Traceback" not in done.err
    for text in told:
        assert text in done.err
    _, _, after = done.err.partition("Error: ")
    assert len(after.strip().splitlines()) >= 2, "there is no remedy"

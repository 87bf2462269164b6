"""What tests of the command line share. They never calibrate, and never touch the user's cache."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import GPT, Here


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("RANK", raising=False)


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str]) -> Here:
    return Here(capfd)


@pytest.fixture(scope="session")
def gpt_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of the small GPT for four devices."""
    from meshwright import plan, save_plan
    from meshwright.zoo.reference import load_task

    words = [word for word in GPT if "=" in word] + ["global_batch=8"]
    options = dict(word.split("=") for word in words)
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    save_plan(plan(load_task("zoo:gpt", options), "local:4", "data=2,tensor=2"), path)
    return path

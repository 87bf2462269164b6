"""What `pip install .` installs: every module, every data file, the command and the version."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from meshwright._version import __version__

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "src" / "meshwright"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy, since building writes beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "copy"
    generated = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", copy / "src", ignore=generated)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(folder)!r})"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_has_every_file_of_the_package(wheel):
    expected = {
        f"meshwright/{path.relative_to(SOURCES).as_posix()}"
        for path in SOURCES.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    missing = expected - set(wheel.namelist())
    assert not missing, (
        f"not in the wheel: {', '.join(sorted(missing))}."
        " Data needs a line under [tool.setuptools.package-data] in pyproject.toml."
    )


@pytest.mark.parametrize(
    "kind", ["cluster/profiles/", "report/static/", "report/vendor/", "py.typed"]
)
def test_the_wheel_has_data_of_each_kind(wheel, kind):
    assert any(name.startswith(f"meshwright/{kind}") for name in wheel.namelist())


def test_the_wheel_has_only_the_package(wheel):
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert tops == {"meshwright", f"meshwright-{__version__}.dist-info"}


def test_the_command_points_at_a_function_that_ships(wheel):
    name = f"meshwright-{__version__}.dist-info/entry_points.txt"
    entries = configparser.ConfigParser()
    entries.read_string(wheel.read(name).decode())
    module, _, function = entries["console_scripts"]["meshwright"].partition(":")
    assert function == "main"
    assert module.replace(".", "/") + ".py" in wheel.namelist()


def test_pytorch_stays_within_one_minor_release():
    """Parts of PyTorch that may move are used, so a new minor release is taken on purpose."""
    pins = [pin for pin in PROJECT["project"]["dependencies"] if pin.startswith("torch")]
    assert pins == ["torch>=2.13,<2.14"]

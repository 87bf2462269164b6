"""`meshwright doctor`: does this machine have what Meshwright needs?"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from meshwright.cli import options as given
from meshwright.cli.kinds import show_kinds
from meshwright.cli.models import show_models
from meshwright.cli.output import Output
from meshwright.cli.processes import cores_here
from meshwright.errors import MeshwrightError, RunError

_PROCESSES = 2
_TIMEOUT_S = 60.0
_LEAST_MEMORY_BYTES = 2 << 30
_OPTIONAL = {
    "transformers": "for hf: models; pip install 'meshwright[hf]'",
    "scikit-learn": "for the digits of zoo:convnet and zoo:mlp; pip install scikit-learn",
}


_Kinds = Annotated[
    bool,
    typer.Option("--kinds", help="List the built-in kinds of device for --cluster instead."),
]


_Models = Annotated[
    bool,
    typer.Option("--models", help="List the models that hf:NAME knows by a short name instead."),
]


@dataclass(frozen=True)
class Check:
    """`needed` checks have to pass; others say what is missing for more."""

    name: str
    ok: bool
    needed: bool
    detail: str
    remedy: str = ""


def doctor(
    kinds: _Kinds = False,
    models: _Models = False,
    json: given.Json = False,
    debug: given.Debug = False,
) -> None:
    """Check this machine: versions, cores, memory, processes that talk, folders."""
    with Output(json) as out:
        if kinds:
            show_kinds(out)
            return
        if models:
            show_models(out)
            return
        checks = []
        with out.status("Checking") as update:
            for check in _CHECKS:
                update(f"Checking {check.__name__.strip('_')}")
                checks += check()
        failed = [check for check in checks if check.needed and not check.ok]
        _show(checks, out)
        out.emit({"ok": not failed, "checks": [asdict(check) for check in checks]})
    if failed and json:
        raise typer.Exit(RunError.exit_code)
    if failed:
        raise RunError(
            f"This machine can't run Meshwright: {', '.join(check.name for check in failed)}.",
            "Do what the table says.",
        )


def _python() -> list[Check]:
    found = sys.version.split()[0]
    return [Check("python", sys.version_info >= (3, 11), True, found, "Install Python 3.11.")]


def _torch() -> list[Check]:
    try:
        found = version("torch")
    except PackageNotFoundError:
        return [Check("torch", False, True, "not installed", "pip install 'torch>=2.13,<2.14'")]
    return [Check("torch", found.startswith("2.13."), True, found,
                  "pip install 'torch>=2.13,<2.14'")]  # fmt: skip


def _cores() -> list[Check]:
    return [Check("cores", True, True, f"{cores_here()} to use")]


def _memory() -> list[Check]:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return [Check("memory", whole >= _LEAST_MEMORY_BYTES, True, f"{whole / 2**30:.1f} GiB",
                  "Planning takes about 1 GiB, and each process half of one.")]  # fmt: skip


def _loopback() -> list[Check]:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        return [Check("loopback", False, True, str(error), "Allow connections to 127.0.0.1.")]
    return [Check("loopback", True, True, "127.0.0.1 accepts connections")]


def _processes() -> list[Check]:
    """Start processes that meet over gloo, as training does."""
    name = "processes over gloo"
    try:
        from meshwright.runtime.launch import launch

        with tempfile.TemporaryDirectory(prefix="meshwright-doctor-") as folder:
            launch("meshwright.cli.workers:greet", {"timeout_s": _TIMEOUT_S}, _PROCESSES,
                   Path(folder), timeout_s=_TIMEOUT_S)  # fmt: skip
    except (MeshwrightError, ImportError, OSError) as error:
        remedy = "See that nothing forbids processes, or connections to 127.0.0.1."
        return [Check(name, False, True, str(error).splitlines()[0], remedy)]
    return [Check(name, True, True, f"{_PROCESSES} started and met")]


def _folders() -> list[Check]:
    from meshwright.cli.profiles import cache_folder

    places = (
        ("this folder", Path.cwd(), False, "Runs are written here; use --run DIR."),
        ("temporary folder", Path(tempfile.gettempdir()), True, "Set TMPDIR to one you can use."),
        ("cache", cache_folder(), False, "Profiles are kept here; set XDG_CACHE_HOME."),
    )
    return [
        Check(name, _writable(path), needed, str(path), remedy)
        for name, path, needed, remedy in places
    ]


def _packages() -> list[Check]:
    checks = []
    for name, purpose in _OPTIONAL.items():
        try:
            checks.append(Check(name, True, False, version(name)))
        except PackageNotFoundError:
            checks.append(Check(name, False, False, "not installed", purpose))
    return checks


def _writable(path: Path) -> bool:
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return True
    except OSError:
        return False


_CHECKS: tuple[Callable[[], list[Check]], ...] = (
    _python, _torch, _cores, _memory, _folders, _loopback, _processes, _packages
)  # fmt: skip


def _show(checks: list[Check], out: Output) -> None:
    from rich.markup import escape

    from meshwright.cli.show import table

    made = table("", "check", "found", "what to do", wrap=("found", "what to do"))
    for check in checks:
        mark = "[green]ok[/]" if check.ok else "[red]no[/]" if check.needed else "[yellow]-[/]"
        made.add_row(
            mark, check.name, escape(check.detail), "" if check.ok else escape(check.remedy)
        )
    out.print(made)

"""The command line: its commands, and what becomes of what they raise.

Nothing here, nor what a command's file imports at its top, imports PyTorch:
`meshwright --help` answers at once.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Annotated

import typer

from meshwright._version import __version__
from meshwright.cli.calibrate import calibrate
from meshwright.cli.compare import compare
from meshwright.cli.demo_command import demo
from meshwright.cli.doctor import doctor
from meshwright.cli.explain import explain
from meshwright.cli.failures import INTERRUPTED, failure_of, has_shown_help, is_mine_to_tell, tell
from meshwright.cli.plan import plan
from meshwright.cli.report import report
from meshwright.cli.simulate import simulate
from meshwright.cli.train import train
from meshwright.cli.verify import verify
from meshwright.collecting import leave_uncollected, rare_collections
from meshwright.quiet import unlogged

__all__ = ["main", "run"]

_LONGEST_TELLING_S = 20

_COMMANDS = (
    demo, plan, train, verify, simulate, explain, compare, calibrate, report, doctor
)  # fmt: skip


def _application() -> typer.Typer:
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_meshwright)
    for command in _COMMANDS:
        app.command()(command)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"meshwright {__version__}")
        raise typer.Exit


def _meshwright(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Plan and run parallel training of any PyTorch model.

    Exit codes: 0 done, 2 bad input, 3 no plan fits, 4 capture failed, 5 run failed.
    """


def run(words: Sequence[str]) -> int:
    """Run the command that `words` spell; its exit code."""
    flags = set(itertools.takewhile(lambda word: word != "--", words))
    command = typer.main.get_command(_application())
    try:
        with rare_collections(), nullcontext() if "--debug" in flags else unlogged():
            code = command.main(args=list(words), prog_name="meshwright", standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
            # The reader has seen enough; the interpreter must not complain when it flushes.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 0
        if has_shown_help(error):
            return 2
        failure = failure_of(error)
        if "--debug" in flags:
            traceback.print_exc()
        if is_mine_to_tell(error):
            tell(failure, "--json" in flags)
        else:
            # torchrun ends all processes when one ends badly: the one that tells goes first.
            time.sleep(_LONGEST_TELLING_S)
        return failure.code


def main() -> None:
    code = run(sys.argv[1:])
    leave_uncollected()
    sys.exit(code)

"""What left a command as an exception, as an exit code and words for a person."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from meshwright.cli.output import write_json
from meshwright.errors import MeshwrightError, NoPlanFits, RunError

# The root of the parser's own errors, which the library beneath Typer defines.
_PARSER: type[Exception] = typer.BadParameter.__mro__[2]

INTERRUPTED = 130


@dataclass(frozen=True)
class Failure:
    code: int
    kind: str
    message: str
    remedy: str
    details: Mapping[str, Any] = field(default_factory=dict)


def failure_of(error: BaseException) -> Failure:
    if isinstance(error, MeshwrightError):
        details = error.details if isinstance(error, NoPlanFits) else {}
        return Failure(error.exit_code, error.kind, error.message, error.remedy, details)
    if isinstance(error, _PARSER):
        return _usage(error)
    if isinstance(error, KeyboardInterrupt):
        return Failure(INTERRUPTED, "interrupted", "Interrupted.", "")
    if isinstance(error, typer.Abort):
        if isinstance(error.__cause__, KeyboardInterrupt):
            return failure_of(error.__cause__)
        return failure_of(error.__cause__ or KeyboardInterrupt())
    if isinstance(error, SystemExit):
        return Failure(
            2,
            "model",
            f"The model's own code ended the program: it called sys.exit({error.code!r}).",
            "Take that call out of what runs when the model is built or called.",
        )
    text = " ".join(str(error).split())
    return Failure(
        1,
        "bug",
        f"This is a bug in Meshwright: {type(error).__name__}{': ' if text else ''}{text}",
        "Run it again with --debug for the traceback, and report that, please.",
    )


def _usage(error: Exception) -> Failure:
    """The parser's error on one line, with where to read what it accepts."""
    message = getattr(error, "format_message", lambda: str(error))()
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    context = getattr(error, "ctx", None)
    command = getattr(context, "command_path", None) or "meshwright"
    return Failure(2, "usage", " ".join(lines), f"Run `{command} --help` to see what it takes.")


def has_shown_help(error: BaseException) -> bool:
    """Whether the parser got no words at all, and has printed its help."""
    return isinstance(error, _PARSER) and type(error).__name__ == "NoArgsIsHelpError"


def tell(failure: Failure, as_json: bool) -> None:
    """One object on standard output, or text on standard error; other ranks have text alone."""
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        failure = replace(failure, message=f"Rank {rank}: {failure.message}")
    elif as_json:
        words = {"kind": failure.kind, "message": failure.message, "remedy": failure.remedy}
        write_json({"error": words | dict(failure.details)})
        return
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        # Whole lines, for whoever searches a log.
        console.print(Text(f"Error: {failure.message}"), soft_wrap=True)
        if failure.remedy:
            console.print(Text(f"       {failure.remedy}"), soft_wrap=True)
        return
    grid = Table.grid(padding=(0, 1))
    grid.add_row(Text("Error", style="bold red"), Text(failure.message))
    if failure.remedy:
        grid.add_row("", Text(failure.remedy, style="cyan"))
    console.print(grid)


def is_mine_to_tell(error: BaseException) -> bool:
    """Of the processes of a `torchrun`, the first tells what all of them find out alike."""
    rank = os.environ.get("RANK", "0")
    alike = isinstance(error, MeshwrightError) and not isinstance(error, RunError)
    return rank == "0" or not (alike or isinstance(error, _PARSER))

"""Where a command writes: text or one JSON object on standard output, the rest on standard error.

A command works inside `with Output(json) as out`. With JSON, standard output is
closed to everything else for that time, a user's own `print` and what C code
writes included; the object goes out when the block ends.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType

Update = Callable[[str], None]


class Output:
    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        # Of the processes of a torchrun the first alone speaks, but for its errors.
        self._speaks = os.environ.get("RANK", "0") == "0"
        self.err = Console(stderr=True, highlight=False)
        self.out = Console(highlight=False, quiet=as_json)
        self._object: Mapping[str, Any] | None = None
        self._closed = contextlib.ExitStack()

    def __enter__(self) -> Output:
        if self.as_json:
            self._closed.enter_context(_stdout_closed())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.close()
        if self._object is not None:
            write_json(self._object)

    def emit(self, content: Mapping[str, Any]) -> None:
        """The command's one object; shown only with `--json`."""
        if self.as_json:
            self._object = content

    def print(self, *items: RenderableType) -> None:
        """For people; nothing with `--json`."""
        for item in items:
            self.out.print(item)

    def note(self, text: str) -> None:
        """Something to know that is not the result."""
        if self._speaks:
            self.err.print(text, style="dim", markup=False, soft_wrap=not self.err.is_terminal)

    @contextlib.contextmanager
    def status(self, text: str) -> Iterator[Update]:
        """A spinner on a terminal, nothing in a file; yields what changes its text."""
        if not self.err.is_terminal or not self._speaks:
            yield lambda text: None
            return
        with self.err.status(text) as status:
            yield lambda text: status.update(text)


def write_json(content: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(plain(content), indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


def plain(content: Any) -> Any:
    """`content` in JSON's types; a number that is not finite becomes null, as JSON has none."""
    if isinstance(content, Mapping):
        return {str(key): plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if content is None or isinstance(content, str | int | float | bool):
        return content
    return str(content)


@contextlib.contextmanager
def _stdout_closed() -> Iterator[None]:
    """Send all that is written to standard output to standard error."""
    before = sys.stdout
    before.flush()
    sys.stdout = sys.stderr
    kept = None
    with contextlib.suppress(OSError):
        kept = os.dup(1)
        os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdout = before
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)

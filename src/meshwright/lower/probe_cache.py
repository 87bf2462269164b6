"""Rules that probing found, kept on disk: data only, and checked when read.

One JSON file for each op and signature, under `MESHWRIGHT_PROBE_CACHE`, or
`~/.cache/meshwright/probes`. `MESHWRIGHT_PROBE_CACHE=off` keeps nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any, cast

import torch

from meshwright.layout.types import Reduce
from meshwright.rules.pattern import Pattern, PatternError, Place, parse_pattern
from meshwright.rules.probe import signature
from meshwright.rules.registry import Call

VARIABLE = "MESHWRIGHT_PROBE_CACHE"
_VERSION = 1


class ProbeCache:
    """Files under `folder`. What can't be read or written is as if it were not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def from_environment(cls) -> ProbeCache | None:
        """The cache that the environment asks for; None where it is turned off."""
        given = os.environ.get(VARIABLE, "")
        if given.lower() in ("off", "0", "no", "none"):
            return None
        if given:
            return cls(Path(given))
        root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return cls(Path(root) / "meshwright" / "probes")

    @staticmethod
    def key(call: Call) -> str:
        """A hash of all that a probe depends on, the version of PyTorch included."""
        namespace, name, overload = call.op.target.split(".")
        op = getattr(getattr(getattr(torch.ops, namespace), name), overload)
        content = [_VERSION, call.op.target, str(op._schema), torch.__version__, signature(call)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]

    def read(self, call: Call) -> Pattern | None:
        """The pattern kept for a call; None when there is none, or none that makes sense."""
        try:
            content = json.loads(self._path(call).read_text(encoding="utf-8"))
            return _read(content) if content["op"] == call.op.target else None
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
            return None

    def write(self, call: Call, pattern: Pattern) -> None:
        """Keep a pattern; several processes may write at once, each whole."""
        path = self._path(call)
        text = json.dumps({"op": call.op.target, **_plain(pattern)}, indent=1)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=self.folder, suffix=".partial", delete=False, encoding="utf-8"
            ) as file:
                file.write(text)
            Path(file.name).replace(path)
        except OSError:
            return

    def _path(self, call: Call) -> Path:
        name = re.sub(r"\W+", "_", call.op.target)[:80]
        return self.folder / f"{name}-{self.key(call)}.json"


def _plain(pattern: Pattern) -> dict[str, Any]:
    return {
        "operands": pattern.operands,
        "results": pattern.results,
        "combine": dict(pattern.combine),
        "fixed": sorted(pattern.fixed),
        "sizes": [[list(place), name] for place, name in pattern.sizes],
        "unreduced": sorted(pattern.unreduced),
    }


def _read(content: dict[str, Any]) -> Pattern:
    """Raises ValueError (or what indexing raises) for a file that is no pattern."""

    def shown(dims: Any) -> str:
        if dims is None:
            return "_"
        cells = ["(" + " ".join(map(str, dim)) + ")" if dim else "." for dim in dims]
        return f"[{','.join(cells)}]"

    text = (
        ",".join(shown(dims) for dims in content["operands"])
        + "->"
        + ",".join(shown(dims) for dims in content["results"])
    )
    sizes: list[tuple[Place, str]] = []
    for (position, item), name in content["sizes"]:
        if not isinstance(position, int) or not (item is None or isinstance(item, int)):
            raise PatternError("a place is no number")
        sizes.append(((position, item), str(name)))
    combine = cast("dict[str, Reduce]", {str(k): str(v) for k, v in content["combine"].items()})
    return parse_pattern(
        text,
        combine=combine,
        fixed=[str(name) for name in content["fixed"]],
        sizes=tuple(sizes),
        unreduced=frozenset((int(result), str(name)) for result, name in content["unreduced"]),
    )


__all__ = ["VARIABLE", "ProbeCache"]

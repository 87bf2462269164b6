"""The design's import rules: which part may know which, and who may use PyTorch.

A part is a folder of `src/meshwright`, or a module that lies directly in it.
`RULES` has one entry for each; a new folder without one fails here. Imports
count wherever they are written: in a function, under `if TYPE_CHECKING`, or as
a string given to `import_module`. So do uses such as `torch.distributed.send`
after a plain `import torch`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "meshwright"


@dataclass(frozen=True)
class Rule:
    """What one part may import, beside itself, `ALWAYS` and packages other than PyTorch."""

    parts: frozenset[str] = frozenset()
    torch: bool = False
    distributed: bool = False  # torch.distributed
    private: bool = False  # names of PyTorch with a leading underscore

    def __str__(self) -> str:
        torch = {
            "torch": self.torch,
            "torch.distributed": self.distributed,
            "PyTorch's private names": self.private,
        }
        may = [*sorted(self.parts | ALWAYS), *(name for name, ok in torch.items() if ok)]
        never = [name for name, ok in torch.items() if not ok]
        return f"may import {', '.join(may)}" + (f"; not {', '.join(never)}" if never else "")


def rule(
    *parts: str, torch: bool = False, distributed: bool = False, private: bool = False
) -> Rule:
    return Rule(frozenset(parts), torch, distributed, private)


ALWAYS = frozenset({"errors", "_version", "collecting", "quiet"})
DATA = ("program", "cluster", "plan")
PLANNING = (*DATA, "rules", "layout", "cost", "simulate", "search")
TORCH = ("task", "torch_private", "draws", "own_ops", "as_is")
STAGES = (*PLANNING, *TORCH, "capture", "lower", "runtime", "checkpoint", "report", "zoo")

RULES: dict[str, Rule] = {
    # Pure data.
    "_version": rule(),
    "collecting": rule(),
    "quiet": rule(),
    "errors": rule(),
    "program": rule(),
    "cluster": rule(),
    "plan": rule("program", "cluster"),  # a plan is checked against both
    # Planning: on a laptop, and without PyTorch.
    "rules": rule(*PLANNING),
    "layout": rule(*PLANNING),
    "cost": rule(*PLANNING),
    "simulate": rule(*PLANNING),
    "search": rule(*PLANNING),
    # From and to PyTorch.
    "torch_private": rule(torch=True, private=True),
    "task": rule(torch=True),
    "draws": rule(torch=True),
    "own_ops": rule(torch=True),
    "as_is": rule("torch_private", torch=True),  # a mark on users' modules
    "zoo": rule(*TORCH, torch=True),
    "capture": rule("program", *TORCH, torch=True),
    "lower": rule(*PLANNING, *TORCH, torch=True, distributed=True),
    "checkpoint": rule(*DATA, "layout", *TORCH, torch=True, distributed=True),
    "runtime": rule(*PLANNING, *TORCH, "lower", "checkpoint", torch=True, distributed=True),
    # For people.
    "report": rule(*DATA, "simulate"),
    "outline": rule(*PLANNING, "lower", torch=True),
    "model": rule(*PLANNING, *TORCH, "capture", "lower", "runtime", "outline", torch=True),
    "stepping": rule(*PLANNING, *TORCH, "capture", "lower", "runtime", "model", torch=True),
    "planner": rule(
        *PLANNING, *TORCH, "capture", "lower", "runtime", "model", "stepping", torch=True
    ),
    "api": rule(*STAGES, "model", "planner", "stepping", torch=True),
    # Commands parse, call the api and print; they also start processes, name models of
    # the zoo and write pages and timelines, but touch no stage between capture and lowering.
    "cli": rule(*DATA, "api", "__init__", "report", "runtime", "simulate", "task", "zoo"),
    "__init__": rule(
        *DATA, "api", "as_is", "task", "runtime"
    ),  # where the public names are defined
    "__main__": rule("cli"),
}


@dataclass(frozen=True)
class Use:
    line: int
    name: str  # dotted and absolute, such as "torch.distributed" or "meshwright.plan.types"


def uses(source: str, module: str) -> Iterator[Use]:
    """Every import in the source of `module`, and every dotted use of what came from PyTorch."""
    tree = ast.parse(source)
    bound: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Use(node.lineno, alias.name)
                bound[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            origin = _origin(node, module)
            for alias in node.names:
                name = origin if alias.name == "*" else f"{origin}.{alias.name}"
                yield Use(node.lineno, name)
                bound[alias.asname or alias.name] = name
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield Use(node.lineno, first.value)
    for node in ast.walk(tree):
        name = _dotted(node, bound)
        if name and name.startswith("torch."):
            yield Use(node.lineno, name)


def _origin(node: ast.ImportFrom, module: str) -> str:
    if not node.level:
        return node.module or ""
    package = module.split(".")[: -node.level]
    return ".".join([*package, *([node.module] if node.module else [])])


def _called(node: ast.Call) -> str | None:
    function = node.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else None


def _dotted(node: ast.AST, bound: Mapping[str, str]) -> str | None:
    """`F.linear` as "torch.nn.functional.linear", where F was imported so; else None."""
    if not isinstance(node, ast.Attribute):
        return None
    names = [node.attr]
    inner = node.value
    while isinstance(inner, ast.Attribute):
        names.append(inner.attr)
        inner = inner.value
    if not isinstance(inner, ast.Name) or inner.id not in bound:
        return None
    return ".".join([bound[inner.id], *reversed(names)])


def refused(name: str, part: str, allowed: Rule, parts: frozenset[str]) -> str | None:
    """What is wrong with `part` using `name`, in short; None where nothing is."""
    top, *rest = name.split(".")
    if top == "torch":
        if not allowed.torch:
            return "torch"
        if rest and rest[0] == "distributed" and not allowed.distributed:
            return "torch.distributed"
        # torch.ops holds the names of operators, and ATen's own begin with underscores.
        private = any(n.startswith("_") and not n.endswith("__") for n in rest)
        if private and rest[0] != "ops" and not allowed.private:
            return name
        return None
    if top != "meshwright":
        return None
    other = rest[0] if rest and rest[0] in parts else "__init__"
    return None if other in allowed.parts | ALWAYS | {part} else f"meshwright.{other}"


def violations(source: str, path: str, rules: Mapping[str, Rule] = RULES) -> list[str]:
    """One line for each violation in the file at `path`, relative to the package's folder."""
    part = path.removesuffix(".py").split("/")[0]
    allowed = rules[part]
    module = "meshwright." + path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    if path.endswith("/__init__.py") or path == "__init__.py":
        module += ".__init__"  # so that `from . import x` means the same as in its neighbours
    found = {
        (use.line, what): f"src/meshwright/{path}:{use.line}: imports {what}; {part} {allowed}"
        for use in uses(source, module)
        if (what := refused(use.name, part, allowed, frozenset(rules)))
    }
    return [found[key] for key in sorted(found)]


def parts_of(package: Path) -> set[str]:
    return {path.relative_to(package).parts[0].removesuffix(".py") for path in _files(package)}


def _files(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def test_every_part_has_a_rule():
    missing = parts_of(PACKAGE) - set(RULES)
    assert not missing, (
        f"{', '.join(sorted(missing))}: no entry in RULES of tests/test_imports.py. Say there what"
        " it may import; docs and CONTRIBUTING.md tell how the folders lie."
    )


def test_the_code_keeps_the_rules():
    found = [
        line
        for path in _files(PACKAGE)
        if (name := path.relative_to(PACKAGE).as_posix()).removesuffix(".py").split("/")[0] in RULES
        for line in violations(path.read_text(encoding="utf-8"), name)
    ]
    assert not found, "\n".join(["imports against the design's rules:", *found])


def test_a_part_without_pytorch_gets_none_through_another():
    for part, allowed in RULES.items():
        if allowed.torch or part in ("cli", "__init__", "__main__"):
            continue
        through = {other for other in allowed.parts if RULES[other].torch}
        assert not through, f"{part} must do without torch, but may import {sorted(through)}"


def test_only_the_api_sees_every_stage():
    everything = {part for part, allowed in RULES.items() if set(STAGES) <= allowed.parts}
    assert everything == {"api"}


@pytest.mark.parametrize(
    ("path", "source", "what"),
    [
        ("program/types.py", "import torch", "torch"),
        ("program/types.py", "from meshwright.plan.types import Plan", "meshwright.plan"),
        ("program/types.py", "from meshwright import cluster", "meshwright.cluster"),
        ("cluster/types.py", "from ..plan.types import Plan", "meshwright.plan"),
        ("cluster/__init__.py", "from ..plan import types", "meshwright.plan"),
        ("plan/types.py", "from meshwright.layout.types import Layout", "meshwright.layout"),
        ("plan/types.py", "import meshwright", "meshwright.__init__"),
        ("rules/matmul.py", "from torch import nn", "torch"),
        ("rules/matmul.py", "def f():\n    import torch.nn", "torch"),
        ("rules/matmul.py", "import importlib\nimportlib.import_module('torch')", "torch"),
        ("search/space.py", "from meshwright.lower.emit import emit", "meshwright.lower"),
        ("search/space.py", "from meshwright.task import Task", "meshwright.task"),
        ("cost/compute.py", "if TYPE_CHECKING:\n    import meshwright.api", "meshwright.api"),
        ("capture/trace.py", "import torch.distributed as dist", "torch.distributed"),
        ("capture/trace.py", "from torch import distributed", "torch.distributed"),
        ("capture/trace.py", "import torch\ntorch.distributed.barrier()", "torch.distributed"),
        ("runtime/launch.py", "from torch._ops import OpOverload", "torch._ops.OpOverload"),
        (
            "runtime/launch.py",
            "import torch.utils._pytree as tree",
            "torch.utils._pytree",
        ),
        ("runtime/launch.py", "from torch.utils import _pytree", "torch.utils._pytree"),
        ("runtime/launch.py", "import torch\ntorch._C.thing()", "torch._C"),
        ("runtime/launch.py", "from meshwright.capture import trace", "meshwright.capture"),
        ("report/page.py", "import torch", "torch"),
        ("cli/plan.py", "from meshwright.search.space import Space", "meshwright.search"),
        ("cli/plan.py", "import torch", "torch"),
        ("api.py", "import torch.distributed", "torch.distributed"),
        ("errors.py", "from meshwright.plan.types import Plan", "meshwright.plan"),
    ],
)
def test_a_violation_is_caught(path, source, what):
    found = violations(source, path)
    line = source.count("\n") + 1
    assert len(found) >= 1
    assert found[0].startswith(f"src/meshwright/{path}:{line}: imports {what}")
    assert "; " in found[0]
    assert " may import " in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("program/types.py", "from .refs import Ref\nfrom meshwright.program import types"),
        ("program/types.py", "import numpy\nfrom meshwright.errors import UsageError"),
        ("search/space.py", "from meshwright.simulate.step import simulate"),
        ("capture/trace.py", "import torch\ntorch.__version__\ntorch.Tensor.__add__"),
        ("lower/emit.py", "import torch\ntorch.ops.aten._softmax.default"),
        ("lower/emit.py", "from torch.distributed import nn"),
        ("torch_private.py", "import torch.utils._pytree as tree\nfrom torch import _C"),
        ("api.py", "from meshwright import capture, search\nimport torch"),
        ("cli/plan.py", "from meshwright import api"),
        ("__init__.py", "from .api import plan\nfrom ._version import __version__"),
    ],
)
def test_what_is_allowed_passes(path, source):
    assert violations(source, path) == []


def test_a_new_folder_is_noticed(tmp_path):
    (tmp_path / "transport").mkdir()
    (tmp_path / "transport" / "sockets.py").touch()
    (tmp_path / "errors.py").touch()
    assert parts_of(tmp_path) - set(RULES) == {"transport"}

"""What a reader of a plan has to know: ops that Meshwright does not know by itself, and
what was taken for granted where values decide."""

from __future__ import annotations

from pathlib import PurePath

from meshwright.layout.groups import Analysis
from meshwright.layout.lowered import LoweredProgram
from meshwright.plan.text import stem
from meshwright.program.types import Op

OPAQUE = "mesh.opaque.default"


def remarks(analysis: Analysis, lowered: LoweredProgram) -> tuple[str, ...]:
    """One line for each rule that was probed or registered, each op that runs whole on every
    device for want of a cut, and each module that runs as it is."""
    lines: dict[str, None] = {}
    whole: dict[str, dict[str, None]] = {}
    custom: dict[str, None] = {}
    for op in analysis.program.ops:
        rule = analysis.rules[op.name]
        if not rule.origin or op.target.startswith("mesh."):
            continue
        name = op.target.removesuffix(".default")
        if not op.target.startswith("aten."):  # ATen's ops are all in a family of costs
            custom[name] = None
        if any(factor.shardable for factor in rule.factors):
            lines[rule.origin if name in rule.origin else f"{name}: {rule.origin}"] = None
        else:
            whole.setdefault(name, {})[stem(op.source.module) or "the top module"] = None
    for name, modules in whole.items():
        lines[f"runs whole on every device: {name} in module {', '.join(modules)}"] = None
    if custom:
        lines[f"time counted as reading and writing their tensors: {', '.join(custom)}"] = None
    for op in lowered.forward.ops:
        if op.target == OPAQUE:
            lines[_opaque(op, lowered)] = None
    return (*lines, *_ragged(analysis))


def _ragged(analysis: Analysis) -> tuple[str, ...]:
    """What capture assumed of lengths, and lists of positions that no plan can cut."""
    lines: dict[str, None] = {}
    for item in analysis.program.assumptions:
        where = stem(item.source.module) or "the top module"
        line = f"{PurePath(item.source.file).name}:{item.source.line}"
        lines[f"taken for granted: {item.text} ({where}, {line})"] = None
    for name, why in analysis.lists.uncut().items():
        op = next(op for op in analysis.lists.ops[name] if name in op.results)
        where = stem(op.source.module) or "the top module"
        lines[
            f"positions that a mask selects stay whole on every device: {stem(why)} ({where})"
        ] = None
    return tuple(lines)


def _opaque(op: Op, lowered: LoweredProgram) -> str:
    result = next(name for name in op.results if name is not None)
    layout = lowered.layouts[result]
    cut = [axis for axis, size in lowered.mesh.axes if size > 1 and layout.split(axis)]
    rest = [axis for axis, size in lowered.mesh.axes if size > 1 and axis not in cut]
    how = [f"its batch cut over {', '.join(cut)}"] if cut else []
    how += [f"runs as it is on every device of {', '.join(rest)}"] if rest else ["runs as it is"]
    draws = "; its random draws are not those of one device" if "random" in op.args else ""
    return f"opaque: {stem(op.source.module) or 'the top module'}, {', '.join(how)}{draws}"

"""Short names for what a Program is, equal in every process and on every machine."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from meshwright.program.types import Argument, Input, Length, Program, Ref, Symbol


def fingerprint(program: Program) -> str:
    """SHA-256 (hex) of all that a Program computes; source files and lines don't count."""
    return _digest({
        "inputs": [_input(program, item) for item in program.inputs],
        "ops": [
            [
                op.name, op.target, op.phase, list(op.results), op.returns_tuple,
                [_plain(item) for item in op.args],
                [[key, _plain(item)] for key, item in sorted(op.kwargs, key=lambda kv: kv[0])],
            ]
            for op in program.ops
        ],
        "values": [
            [value.name, list(value.shape), value.dtype, value.storage]
            for _, value in sorted(program.values.items())
        ],
        "loss": program.loss,
        "gradients": sorted(program.gradients.items()),
        "buffer_updates": sorted(program.buffer_updates.items()),
    })  # fmt: skip


def parameters_fingerprint(program: Program) -> str:
    """SHA-256 (hex) of names, shapes, dtypes and ties of parameters and buffers, in any order."""
    state = [item for item in program.inputs if item.kind in ("parameter", "buffer")]
    return _digest(sorted(_input(program, item) for item in state))


def _input(program: Program, item: Input) -> list[Any]:
    value = program.values[item.value]
    return [
        item.kind, item.path, list(value.shape), value.dtype, item.trainable, sorted(item.aliases),
    ]  # fmt: skip


def _plain(argument: Argument) -> Any:
    """An argument as JSON in which no two different arguments look alike: True is not 1."""
    if isinstance(argument, Ref):
        return {"ref": argument.name}
    if isinstance(argument, Symbol):
        return {argument.kind: argument.text}
    if isinstance(argument, Length):
        return {"length": argument.value, "times": argument.times}
    if isinstance(argument, tuple):
        return [_plain(item) for item in argument]
    if isinstance(argument, (float, complex)):
        return {type(argument).__name__: repr(argument)}
    return argument


def _digest(content: Any) -> str:
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()

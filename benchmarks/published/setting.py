"""How the framework of a row runs it: the executor's properties and the optimizer's state."""

from __future__ import annotations

from dataclasses import fields, replace

from benchmarks.published.settle import PURE, Settled

from meshwright.simulate.executor import Executor


def setting_of(settled: Settled) -> Executor:
    framework = settled.framework
    changes = {"compiled": settled.compiled}
    known = {field.name for field in fields(Executor)}
    pure = settled.precision in PURE
    for name, value in {
        "master_weights": not pure,
        "gradient_dtype": "float32" if framework.fp32_gradients and not pure else None,
        "shard_group": settled.shard_group,
    }.items():
        if name in known:
            changes[name] = value
    return replace(framework.executor, **changes)


def optimizer_of(settled: Settled) -> str:
    return "adamw"

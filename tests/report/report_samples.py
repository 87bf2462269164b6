"""Reports to render: a full one, and one whose every name tries to break out of the page."""

from __future__ import annotations

import math

from meshwright.plan.types import (
    Alternative,
    Collective,
    Decision,
    ParameterPlan,
    Plan,
    Prediction,
)
from meshwright.report.data import Check, Measured, MemoryPoint, ReportData

MiB = 1 << 20


def sample(nasty: str = "") -> ReportData:
    """`nasty` is appended to every text that a user or a model can choose."""
    memory = {
        "parameters" + nasty: 43 * MiB,
        "gradients": 21 * MiB,
        "activations": 96 * MiB,
    }
    peak = sum(memory.values())
    planned = (
        Collective(kind="all_reduce", axis="tensor" + nasty, count=24, bytes=18 * MiB),
        Collective(kind="all_gather", axis="data", count=13, bytes=43 * MiB),
    )
    chosen = {
        "step_time_s": 0.412,
        "peak_memory_bytes": peak,
        "tokens_per_s": 4971.0,
        "mfu": 0.31,
        "collectives": planned,
        "compute_s": 0.351,
        "communication_s": 0.061,
        "memory": memory,
    }
    mesh = {"data": 2, "tensor" + nasty: 2}
    plan = Plan(
        meshwright_version="0.1.0",
        model="gpt" + nasty,
        program="8f2c19ab",
        parameters_fingerprint="77",
        cluster="local:4" + nasty,
        strategy="auto",
        mesh=mesh,
        microbatches=2,
        global_batch=16,
        decisions=(
            Decision(axis="data", value="batch.0" + nasty, dim=0, why="independent" + nasty),
            Decision(axis="tensor" + nasty, value="blocks.0.qkv", dim=0, outer=3, extent=384),
        ),
        parameters={
            f"blocks.{layer}.qkv.weight{nasty}": ParameterPlan(
                residency="use", storage_axes=("data",), storage_dim=0
            )
            for layer in range(6)
        },
        predicted=Prediction(**chosen),
        why="Heads divide evenly" + nasty + ".",
        alternatives=(
            Alternative(strategy="zero3", mesh={"data": 4}, step_time_s=0.5, peak_memory_bytes=MiB),
            Alternative(strategy="data=2,tensor=2", mesh=mesh, microbatches=2, **chosen),
            Alternative(
                strategy="data" + nasty,
                mesh={"data": 4},
                step_time_s=0.39,
                peak_memory_bytes=900 * MiB,
                fits=False,
                note="needs 412 MiB more" + nasty,
            ),
        ),
    )
    losses = tuple((step, 2 + 3 * math.exp(-step / 25)) for step in range(40))
    curve = tuple(
        MemoryPoint(
            label=f"op {index}{nasty}",
            bytes=(43 + 8 * min(index, 12 - index)) * MiB,
            parts={
                "parameters" + nasty: 43 * MiB,
                "activations": 8 * min(index, 12 - index) * MiB,
            },
            at_s=index / 12 * 0.412,
        )
        for index in range(13)
    )
    return ReportData(
        title="GPT on four processes" + nasty,
        plan=plan,
        losses=losses,
        reference_losses=tuple((step, loss * (1 + 3e-7)) for step, loss in losses),
        measured=Measured(
            step_time_s=0.431,
            peak_memory_bytes=int(peak * 1.13),
            tokens_per_s=4751,
            collectives=(
                planned[0],
                Collective(kind="all_gather", axis="data", count=14, bytes=44 * MiB),
            ),
        ),
        memory_curve=curve,
        measured_memory_curve=tuple(
            MemoryPoint(label="sample", bytes=point.bytes + MiB, at_s=point.at_s) for point in curve
        ),
        memory_limit_bytes=256 * MiB,
        checks=(
            Check(name="Same numbers" + nasty, ok=True, detail="3e-07" + nasty),
            Check(name="Collectives", ok=False, detail="14 executed, 13 planned"),
        ),
    )

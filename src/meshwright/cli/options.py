"""Arguments that several commands share, said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_MODEL, _PLANNING, _OUTPUT = "The model", "Planning", "Output"
_CONSTRAINTS = "What the plan has to obey"

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="zoo:NAME, hf:NAME, hf:CONFIG, FILE.py:FACTORY or MODULE:FACTORY.",
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option", "-o", metavar="KEY=VALUE", help="An option of the model; repeatable.",
        rich_help_panel=_MODEL,
    ),
]  # fmt: skip
GlobalBatch = Annotated[
    int | None,
    typer.Option(min=1, help="Examples in a step; an option of the model.", rich_help_panel=_MODEL),
]
SeqLen = Annotated[
    int | None,
    typer.Option(
        min=1, help="Tokens of a sequence; an option of the model.", rich_help_panel=_MODEL
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Of parameters, data and random ops.")]
LearningRate = Annotated[
    float | None, typer.Option(help="Of the optimizer.", show_default="by optimizer")
]
Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="CLUSTER", show_default="local:4", rich_help_panel=_PLANNING,
        help="local:N, HOSTSxDEVICES:KIND as in 16x8:h100-sxm, or a JSON file.",
    ),
]  # fmt: skip
Strategy = Annotated[
    str | None,
    typer.Option(
        metavar="STRATEGY", show_default="auto", rich_help_panel=_PLANNING,
        help="auto, or parts as in data=2,tensor=2,zero=1.",
    ),
]  # fmt: skip
Mesh = Annotated[
    str | None,
    typer.Option(
        metavar="AXIS=N,…", rich_help_panel=_CONSTRAINTS,
        help="Axes of the mesh, outermost first, as in data=2,tensor=8.",
    ),
]  # fmt: skip
Layout = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=HOW", rich_help_panel=_CONSTRAINTS,
        help="How what NAME matches lies: 0:tensor, whole or whole:AXIS; repeatable.",
    ),
]  # fmt: skip
Forbid = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PART", rich_help_panel=_CONSTRAINTS,
        help="A part of strategies, as in tensor or zero=3; repeatable.",
    ),
]  # fmt: skip
Pin = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODULE=HOW", rich_help_panel=_CONSTRAINTS,
        help="A module's parameters: replicated, step, microbatch or use; repeatable.",
    ),
]  # fmt: skip
Microbatches = Annotated[
    int | None,
    typer.Option(min=1, help="Cut the global batch into so many.", rich_help_panel=_PLANNING),
]
ClipNorm = Annotated[
    float | None,
    typer.Option(help="Bound on the gradients' global norm.", rich_help_panel=_PLANNING),
]
Optimizer = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", show_default="adamw", rich_help_panel=_PLANNING,
        help="sgd, sgd-momentum, adam, adamw, adagrad or rmsprop.",
    ),
]  # fmt: skip
BudgetSeconds = Annotated[
    float | None,
    typer.Option(
        "--budget-seconds", min=0.0, show_default="20", rich_help_panel=_PLANNING,
        help="Longest time to search; it says whether it ended before.",
    ),
]  # fmt: skip
SearchSeed = Annotated[
    int,
    typer.Option("--seed", min=0, help="Of the search's draws.", rich_help_panel=_PLANNING),
]
Goal = Annotated[
    str | None,
    typer.Option(
        metavar="GOAL", show_default="time", rich_help_panel=_PLANNING,
        help="What is to be least: time, devices, memory or cost (money for a step).",
    ),
]  # fmt: skip
MaxStepTime = Annotated[
    float | None,
    typer.Option(
        "--max-step-time", metavar="SECONDS", rich_help_panel=_PLANNING,
        help="Plans whose step takes longer do not count.",
    ),
]  # fmt: skip
Rng = Annotated[
    str | None,
    typer.Option(
        metavar="KIND", show_default="exact", rich_help_panel=_PLANNING,
        help="Random ops: exact (alike under every plan) or fast (each device's own).",
    ),
]  # fmt: skip
Profile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", rich_help_panel=_PLANNING,
        help="What `calibrate` measured here, for a local cluster.",
    ),
]  # fmt: skip
NoCalibrate = Annotated[
    bool,
    typer.Option(
        "--no-calibrate", rich_help_panel=_PLANNING,
        help="Predict from the built-in profile of a CPU.",
    ),
]  # fmt: skip
PlanFile = Annotated[
    Path | None,
    typer.Option(
        "--plan", metavar="FILE", rich_help_panel=_PLANNING, help="Use this plan, search for none."
    ),
]
RunDir = Annotated[
    Path | None,
    typer.Option(
        # torchrun takes --run for its own --run-path, even behind its script's name.
        "--run",
        "--run-dir",
        metavar="DIR",
        show_default="runs/MODEL-TIME",
        help="What the run writes goes here.",
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object and nothing else.", rich_help_panel=_OUTPUT),
]
Debug = Annotated[
    bool, typer.Option("--debug", help="Show tracebacks of errors.", rich_help_panel=_OUTPUT)
]


def constraints(
    mesh: str | None,
    layout: list[str] | None,
    forbid: list[str] | None,
    pin: list[str] | None,
) -> tuple[str, ...]:
    """The four options as the texts that `meshwright.plan(constraints=…)` takes."""
    return (
        *((f"mesh {mesh}",) if mesh is not None else ()),
        *(f"layout {text}" for text in layout or ()),
        *(f"forbid {text}" for text in forbid or ()),
        *(f"pin {text}" for text in pin or ()),
    )

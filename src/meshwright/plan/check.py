"""Is this plan for this model, this batch and this cluster?"""

from __future__ import annotations

import difflib

from meshwright.errors import PlanError
from meshwright.plan.types import Plan
from meshwright.program.fingerprint import parameters_fingerprint
from meshwright.program.types import Program


def check_plan(plan: Plan, program: Program) -> None:
    """Raises PlanError, naming the first parameter that differs, when it is for another model."""
    mine = {item.path for item in program.inputs_of("parameter")}
    planned = set(plan.parameters)
    missing, extra = sorted(planned - mine), sorted(mine - planned)
    if plan.parameters_fingerprint == parameters_fingerprint(program):
        if not missing:
            return
        close = difflib.get_close_matches(missing[0], sorted(mine), 1)
        raise PlanError(
            f"The plan says how '{missing[0]}' is stored, which this model does not have.",
            (f"Did you mean '{close[0]}'? " if close else "") + "Correct the name in the plan.",
        )
    if missing:
        difference = f"it plans for '{missing[0]}', which this model does not have"
    elif extra:
        difference = f"it knows nothing of this model's '{extra[0]}'"
    else:
        difference = "parameters have the same names but other shapes, dtypes or ties"
    raise PlanError(
        f"The plan was made for another model ({plan.model}): {difference}.",
        "Make a plan for this model with `meshwright plan`, or give the model's options "
        "as they were when the plan was made.",
    )


def check_devices(plan: Plan, devices: int) -> None:
    wanted = 1
    for size in plan.mesh.values():
        wanted *= size
    if wanted != devices:
        raise PlanError(
            f"The plan is for {wanted} device{'s' if wanted != 1 else ''} "
            f"({mesh_text(plan)}), but there {'is' if devices == 1 else 'are'} {devices}.",
            f"Start {wanted} processes, or plan for a cluster of {devices}.",
        )


def check_executable(plan: Plan) -> None:
    """Raises PlanError for a plan with parts that are simulated so far, but not run."""
    parts = []
    if plan.pipeline is not None and plan.pipeline.stages > 1:
        parts.append(f"{plan.pipeline.stages} pipeline stages ({plan.pipeline.schedule})")
    if plan.recompute != "none":
        parts.append(f"{plan.recompute} recomputation")
    if parts:
        asked = " and ".join(parts)
        raise PlanError(
            f"The plan asks for {asked}, which this version plans and simulates but can't run yet.",
            "Look at it with `meshwright plan` and `meshwright simulate`; to run, plan without "
            "stage= and recompute=.",
        )


def mesh_text(plan: Plan) -> str:
    return " x ".join(f"{name} {size}" for name, size in plan.mesh.items()) or "one device"

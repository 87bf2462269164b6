"""What a plan says of itself: costs by axis, second bests, what was asked for, differences."""

from __future__ import annotations

import pytest

from meshwright.plan.diff import diff_plans, grouped
from meshwright.plan.explain import (
    choice_text,
    choices_about,
    decisions,
    lies,
    spent,
    spent_by_axis,
    spent_in,
    standing,
)
from meshwright.plan.types import (
    Choice,
    CollectiveOrigin,
    Decision,
    ParameterPlan,
    Plan,
    Prediction,
)


def origin(module: str, axis: str, seconds: float, count: int = 2) -> CollectiveOrigin:
    return CollectiveOrigin(
        part="forward", kind="all_reduce", axis=axis, module=module, count=count, bytes=1024,
        seconds=seconds,
    )  # fmt: skip


PLAN = Plan(
    meshwright_version="0", model="m", program="p", parameters_fingerprint="f",
    cluster="1x4:h100-sxm", strategy="data=2,tensor=2", mesh={"data": 2, "tensor": 2},
    global_batch=8,
    decisions=(
        Decision(axis="tensor", value="blocks.0.fc.weight", dim=0, why="asked for", fixed="cut"),
        Decision(axis="tensor", value="head.weight", dim=0, why="asked for", fixed="whole"),
    ),
    parameters={"blocks.0.fc.weight": ParameterPlan(), "head.weight": ParameterPlan()},
    predicted=Prediction(step_time_s=2.0, peak_memory_bytes=1 << 30),
    origins=(
        origin("blocks.*.fc", "tensor", 0.2), origin("", "data", 0.5), origin("head", "tensor", 0.1)
    ),
    choices=(
        Choice(subject="mesh", chosen="data=2,tensor=2", second="data=4", slower_s=0.25,
               more_bytes=-(1 << 20)),
        Choice(subject="residency of blocks.*.fc.weight", chosen="always", second="use over data",
               slower_s=None, more_bytes=1 << 30),
    ),
    constraints=("layout head.weight=whole",),
    lower_bound_s=1.6, gap=0.25, stopped="budget", evaluated=12,
)  # fmt: skip


def test_seconds_of_collectives_by_axis_and_the_costliest_first() -> None:
    assert spent_by_axis(PLAN) == pytest.approx({"data": 0.5, "tensor": 0.3})
    assert [row.module for row in spent(PLAN)] == ["top module", "blocks.*.fc", "head"]
    assert [row.module for row in spent_in(PLAN, "blocks.0.fc.weight")] == ["blocks.*.fc"]


def test_second_bests_of_one_value() -> None:
    found = choices_about(PLAN, "blocks.0.fc.weight")
    assert [item.second for item in found] == ["use over data"]
    assert choice_text(found[0]) == "does not fit, +1.00 GiB"
    assert choice_text(PLAN.choices[0]) == "+250.0 ms, -1.00 MiB"
    assert choices_about(PLAN, "head.weight") == ()


def test_how_the_search_ended() -> None:
    said = dict(standing(PLAN))
    assert said["search ended"] == "its time was over; 12 candidates costed"
    assert said["no plan takes less than"] == "1.60 s a step, this one 25% slower"
    assert said["asked for"] == "layout head.weight=whole"


def test_what_was_asked_to_stay_whole_is_said_to() -> None:
    assert [item.cut for item in decisions(PLAN)] == ["dim 0", "stays whole"]
    assert lies(PLAN, "head.weight").cuts == (("tensor", 0, "stays whole"),)
    assert "tensor" in lies(PLAN, "head.weight").replicated_over
    assert "stays whole" in str(PLAN)
    assert "layout head.weight=whole" in str(PLAN)


def test_plans_differ_in_constraints_choices_and_collectives() -> None:
    changed = PLAN.model_copy(
        update={
            "constraints": (),
            "choices": PLAN.choices[:1],
            "origins": (PLAN.origins[0].model_copy(update={"count": 7}), *PLAN.origins[1:]),
            "evaluated": 99,
        }
    )
    found = {item.field: (item.first, item.second) for item in diff_plans(PLAN, changed)}
    assert found == {
        "constraints.layout head.weight=whole": ("asked for", "-"),
        "origins.forward.all_reduce.tensor.blocks.*.fc": ("2 of 1.00 KiB", "7 of 1.00 KiB"),
        "choices.residency of blocks.*.fc.weight": (
            "always, next best use over data (does not fit, +1.00 GiB)", "-",
        ),
    }  # fmt: skip
    assert len(grouped(diff_plans(PLAN, changed))) == 3
    assert diff_plans(PLAN, PLAN) == ()

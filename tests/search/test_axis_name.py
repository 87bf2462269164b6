"""An axis of a plan that decides op by op is called by what it cuts."""

from __future__ import annotations

import pytest
from known_models import transformer, zoo

from meshwright.api import Model
from meshwright.cluster.parse import parse_cluster
from meshwright.cost.table import table_for
from meshwright.layout.assignment import assign
from meshwright.search.axis_name import axis_name, renamed
from meshwright.search.closest import candidate_of
from meshwright.search.estimate import Estimator
from meshwright.search.space import Space
from meshwright.search.strategy import parse_strategy

TINY = {"layers": 1, "width": 32, "heads": 4, "hidden": 64, "vocab": 64, "seq_len": 16}


def model_for(axis: str) -> Model:
    known = {
        "spatial": ("unet3d", {"size": "tiny"}), "edge": ("gns", {"size": "tiny"}),
        "expert": ("moe", {"size": "tiny"}),
    }  # fmt: skip
    if axis in known:
        name, options = known[axis]
        return zoo(name, **options)
    return transformer(**TINY, batch=1 if axis == "context" else 4)


@pytest.mark.parametrize("axis", ["data", "context", "spatial", "edge", "expert", "tensor"])
def test_the_axis_is_called_as_the_strategy_that_cuts_the_same(axis: str) -> None:
    model = model_for(axis)
    analysis = model.whole(1)
    space = Space(parse_strategy("auto"), 4, model.global_batch, lambda count: model.whole(count))
    estimator = Estimator(space, table_for(parse_cluster("1x4:h100-sxm")), "adamw")
    made = candidate_of(axis, analysis, 4)
    other = renamed(made, axis, "stage2")
    assert other.mesh.names == ("stage2",)
    assert {item.axis for item in other.decisions} == {"stage2"}
    assert renamed(other, "stage2", axis) == made
    assignment = assign(analysis, other.mesh, other.decisions, other.parameters)
    assert axis_name(space, estimator, assignment, "stage2") == axis


def test_what_cuts_nothing_keeps_its_name() -> None:
    model = model_for("data")
    analysis = model.whole(1)
    space = Space(parse_strategy("auto"), 4, model.global_batch, lambda count: model.whole(count))
    estimator = Estimator(space, table_for(parse_cluster("1x4:h100-sxm")), "adamw")
    made = candidate_of("data", analysis, 4)
    assignment = assign(analysis, made.mesh, (), made.parameters)
    assert axis_name(space, estimator, assignment, "data") == "data"

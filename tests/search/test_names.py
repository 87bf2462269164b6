"""Named strategies in a search: what bounds rule out is no better, the rest is costed."""

from __future__ import annotations

from functools import cache

import pytest

from meshwright.api import Model
from meshwright.cluster.parse import parse_cluster
from meshwright.cluster.types import Cluster
from meshwright.cost.table import table_for
from meshwright.errors import MeshwrightError
from meshwright.plan.types import BUCKET_BYTES
from meshwright.search import catalogue, moves
from meshwright.search.costing import BudgetOver, Costing, computed_alike
from meshwright.search.estimate import Estimator
from meshwright.search.goals import TIME
from meshwright.search.names import Names
from meshwright.search.space import Point, Space
from meshwright.search.strategy import parse_strategy
from meshwright.stepping import Stepping
from meshwright.zoo.gpt import gpt_task
from meshwright.zoo.mlp import mlp_task

CLUSTER = "2x4:h100-sxm"


@cache
def model(name: str) -> Model:
    if name == "gpt":
        return Model(gpt_task(layers=1, width=64, heads=4, vocab=50, seq_len=16, global_batch=16))
    return Model(mlp_task(features=12, hidden=64, layers=1, classes=5, global_batch=32))


def costing_of(name: str, cluster: Cluster) -> Costing:
    known = model(name)
    space = Space(parse_strategy("auto"), cluster.size, known.global_batch, known.whole)
    estimator = Estimator(space, table_for(cluster), "adamw")
    stepping = Stepping(known, cluster, False, "adamw", BUCKET_BYTES)
    return Costing(
        space, lambda made: stepping.costs(made, True), cluster.memory_bytes, TIME, estimator,
        float("inf"),
    )  # fmt: skip


def points(costing: Costing) -> list[Point]:
    texts = catalogue.texts(costing.space, 4)
    return [catalogue.point_of(parse_strategy(text), costing.space) for text in texts]


@pytest.mark.parametrize("name", ["mlp", "gpt"])
def test_storing_parameters_otherwise_takes_no_less_than_its_bound(name: str) -> None:
    costing = costing_of(name, parse_cluster(CLUSTER))
    families: dict[Point, list[Point]] = {}
    for point in points(costing):
        families.setdefault(computed_alike(point), []).append(point)
    bounded = 0
    for alike in families.values():
        for point in sorted(alike, key=lambda item: item.zero):
            floor_s = costing._sibling_s(point)
            found = costing.cost(point)
            if found is not None and floor_s:
                bounded += 1
                assert floor_s <= found.result.prediction.step_time_s, costing.space.name(point)
    assert bounded >= 6


@pytest.mark.parametrize("name", ["mlp", "gpt"])
def test_no_named_strategy_is_better_than_what_was_costed(name: str) -> None:
    """Those that a bound rules out are costed here."""
    cluster = parse_cluster(CLUSTER)
    costing = costing_of(name, cluster)
    names = Names(costing, cluster, moves.meshes(costing.space, cluster))
    names.likely()
    names.rest()
    assert costing.best is not None
    best_s = costing.best.result.prediction.step_time_s
    left_out = [point for point in points(costing) if not costing.known(point)]
    assert left_out
    for point in left_out:
        try:
            made = costing.space.candidate(point)
        except MeshwrightError:
            continue
        said = costing.evaluate(made)
        step_s = said.prediction.step_time_s if hasattr(said, "prediction") else said.step_time_s
        assert best_s <= step_s * (1 + 1e-4), made.name


def test_a_search_says_which_named_strategies_it_had_no_time_for() -> None:
    cluster = parse_cluster(CLUSTER)
    costing = costing_of("gpt", cluster)
    costing.deadline = 0.0
    names = Names(costing, cluster, ())
    with pytest.raises(BudgetOver):
        names.likely()
    names.unknown()
    assert len(costing.costed) == 1
    late = [why for why in costing.left_out.values() if "time was over" in why]
    assert len(late) >= 3
    assert len(costing.uncosted) == len(late)

"""Guesses of points that no move may be left out for wrongly: near what is simulated."""

from __future__ import annotations

import pytest
from known_models import zoo

from meshwright.cluster.parse import parse_cluster
from meshwright.cost.table import table_for
from meshwright.layout.assignment import assign
from meshwright.lower.lower import lower
from meshwright.plan.types import BUCKET_BYTES
from meshwright.search import axis_expert
from meshwright.search.catalogue import point_of
from meshwright.search.estimate import Estimator
from meshwright.search.space import Space
from meshwright.search.strategy import parse_strategy
from meshwright.simulate.step import simulate

EXPERTS = {
    "size": "full", "layers": "2", "global_batch": "128", "seq_len": "512", "experts": "64",
    "width": "1024", "heads": "16", "kv_heads": "16", "hidden": "4096",
}  # fmt: skip
TABLES = {"size": "full", "rows": "16000000", "tables": "8"}


@pytest.mark.parametrize(
    ("name", "options", "where", "texts"),
    [
        ("moe", EXPERTS, "8x8:h100-sxm", ("expert", "data=4,expert=16", "data=8,expert=8,zero=1")),
        ("dlrm", TABLES, "2x8:h100-sxm", ("tables", "zero=1,tables", "replica=2,data=8,tables")),
    ],
)
def test_guesses_of_what_is_exchanged_are_near(
    name: str, options: dict[str, str], where: str, texts: tuple[str, ...]
) -> None:
    model, cluster = zoo(name, **options), parse_cluster(where)
    analysis = model.whole(1)
    space = Space(
        parse_strategy("auto"), cluster.size, model.global_batch, lambda count: model.whole(count)
    )
    estimator = Estimator(space, table_for(cluster), "adamw")
    for text in texts:
        point = point_of(parse_strategy(text), space)
        made = space.candidate(point)
        assignment = assign(analysis, made.mesh, made.decisions, made.parameters)
        lowered = lower(analysis, assignment, made.mesh.coordinate(0), BUCKET_BYTES)
        said = simulate(lowered, cluster, microbatches=1, optimizer="adamw", memory_curve=False)
        guess = estimator(point)
        assert 0.75 <= said.step_time_s / guess.seconds <= 1.25, text
        assert 0.75 <= said.peak_memory_bytes / guess.bytes <= 1.25, text
        assert guess.floor_s <= said.step_time_s * (1 + 1e-9), text


def test_what_experts_take_travels_to_them_and_back_once() -> None:
    """Each way for each of two layers, and the same in the backward."""
    model = zoo("moe", size="tiny")
    space = Space(parse_strategy("auto"), 4, model.global_batch, lambda count: model.whole(count))
    estimator = Estimator(space, table_for(parse_cluster("1x4:h100-sxm")), "adamw")
    groups = [group for group in estimator.groups("expert") if group.ends == (*group.cuts,)]
    layers = {path.split(".")[1] for path in model.whole(1).program.gradients if "blocks" in path}
    assert len(axis_expert.travelling(space.first, groups)) == 4 * len(layers)

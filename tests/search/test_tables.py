"""Tables that are looked up in, cut over axes that have the batch."""

from __future__ import annotations

from functools import cache, partial

import pytest
import torch
import torch.nn.functional as F
from known_models import zoo
from torch import Tensor, nn

from meshwright.api import Model, plan, verify
from meshwright.cluster.parse import parse_cluster
from meshwright.errors import StrategyError
from meshwright.plan.types import Decision, Plan
from meshwright.search import tables
from meshwright.search.moves import table_options
from meshwright.search.space import Point, Space
from meshwright.search.strategy import parse_strategy
from meshwright.task import Task

BATCH = 16


class Lookups(nn.Module):
    """Four ways to look up, each with a table of its own; of 10 rows, so that devices differ."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(10, 8, mode=mode)
        self.padded = nn.Embedding(10, 8, padding_idx=3)
        self.picked = nn.Parameter(torch.randn(10, 8))
        self.twice = nn.Embedding(10, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.bag(ids) + self.padded(ids).sum(dim=1) + self.picked[ids[:, 0]]
        x = x + self.twice(ids[:, 1]) * self.twice(ids[:, 2])
        out: Tensor = self.head(F.gelu(x)).squeeze(1)
        return out


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


@cache
def lookups(mode: str) -> Model:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 10, (BATCH, 3), generator=generator)  # many of them repeated
    return Model(Task(partial(Lookups, mode), _loss, (ids, torch.rand(BATCH)), "lookups"))


def counts(made: Plan, axis: str) -> dict[str, int]:
    found = made.predicted.before_merging or made.predicted.collectives
    return {item.kind: item.count for item in found if item.axis == axis}


def cut(model: Model, usual: Plan, dims: dict[str, int], axis: str = "data") -> Plan:
    """A plan of data parallelism with tables cut along `dims`."""
    analysis = model.whole(1)
    extra = [tables.decision(analysis, path, axis, dim, 4) for path, dim in dims.items()]
    return usual.model_copy(update={"decisions": (*usual.decisions, *extra)})


PATHS = ("bag.weight", "padded.weight", "picked", "twice.weight")


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("dim", [0, 1], ids=["rows", "columns"])
def test_tables_cut_beside_the_batch_are_equal_to_one_device(mode: str, dim: int) -> None:
    model = lookups(mode)
    assert set(tables.tables(model.whole(1))) == set(PATHS)
    usual = plan(model.task, "local:4", "data", model=model)
    asked = cut(model, usual, dict.fromkeys(PATHS, dim))
    assert verify(model.task, "local:4", plan=asked, model=model, steps=3).equal


@pytest.mark.parametrize("strategy", ["tables", "zero=3,tables", "replica=2,data=2,tables",
                                      "data=2,tensor=2,tables"])  # fmt: skip
@pytest.mark.parametrize("lookup", ["bag", "embedding"])
def test_the_named_strategy_is_equal_to_one_device(strategy: str, lookup: str) -> None:
    model = zoo("dlrm", size="tiny", lookup=lookup)
    assert verify(model.task, "local:4", strategy, model=model, steps=2).equal


def test_what_is_exchanged_is_counted_and_no_gradient_of_a_cut_table_is_reduced() -> None:
    """By columns one all_to_all for each table, and one for all of them back."""
    model = zoo("dlrm", size="full", rows="16000000", tables="8")
    made = plan(model.task, "1x8:h100-sxm", "tables", model=model)
    wide = [path for path, item in made.parameters.items() if item.cuts]
    assert len(wide) == sum(16_000_000 // 4**k * 8 > 65536 for k in range(8))
    whole = [path for path in made.parameters if path not in wide]
    found = counts(made, "data")
    assert found["all_to_all"] == len(wide) + 1
    assert found["all_gather"] == 1  # row numbers of all tables
    assert found["all_reduce"] == len(whole) + 1  # and the loss
    exchanged = next(c.bytes for c in made.predicted.collectives if c.kind == "all_to_all")
    rows = 65536 * 128 * 4 // 8
    assert exchanged == (len(wide) + 8 + 1) * rows  # all vectors of an example at once


def test_by_rows_terms_are_scattered_and_gradients_of_rows_gathered() -> None:
    """A width that 8 devices can't divide."""
    model = zoo("dlrm", size="full", rows="16000000", tables="4", width="36", hots="5")
    made = plan(model.task, "1x8:h100-sxm", "tables", model=model)
    cut_by = {path: item.cuts[0].dim for path, item in made.parameters.items() if item.cuts}
    assert set(cut_by.values()) == {0}
    found = counts(made, "data")
    assert found["reduce_scatter"] == len(cut_by)
    assert found["all_gather"] == 2  # row numbers; gradients of all vectors
    terms = next(c.bytes for c in made.predicted.collectives if c.kind == "reduce_scatter")
    assert terms == len(cut_by) * 65536 * 36 * 4  # of bags, not of the rows in them
    assert "all_to_all" not in found


def test_what_is_no_table_is_not_taken_for_one() -> None:
    """Weights of products, biases, norms; a vocabulary that the head multiplies by as well."""
    assert not tables.tables(zoo("mlp").whole(1))
    names = tables.tables(zoo("gpt").whole(1))
    assert list(names) == ["position_embedding.weight"]


def test_a_model_without_tables_worth_a_cut_says_so() -> None:
    model = zoo("mlp")
    with pytest.raises(StrategyError, match="No table"):
        plan(model.task, "local:4", "data,tables", model=model)
    with pytest.raises(StrategyError, match="beside auto"):
        parse_strategy("tables,auto")


def test_moves_cut_each_class_of_tables_each_way_and_all_at_once() -> None:
    model = zoo("dlrm", size="small")
    space = Space(parse_strategy("auto"), 8, 512, lambda count: model.whole(count))
    point = Point((("data", 8),))
    options = list(table_options(space, point))
    assert space.usual_tables(point.sizes) == options[0].beside
    single = {option.beside[0] for option in options if len(option.beside) == 1}
    assert {(axis, key[0], key[1]) for axis, key in single} >= {
        ("data", "tables.0.weight", 0), ("data", "tables.0.weight", 1)
    }  # fmt: skip
    other = next(o for o in options if o.beside and o.beside[0][1][:2] == ("tables.0.weight", 0))
    turned = [o.beside for o in table_options(space, other)]
    assert () in turned  # uncut again
    assert (("data", ("tables.0.weight", 1, 1, 32)),) in turned  # the other way


def test_decisions_of_tables_name_the_parameter_and_nothing_else() -> None:
    found = tables.decision(zoo("dlrm", size="tiny").whole(1), "tables.0.weight", "data", 1, 4)
    assert found == Decision(axis="data", value="tables.0.weight", dim=1, alone=True, why=found.why)


@pytest.mark.parametrize(
    ("where", "options"),
    [
        ("1x8:h100-sxm", {"rows": "4000000", "tables": "4", "top": "1024-256"}),
        pytest.param("1x8:h100-sxm", {"rows": "4000000", "tables": "12"}, marks=pytest.mark.all),
        pytest.param("4x8:h100-sxm", {"rows": "80000000"}, marks=pytest.mark.all),
        pytest.param("2x8:a100-80g", {"hots": "4", "width": "64"}, marks=pytest.mark.all),
        pytest.param("2x8:h100-sxm", {"global_batch": "16384"}, marks=pytest.mark.all),
        pytest.param("4x8:a100-80g", {"tables": "60", "rows": "9000000"}, marks=pytest.mark.all),
    ],
)
def test_auto_cuts_the_tables_and_leaves_the_dense_part_to_the_batch(
    where: str, options: dict[str, str]
) -> None:
    model = zoo("dlrm", size="full", **options)
    cluster = parse_cluster(where)
    found = plan(model.task, cluster, "auto", model=model, budget_s=20)
    named = plan(model.task, cluster, "tables", model=model)
    assert found.predicted.step_time_s <= named.predicted.step_time_s * (1 + 1e-9)
    assert found.mesh.get("tensor", 1) == 1
    largest = found.parameters["tables.0.weight"]
    assert {item.axis for item in largest.cuts} <= {"data", "replica"}
    assert largest.cuts
    assert largest.residency == "always"
    divided = {item.axis for item in found.decisions if item.value == "batch[1]"}
    assert divided == {axis for axis, size in found.mesh.items() if size > 1}
    if all(item.cuts for path, item in found.parameters.items() if path.startswith("tables")):
        assert found.predicted.communication_s < named.predicted.compute_s

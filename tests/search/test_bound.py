"""No plan goes below the bounds: of named strategies drawn at random, and op by op."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.cluster.parse import parse_cluster
from meshwright.cluster.types import Cluster, Fitted, Profile
from meshwright.cost.compute import op_time
from meshwright.cost.constants import default_constants
from meshwright.cost.floor import floor_time
from meshwright.cost.hardware import PLAIN
from meshwright.cost.table import table_for
from meshwright.errors import StrategyError
from meshwright.layout.assignment import assign
from meshwright.lower.lower import lower
from meshwright.model import Model
from meshwright.plan.types import Residency
from meshwright.program.types import Op, Ref, Value
from meshwright.search.bound import Decided, lower_bound, memory_lower_bound
from meshwright.search.named import candidate
from meshwright.search.strategy import mesh_for, parse_strategy
from meshwright.simulate.step import simulate
from meshwright.zoo.convnet import convnet_task
from meshwright.zoo.gpt import gpt_task
from meshwright.zoo.mlp import mlp_task
from meshwright.zoo.moe import moe_task

MAKE = {
    "mlp": lambda: mlp_task(features=64, hidden=256, layers=2, classes=10, global_batch=32),
    "gpt": lambda: gpt_task(layers=2, width=64, heads=4, seq_len=32, vocab=96, global_batch=8),
    "convnet": lambda: convnet_task(global_batch=8),
    "moe": lambda: moe_task(layers=1, width=32, experts=4, seq_len=16, global_batch=8),
}
RESIDENCY: dict[int, Residency] = {0: "always", 1: "step", 2: "microbatch", 3: "use"}
NAMED = (
    "data", "tensor", "data=2,tensor=2", "zero=1", "zero=2", "zero=3", "tensor=2,zero=3",
    "tensor,sequence", "context", "spatial", "expert", "data=2,context=2,zero=1",
    "replica=2,zero=3",
)  # fmt: skip


@cache
def model(name: str) -> Model:
    return Model(MAKE[name]())


@cache
def cluster(text: str) -> Cluster:
    return parse_cluster(text)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(MAKE)),
    st.sampled_from(NAMED),
    st.sampled_from(("local:4", "1x4:h100-sxm", "2x2:v100-16g")),
    st.sampled_from((1, 2)),
)
def test_bounds_hold(name: str, text: str, where: str, microbatches: int) -> None:
    analysis = model(name).whole(microbatches)
    strategy = parse_strategy(text)
    mesh, zero = mesh_for(strategy, 4), strategy.zero or 0
    try:
        made = candidate(
            analysis, mesh, zero=zero, microbatches=microbatches, sequence=strategy.sequence
        )
    except StrategyError:
        return
    assignment = assign(analysis, mesh, made.decisions, made.parameters)
    result = simulate(
        lower(analysis, assignment, mesh.coordinate(0), 1 << 20), cluster(where),
        microbatches=microbatches, optimizer="adamw", memory_curve=False,
    )  # fmt: skip
    sizes = dict(mesh.axes)
    batch = sizes.get("data", 1) * sizes.get("replica", 1)
    known = Decided(residency=RESIDENCY[zero], cut=4 // batch, stored=4 // sizes.get("replica", 1))
    for decided in (Decided(), known):
        time = lower_bound(
            analysis, table_for(cluster(where)), devices=4, microbatches=microbatches,
            decided=decided,
        )  # fmt: skip
        assert 0 < time.step_s <= result.step_time_s
        memory = memory_lower_bound(analysis, devices=4, microbatches=microbatches, decided=decided)
        assert 0 < memory.peak <= result.peak_memory_bytes


def test_where_compute_dominates_the_bound_is_near() -> None:
    analysis = model("gpt").whole(1)
    where = cluster("local:4")
    mesh = mesh_for(parse_strategy("zero=1"), 4)
    made = candidate(analysis, mesh, zero=1, microbatches=1)
    assignment = assign(analysis, mesh, made.decisions, made.parameters)
    lowered = lower(analysis, assignment, mesh.coordinate(0), 1 << 20)
    result = simulate(lowered, where, microbatches=1, optimizer="adamw", memory_curve=False)
    bound = lower_bound(analysis, table_for(where), devices=4, microbatches=1)
    assert result.compute_s < 1.3 * bound.compute_s


def test_what_is_decided_raises_the_bounds() -> None:
    analysis, costs = model("mlp").whole(1), table_for(cluster("local:4"))
    open_s = lower_bound(analysis, costs, devices=4, microbatches=1).step_s
    whole = Decided(residency="always", cut=1)
    assert lower_bound(analysis, costs, devices=4, microbatches=1, decided=whole).step_s > open_s
    least = memory_lower_bound(analysis, devices=4, microbatches=1)
    most = memory_lower_bound(analysis, devices=4, microbatches=1, decided=whole)
    assert most.persistent > 2 * least.persistent
    assert most.gradients == 4 * least.gradients


def test_equal_modules_count_as_many() -> None:
    analysis, costs = model("gpt").whole(1), table_for(cluster("local:4"))
    one = lower_bound(analysis, costs, devices=4, microbatches=1).compute_s
    both = lower_bound(
        analysis, costs, devices=4, microbatches=1, stands_for={"blocks.1": 3}
    ).compute_s
    three = lower_bound(
        analysis, costs, devices=4, microbatches=1, stands_for={"blocks.1": 5}
    ).compute_s
    assert one < both
    assert three - both == pytest.approx(both - one)


# Op by op


def _value(name: str, *shape: int, dtype: str = "float32") -> Value:
    return Value(name, shape, dtype, name)


def _fitted() -> Profile:
    base = parse_cluster("local:4").groups[0].profile
    ops = {
        "matmul": (2e-6, 1e-7, 1e-11, 1e-10, 2e-10, 1e-10),
        "pointwise": (3e-6, 1e-10, 2e-10), "add": (1e-6, 2e-10, 3e-10), "view": (1e-6,),
        "softmax": (4e-6, 5e-10, 1e-10),
    }  # fmt: skip
    return base.model_copy(update={"fitted": Fitted(ops=ops, contention=1.5, cache_bytes=30_000.0)})


PROFILES = {
    "cpu": parse_cluster("local:4").groups[0].profile,
    "fitted": _fitted(),
    "h100": parse_cluster("1x8:h100-sxm").groups[0].profile,
    "v100": parse_cluster("1x8:v100-16g").groups[0].profile,
}


def _mm(m: int, n: int, k: int, batch: int, dtype: str) -> tuple[Op, dict[str, Value]]:
    lead = () if batch == 1 else (batch,)
    values = {
        "a": _value("a", *lead, m, k, dtype=dtype), "b": _value("b", *lead, k, n, dtype=dtype),
        "c": _value("c", *lead, m, n, dtype=dtype),
    }  # fmt: skip
    target = "aten.mm.default" if batch == 1 else "aten.bmm.default"
    return Op("c", target, (Ref("a"), Ref("b")), (), ("c",), False, "forward"), values


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(PROFILES)),
    st.tuples(*[st.integers(1, 3000)] * 3, st.integers(1, 24)),
    st.tuples(*[st.sampled_from((1, 2, 3, 4, 8))] * 4),
    st.sampled_from(("float32", "bfloat16")),
)
def test_a_product_cut_in_any_way_takes_its_floor(
    profile: str, sides: tuple[int, int, int, int], cuts: tuple[int, ...], dtype: str
) -> None:
    ways = cuts[0] * cuts[1] * cuts[2] * cuts[3]
    whole, values = _mm(*sides, dtype)
    floor = floor_time(whole, values, ways, PROFILES[profile], default_constants(), PLAIN)
    part, local = _mm(
        *(-(-side // cut) for side, cut in zip(sides, cuts, strict=True)), dtype=dtype
    )
    taken = op_time(part, local, PROFILES[profile])
    assert 0 < floor.seconds <= taken.seconds
    assert floor.host_s <= taken.host_s


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(PROFILES)),
    st.sampled_from(("aten.add.Tensor", "aten._softmax.default", "aten.gelu.default")),
    st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    st.tuples(*[st.sampled_from((1, 2, 5, 8))] * 2),
)
def test_a_pointwise_op_cut_in_any_way_takes_its_floor(
    profile: str, target: str, sides: tuple[int, int], cuts: tuple[int, int]
) -> None:
    def op(shape: tuple[int, ...]) -> tuple[Op, dict[str, Value]]:
        values = {"x": _value("x", *shape), "y": _value("y", *shape)}
        return Op("y", target, (Ref("x"),), (), ("y",), False, "forward"), values

    whole, values = op(sides)
    part, local = op(tuple(-(-side // cut) for side, cut in zip(sides, cuts, strict=True)))
    ways = cuts[0] * cuts[1]
    floor = floor_time(whole, values, ways, PROFILES[profile], default_constants(), PLAIN)
    assert 0 < floor.seconds <= op_time(part, local, PROFILES[profile]).seconds

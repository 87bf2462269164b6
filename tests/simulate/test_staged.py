"""The simulation from blocks: beside the one op by op, and what must hold of stages."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from staged_programs import lowered, parsed

from meshwright.cluster.types import Cluster
from meshwright.cost.table import table_for
from meshwright.errors import UsageError
from meshwright.plan.types import Pipeline, Recompute
from meshwright.simulate.executor import OWN, Executor
from meshwright.simulate.pieces import balanced
from meshwright.simulate.staged import simulate_staged
from meshwright.simulate.step import simulate
from meshwright.simulate.types import Simulation

GPT = {"layers": 8, "width": 128, "heads": 4, "seq_len": 32}


def run(strategy: str, cluster: str = "local:4", **given: object) -> Simulation:
    """A pipeline of the stages that `strategy` names; `given` as `simulate` takes them."""
    options = {**GPT, **given.pop("model", {})}  # type: ignore[dict-item]
    program = lowered("zoo:gpt", strategy, cluster, **options)
    if "pipeline" not in given and dict(program.mesh.axes).get("stage", 1) > 1:
        given["pipeline"] = Pipeline(stages=program.mesh.extent("stage"))
    arguments = {"microbatches": 4, "optimizer": "adamw", "memory_curve": False, **given}
    return simulate(program, parsed(cluster), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("microbatches", [1, 3])
@pytest.mark.parametrize(
    "strategy", ["data=4", "data=4,zero=1", "data=2,tensor=2,zero=3", "zero=2"]
)
@pytest.mark.parametrize("name", ["zoo:gpt", "zoo:mlp", "zoo:convnet", "zoo:moe"])
def test_blocks_add_up_to_the_step_op_by_op(name: str, strategy: str, microbatches: int) -> None:
    program, cluster = lowered(name, strategy), parsed("local:4")
    exact = simulate(program, cluster, microbatches=microbatches, optimizer="adamw")
    found = simulate_staged(
        program, table_for(cluster), microbatches=microbatches, optimizer="adamw", pipeline=None,
        recompute="none", executor=OWN, stands_for={}, detail=False,
    )  # fmt: skip
    assert found.step_time_s == pytest.approx(exact.step_time_s, rel=1e-9)
    assert found.optimizer_s == pytest.approx(exact.optimizer_s, rel=1e-9)
    assert found.flops == pytest.approx(exact.flops, rel=1e-9)
    assert found.collectives == exact.collectives
    # Ops of the backward go to their block, so that their order differs a little.
    assert found.peak_memory_bytes == pytest.approx(exact.peak_memory_bytes, rel=0.01)


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("cluster", ["local:4", "1x4:a100-80g"])
def test_a_module_that_stands_for_others_is_those_others(
    recompute: Recompute, cluster: str
) -> None:
    whole = run(
        "stage=2,data=2", cluster, recompute=recompute,
        pipeline=Pipeline(stages=2, cuts=("blocks.5",)),
    )  # fmt: skip
    short = run(
        "stage=2,data=2", cluster, recompute=recompute, model={"layers": 3},
        stands_for={"blocks.1": 6}, pipeline=Pipeline(stages=2, cuts=("blocks.1#4",)),
    )  # fmt: skip
    assert short.step_time_s == pytest.approx(whole.step_time_s, rel=1e-6)
    for one, other in zip(short.stages, whole.stages, strict=True):
        assert one.memory == other.memory
        assert one.stalls == pytest.approx(other.stalls)


def test_stages_hold_their_part_of_the_parameters() -> None:
    one = run("data=4", executor=replace(OWN, overlap_pipeline=True))
    parts = run("stage=4").stages
    shared = 256 * 128 * 4  # the token embedding, tied to the head
    total = sum(part.memory["parameters"] for part in parts)
    assert total == one.memory["parameters"] + shared


def test_activations_in_flight_shrink_from_stage_to_stage() -> None:
    cuts = ("blocks.2", "blocks.4", "blocks.6")
    result = run("stage=4", microbatches=8, pipeline=Pipeline(stages=4, cuts=cuts))
    memory = [stage.memory["activations"] for stage in result.stages]
    assert memory[0] > memory[1] > memory[2]
    gpipe = run("stage=4", microbatches=8, pipeline=Pipeline(stages=4, schedule="gpipe", cuts=cuts))
    for one, other in zip(gpipe.stages, result.stages, strict=True):
        assert one.memory["activations"] > other.memory["activations"]
    assert all(min(stage.memory.values()) >= 0 for stage in (*result.stages, *gpipe.stages))


def test_a_step_is_compute_and_stalls() -> None:
    for executor in (OWN, Executor(True, True, True, bucket_bytes=1 << 20)):
        for strategy in ("stage=2,data=2", "data=2,tensor=2,zero=3", "stage=2,data=2,zero=1"):
            result = run(strategy, "1x4:h100-sxm", executor=executor)
            for stage in result.stages:
                whole = stage.compute_s + sum(stage.stalls.values())
                assert whole == pytest.approx(result.step_time_s)


@pytest.mark.parametrize("strategy", ["data=4", "zero=3", "stage=2,zero=1", "stage=2,data=2"])
def test_overlap_never_costs_time(strategy: str) -> None:
    plain = run(strategy, "1x4:a100-80g", executor=OWN)
    beside = run(strategy, "1x4:a100-80g", executor=Executor(True, True, True))
    assert beside.step_time_s <= plain.step_time_s * (1 + 1e-9)
    assert beside.exposed_communication_s < plain.exposed_communication_s
    assert beside.compute_s == pytest.approx(plain.compute_s)


def faster_links(cluster: Cluster, times: float) -> Cluster:
    groups = tuple(
        group.model_copy(
            update={
                "levels": tuple(
                    level.model_copy(update={"bytes_per_s": level.bytes_per_s * times})
                    for level in group.levels
                )
            }
        )
        for group in cluster.groups
    )
    return cluster.model_copy(update={"groups": groups})


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["stage=2,data=2", "stage=4", "data=4,zero=3", "stage=2,tensor=2"]),
    st.floats(1.0, 50.0),
    st.integers(1, 6),
    st.booleans(),
)
def test_more_bandwidth_is_never_slower(
    strategy: str, times: float, microbatches: int, beside: bool
) -> None:
    cluster = parsed("2x2:a100-80g")
    program = lowered("zoo:gpt", strategy, "2x2:a100-80g", **GPT)
    stages = dict(program.mesh.axes).get("stage", 1)
    seconds = [
        simulate(
            program, where, microbatches=microbatches, optimizer="adamw", memory_curve=False,
            pipeline=Pipeline(stages=stages), executor=Executor(beside, beside, beside),
        ).step_time_s
        for where in (cluster, faster_links(cluster, times))
    ]  # fmt: skip
    assert seconds[1] <= seconds[0] * (1 + 1e-9)


def test_simulating_twice_says_the_same() -> None:
    first = run("stage=2,data=2", memory_curve=True)
    assert run("stage=2,data=2", memory_curve=True) == first


def test_full_recomputation_trades_memory_for_another_forward() -> None:
    plain = run("stage=2,data=2", "1x4:h100-sxm")
    again = run("stage=2,data=2", "1x4:h100-sxm", recompute="full")
    assert again.memory["activations"] < 0.5 * plain.memory["activations"]
    assert 1.2 < again.flops / plain.flops < 1.34
    assert again.step_time_s > plain.step_time_s


def test_selective_recomputation_drops_scores_that_no_fused_kernel_spares() -> None:
    fused = run("data=4", "1x4:h100-sxm", recompute="selective")
    assert fused.memory == run("data=4", "1x4:h100-sxm", executor=OWN).memory
    options = {"model": {"dropout": 0.1}}  # dropout keeps PyTorch from its fused kernel on a CPU
    plain = run("data=4", "1x4:h100-sxm", **options)
    again = run("data=4", "1x4:h100-sxm", recompute="selective", **options)
    # Of each layer the masked scores, their softmax and what dropout leaves of them.
    scores = 4 * 4 * 32 * 32 * 4  # batch, heads, queries, keys, bytes
    dropped = plain.memory["activations"] - again.memory["activations"]
    assert dropped > 7 * scores
    assert again.flops > plain.flops


def test_master_weights_and_gradient_buffers() -> None:
    def memory(executor: Executor) -> dict[str, int]:
        return run("data=4", "1x4:h100-sxm", executor=executor).memory

    plain, buffered = memory(OWN), memory(Executor(gradient_buffer=True))
    assert buffered["gradients"] == plain["parameters"]
    assert plain["gradients"] >= buffered["gradients"]
    wide = memory(Executor(gradient_buffer=True, gradient_dtype="float64"))
    assert wide["gradients"] == 2 * buffered["gradients"]


def test_cuts_are_checked() -> None:
    with pytest.raises(UsageError, match="no module 'blocks\\.99'"):
        run("stage=2,data=2", pipeline=Pipeline(stages=2, cuts=("blocks.99",)))
    with pytest.raises(UsageError, match="a piece empty"):
        run("stage=4", pipeline=Pipeline(stages=4, cuts=("blocks.3", "blocks.2", "blocks.5")))
    with pytest.raises(UsageError, match="too few for 40 pieces"):
        run(
            "stage=4",
            pipeline=Pipeline(stages=4, virtual=10, schedule="interleaved"),
        )
    with pytest.raises(UsageError, match="2 stages, but the mesh has 4"):
        run("stage=4", pipeline=Pipeline(stages=2))


@given(
    st.lists(st.tuples(st.floats(0.1, 9.0), st.integers(0, 99)), min_size=1, max_size=9),
    st.data(),
)
def test_balanced_cuts_are_the_best_there_are(
    blocks: list[tuple[float, int]], data: st.DataObject
) -> None:
    from itertools import combinations, pairwise

    times, weights = [b[0] for b in blocks], [b[1] for b in blocks]
    pieces = data.draw(st.integers(1, len(blocks)))

    def cost(bounds: tuple[int, ...]) -> tuple[float, int]:
        spans = list(pairwise(bounds))
        slowest = max(sum(times[a:b]) for a, b in spans)
        return slowest, max(sum(weights[a:b]) for a, b in spans)

    every = [
        cost((0, *inner, len(blocks))) for inner in combinations(range(1, len(blocks)), pieces - 1)
    ]
    least = min(every)[0]
    lightest = min(weight for slowest, weight in every if slowest <= least * (1 + 1e-9))
    slowest, weight = cost(tuple(balanced(times, weights, pieces)))
    assert slowest == pytest.approx(least)
    assert weight <= lightest


def test_collectives_of_the_backward_beside_weight_gradients() -> None:
    plain = run("tensor=4", "1x4:a100-80g", executor=OWN)
    beside = run("tensor=4", "1x4:a100-80g", executor=Executor(overlap_tensor=True))
    hidden = plain.stalls["collectives"] - beside.stalls["collectives"]
    # Of each layer's four all_reduces the backward has two, each before it can go on.
    assert 0 < hidden <= plain.stalls["collectives"] / 2
    assert beside.compute_s == pytest.approx(plain.compute_s)
    assert beside.collectives == plain.collectives

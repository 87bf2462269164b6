"""What frameworks do otherwise than Meshwright's runtime, as an `Executor` says it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from staged_programs import lowered, parsed

from meshwright.plan.types import Pipeline
from meshwright.simulate.block import Task
from meshwright.simulate.engine import Engine, Timed
from meshwright.simulate.executor import OWN, Executor
from meshwright.simulate.schedules import Turn
from meshwright.simulate.step import simulate
from meshwright.simulate.types import Simulation

CLUSTER = "1x4:a100-80g"
BUFFERED = Executor(gradient_buffer=True)


def run(strategy: str, executor: Executor, stages: int = 1, **options: object) -> Simulation:
    sizes = {"layers": 8, "width": 256, "heads": 4, "seq_len": 64, **options}
    recompute = sizes.pop("recompute", "none")
    return simulate(
        lowered("zoo:gpt", strategy, CLUSTER, **sizes), parsed(CLUSTER),
        microbatches=4, optimizer="adamw", memory_curve=False, executor=executor,
        pipeline=Pipeline(stages=stages) if stages > 1 else None, recompute=recompute,  # type: ignore[arg-type]
    )  # fmt: skip


def test_adding_gradients_apart_takes_time_for_all_but_the_first_microbatch() -> None:
    within = run("data=4", BUFFERED)
    apart = run("data=4", replace(BUFFERED, adds_gradients=True))
    wide = replace(BUFFERED, adds_gradients=True, gradient_dtype="float64")
    assert apart.compute_s > within.compute_s
    assert run("data=4", wide).compute_s > apart.compute_s
    assert apart.peak_memory_bytes == within.peak_memory_bytes


def test_what_is_sent_in_parts_travels_faster_and_is_gathered() -> None:
    whole = run("stage=2,tensor=2", OWN, stages=2)
    parts = run("stage=2,tensor=2", replace(OWN, sends_parts=True), stages=2)
    before, after = (sum(s.stalls["transfer"] for s in item.stages) for item in (whole, parts))
    assert after < before
    before, after = (sum(s.stalls["collectives"] for s in item.stages) for item in (whole, parts))
    assert after > before


def test_what_is_gathered_again_is_kept_in_part() -> None:
    whole = run("data=2,tensor=2,sequence", BUFFERED)
    part = run("data=2,tensor=2,sequence", replace(BUFFERED, regathers=True))
    assert part.step_time_s == whole.step_time_s
    # Two values [8, 64, 256] of float32 in each of 8 blocks, of which each device made half; the
    # last block's are whole again at the peak, which lies in its backward now.
    less = 8 * 2 * (8 * 64 * 256 * 4 // 2)
    assert 0.75 * less < whole.memory["activations"] - part.memory["activations"] < less


def test_compute_beside_collectives_takes_longer() -> None:
    """As long as both run: not after the collective is through, nor where none runs."""
    gather, compute = Task("reduce", 0.5, "data", "all_reduce"), Task("compute", 2.0)
    turn = Turn("F", 0, 0)
    for tasks, seconds in (((gather, compute, compute), 4.1), ((compute, compute), 4.0)):
        timed = Timed(tasks, 4.0, 4.0, True, 0.0, 0.0)
        engine = Engine(
            [[turn]], 1, lambda *_, timed=timed: timed, lambda *_: 0.0, False, False, 0.2
        )  # fmt: skip
        engine.run()
        assert engine.clocks[0].now_s == pytest.approx(seconds)
        contention_s = engine.clocks[0].stalls.get("contention", 0.0)
        assert contention_s == pytest.approx(seconds - 4)


def test_parts_need_a_tensor_axis() -> None:
    whole = run("stage=4", OWN, stages=4)
    assert run("stage=4", replace(OWN, sends_parts=True), stages=4) == whole


def test_owners_of_whole_parameters_broadcast_them() -> None:
    shared = run("data=4,zero=1", BUFFERED)
    owned = run("data=4,zero=1", replace(BUFFERED, whole_owners=True))
    kinds = {item.kind: item.bytes for item in owned.collectives}
    known = {item.kind: item.bytes for item in shared.collectives}
    assert "reduce_scatter" not in kinds
    assert kinds["broadcast"] == known["all_gather"]
    assert owned.step_time_s > shared.step_time_s


def test_blocks_that_draw_are_alike() -> None:
    """With all blocks computed again only their inputs are kept, though each draws otherwise."""
    # One pass of the optimizer: its scratch values would be the peak otherwise.
    executor = replace(BUFFERED, fused_optimizer=True)
    memory = {
        recompute: run("data=4", executor, dropout=0.1, recompute=recompute).memory["activations"]
        for recompute in ("none", "full")
    }
    assert memory["full"] < 0.25 * memory["none"]

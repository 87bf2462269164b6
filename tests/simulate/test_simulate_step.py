"""The simulator on lowered programs whose figures can be worked out on paper."""

from __future__ import annotations

from dataclasses import replace

import pytest
from lowered_programs import cluster, linear

from meshwright.cost.communication import collective_seconds
from meshwright.cost.compute import op_seconds
from meshwright.errors import RuleError, UsageError
from meshwright.layout.lowered import LoweredProgram, Section
from meshwright.program.types import Op, Ref, Value
from meshwright.simulate.step import simulate
from meshwright.simulate.types import Simulation

WEIGHT = 512 * 512 * 4
BATCH = 256 * 512 * 4  # and so is every activation


def run(lowered: LoweredProgram, microbatches: int = 1, **options: bool) -> Simulation:
    return simulate(lowered, cluster(), microbatches=microbatches, optimizer="adamw", **options)


def test_time_is_the_sum_of_its_ops() -> None:
    lowered, c = linear(), cluster()
    profile = c.groups[0].profile
    ops = lowered.forward.ops + lowered.backward.ops
    expected = sum(op_seconds(op, lowered.values, profile) for op in ops)
    result = simulate(lowered, c, microbatches=1, optimizer="adamw")
    assert result.compute_s == pytest.approx(expected)
    assert result.communication_s == collective_seconds("all_reduce", 2, 1, WEIGHT, c)
    assert result.step_time_s == pytest.approx(
        result.compute_s + result.communication_s + result.optimizer_s
    )
    assert result.flops == 2 * (2 * 256 * 512 * 512)


def test_replicated_peak() -> None:
    result = run(linear())
    assert result.memory == {
        "parameters": WEIGHT,
        "optimizer": 2 * WEIGHT,
        "buffers": 0,
        "batch": BATCH,
        "activations": 0,
        "gathered": 0,
        "gradients": 2 * WEIGHT,  # before and after the all_reduce
    }
    assert result.peak_at == "reduce: op_dw_out"
    assert result.peak_memory_bytes == sum(result.memory.values())


def test_gathered_parameters_live_until_the_backward_ends() -> None:
    result = run(linear(zero=True))
    shard = WEIGHT // 2
    assert result.memory["parameters"] == shard
    assert result.memory["optimizer"] == 2 * shard
    assert result.memory["gathered"] == WEIGHT
    assert result.memory["gradients"] == WEIGHT
    assert result.memory["activations"] == BATCH  # dy; z was freed after its last use
    assert result.peak_at == "backward: op_dw"


def test_accumulators_stay_from_the_second_microbatch_on() -> None:
    result = run(linear(zero=True), microbatches=3)
    assert result.memory["gradients"] == 2 * WEIGHT
    assert result.memory["batch"] == 3 * BATCH
    assert run(linear(zero=True), microbatches=2).memory["gradients"] == 2 * WEIGHT


def test_collectives_are_added_up_per_step() -> None:
    once = run(linear(zero=True), microbatches=4).collectives
    assert [(item.kind, item.axis, item.count, item.bytes) for item in once] == [
        ("all_gather", "data", 1, WEIGHT),
        ("reduce_scatter", "data", 1, WEIGHT),
    ]
    lowered = linear(zero=True)
    moved = replace(
        lowered,
        gather=Section(("w",), (), ("w",)),
        forward=Section(
            ("w", "x"), lowered.gather.ops + lowered.forward.ops, lowered.forward.outputs
        ),
    )
    gathers = run(moved, microbatches=4).collectives[0]
    assert (gathers.count, gathers.bytes) == (4, 4 * WEIGHT)
    # Gathered anew in each microbatch, and let go after its last use in the forward.
    points = dict(run(moved).curve)
    assert points["op_y"] == 3 * WEIGHT // 2 + BATCH + WEIGHT + BATCH
    assert points["op_y"] - points["op_y_view"] == WEIGHT


def test_time_of_microbatches() -> None:
    one, four = run(linear()), run(linear(), microbatches=4)
    accumulate_s = 1e-6 + 3 * WEIGHT / 1e10
    assert four.compute_s == pytest.approx(4 * one.compute_s + 3 * accumulate_s)
    assert four.communication_s == one.communication_s
    assert four.flops == 4 * one.flops


def test_a_view_keeps_its_storage() -> None:
    """y is freed after the last use of y_view, not after its own."""
    lowered = linear()
    points = dict(run(lowered).curve)
    always = 3 * WEIGHT + BATCH
    assert points["op_y_view"] == always + BATCH
    assert points["op_z"] == always + 2 * BATCH
    assert points["op_loss"] == always + BATCH + 4


def test_scratch_of_the_optimizer() -> None:
    points = dict(run(linear()).curve)
    assert points["optimizer"] == 3 * WEIGHT + BATCH + WEIGHT + WEIGHT


def test_clipping_reads_the_gradients_twice() -> None:
    lowered = linear()
    values = dict(lowered.values) | {"norm": Value("norm", (), "float32", "norm")}
    norm = Op("op_norm", "mesh.sum_of_squares", (Ref("dw_out"),), (), ("norm",), False, "backward")
    clipped = replace(
        lowered, values=values, clip=Section(("dw_out",), (norm,), ("norm",)), norm="norm"
    )
    plain, result = run(lowered), run(clipped)
    assert result.compute_s > plain.compute_s
    assert result.optimizer_s == pytest.approx(plain.optimizer_s + 1e-6 + 2 * WEIGHT / 1e10)


@pytest.mark.parametrize("microbatches", [1, 2, 5])
@pytest.mark.parametrize("zero", [False, True])
def test_events_and_curve_agree_with_the_totals(microbatches: int, zero: bool) -> None:
    result = run(linear(zero=zero), microbatches)
    assert len(result.events) == len(result.curve)
    assert result.events[-1].end_s == pytest.approx(result.step_time_s)
    assert max(point.bytes for point in result.curve) == result.peak_memory_bytes
    assert {event.queue for event in result.events} == {"compute", "communication"}
    ends = 0.0
    for event in result.events:  # synchronous: nothing overlaps
        assert event.start_s == pytest.approx(ends)
        ends = event.end_s
    bare = run(linear(zero=zero), microbatches, memory_curve=False)
    assert bare.events == bare.curve == ()
    assert replace(result, events=(), curve=()) == bare


def test_nonsense_is_refused() -> None:
    with pytest.raises(UsageError):
        run(linear(), microbatches=0)
    with pytest.raises(UsageError):
        simulate(linear(), cluster(), microbatches=1, optimizer="magic")
    lowered = linear()
    strange = replace(lowered.forward.ops[0], target="mesh.unheard_of")
    with pytest.raises(RuleError):
        run(replace(lowered, forward=replace(lowered.forward, ops=(strange,))))

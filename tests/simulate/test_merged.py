"""Merged and overlapped collectives, as the simulator counts, times and stores them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pytest
from staged_programs import lowered, parsed

from meshwright.simulate.executor import OWN
from meshwright.simulate.step import simulate
from meshwright.simulate.types import Simulation

GPT = {"width": 64, "heads": 4, "vocab": 200, "seq_len": 16, "global_batch": 16}
STRATEGIES = ("data", "zero=1", "zero=3", "data=2,tensor=2,zero=3", "replica=2,data=2,zero=1")
WIDE = {"width": 1024, "seq_len": 256, "global_batch": 64}  # bound by kernels, not launches


def run(
    strategy: str, layers: int, bucket_bytes: int, cluster: str = "local:4",
    sizes: Mapping[str, int] = MappingProxyType({}), **given: object,
) -> Simulation:  # fmt: skip
    program = lowered(
        "zoo:gpt", strategy, cluster, bucket_bytes=bucket_bytes, layers=layers, **{**GPT, **sizes}
    )
    options = {"microbatches": 2, "optimizer": "adamw", "memory_curve": False, **given}
    return simulate(program, parsed(cluster), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("cluster", ["local:4", "1x4:a100-80g"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_buckets_run_through_blocks_that_stand_for_others(strategy: str, cluster: str) -> None:
    """Eight layers, and three of which the middle one stands for six; a layer has 200 kB of
    gradients, so that buckets end inside of layers, and between them."""
    for bucket_bytes in (1 << 16, 300_000, 25 << 20):
        whole = run(strategy, 8, bucket_bytes, cluster)
        short = run(strategy, 3, bucket_bytes, cluster, stands_for={"blocks.1": 6})
        assert short.collectives == whole.collectives, bucket_bytes
        assert short.before_merging == whole.before_merging
        assert short.step_time_s == pytest.approx(whole.step_time_s, rel=1e-6)
        assert short.peak_memory_bytes == pytest.approx(whole.peak_memory_bytes, rel=1e-3)


def test_merging_saves_latency_and_moves_the_same_bytes() -> None:
    alone, merged = run("zero=1", 3, 0), run("zero=1", 3, 25 << 20)
    assert merged.communication_s < alone.communication_s
    assert merged.before_merging == alone.before_merging == alone.collectives
    bytes_of = [{(c.kind, c.axis): c.bytes for c in s.collectives} for s in (alone, merged)]
    assert bytes_of[0] == bytes_of[1]
    assert sum(c.count for c in merged.collectives) < sum(c.count for c in alone.collectives) / 10


@pytest.mark.parametrize("strategy", ["data", "zero=2"])
def test_gradients_are_reduced_beside_the_backward_on_accelerators_alone(strategy: str) -> None:
    on_cpu = run(strategy, 3, 1 << 16)
    assert on_cpu.exposed_communication_s == on_cpu.communication_s
    assert on_cpu == run(strategy, 3, 1 << 16, executor=OWN)
    beside = run(strategy, 3, 1 << 16, "1x4:a100-80g", WIDE, memory_curve=True)
    in_line = run(strategy, 3, 1 << 16, "1x4:a100-80g", WIDE, executor=OWN)
    assert beside.exposed_communication_s < in_line.exposed_communication_s
    assert beside.step_time_s < in_line.step_time_s
    assert beside.collectives == in_line.collectives
    backward = next(e for e in beside.events if e.name == "backward 2")
    reductions = [e for e in beside.events if e.name in ("all_reduce", "reduce_scatter")]
    assert any(backward.start_s < e.start_s < backward.end_s for e in reductions)

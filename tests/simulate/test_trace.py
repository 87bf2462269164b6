"""The timeline as Perfetto reads it."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from lowered_programs import cluster, linear
from staged_programs import lowered, parsed

from meshwright.plan.types import Pipeline
from meshwright.simulate.step import simulate
from meshwright.simulate.trace import to_chrome_trace


def test_trace() -> None:
    result = simulate(linear(), cluster(), microbatches=2, optimizer="sgd")
    trace = json.loads(json.dumps(to_chrome_trace(result)))
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(spans) == len(result.events)
    assert spans[-1]["ts"] + spans[-1]["dur"] == pytest.approx(result.step_time_s * 1e6)
    threads = {
        event["tid"]: event["args"]["name"]
        for event in trace["traceEvents"]
        if event["name"] == "thread_name"
    }
    assert {threads[span["tid"]] for span in spans} == {"compute", "communication"}
    memory = [event["args"]["bytes"] for event in trace["traceEvents"] if event["ph"] == "C"]
    assert max(memory) == result.peak_memory_bytes


def test_a_process_for_each_stage() -> None:
    program = lowered("zoo:gpt", "stage=2,data=2", layers=4)
    result = simulate(
        program, parsed("local:4"), microbatches=3, optimizer="sgd", pipeline=Pipeline(stages=2)
    )
    trace = json.loads(json.dumps(to_chrome_trace(result)))["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in trace if e["name"] == "process_name"}
    assert names == {0: "stage 0", 1: "stage 1"}
    spans = [event for event in trace if event["ph"] == "X"]
    queues = {(e["pid"], e["tid"]) for e in trace if e["name"] == "thread_name"}
    assert {(span["pid"], span["tid"]) for span in spans} <= queues
    for queue in queues:
        mine = sorted((s["ts"], s["dur"]) for s in spans if (s["pid"], s["tid"]) == queue)
        assert all(b[0] >= a[0] + a[1] - 1e-3 for a, b in pairwise(mine))
    for stage, part in enumerate(result.stages):
        memory = [e["args"]["bytes"] for e in trace if e["ph"] == "C" and e["pid"] == stage]
        assert max(memory) == part.peak_memory_bytes

"""The timeline as Perfetto reads it."""

from __future__ import annotations

import json

import pytest
from lowered_programs import cluster, linear

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

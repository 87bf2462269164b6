"""Pipeline schedules in the engine: known totals, bounds, and what can never be."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwright.errors import UsageError
from meshwright.plan.types import Pipeline, Schedule
from meshwright.simulate.block import Task
from meshwright.simulate.engine import Engine, Timed
from meshwright.simulate.schedules import Turn, schedule

SECONDS = st.floats(0.01, 10.0)


def engine(
    pipeline: Pipeline,
    microbatches: int,
    seconds: dict[tuple[str, int], float],
    transfer_s: float = 0.0,
    blocking: bool = False,
) -> Engine:
    """Runs turns that take `seconds` by phase and piece."""

    def timed(stage: int, turn: Turn) -> Timed:
        took = seconds[turn.phase, turn.chunk * pipeline.stages + stage]
        return Timed((Task("compute", took),), took, took, False, 0.0, 0.0)

    made = Engine(
        schedule(pipeline, microbatches), pipeline.pieces, timed, lambda piece, forward: transfer_s,
        blocking, True,
    )  # fmt: skip
    made.run()
    return made


def total(made: Engine) -> float:
    return max(clock.now_s for clock in made.clocks)


def equal(pipeline: Pipeline, f: float, b: float, w: float = 0.0) -> dict[tuple[str, int], float]:
    times = {"F": f, "B": b, "W": w}
    return {(phase, piece): s for phase, s in times.items() for piece in range(pipeline.pieces)}


@given(st.sampled_from(["gpipe", "1f1b"]), st.integers(1, 8), st.integers(1, 20), SECONDS, SECONDS)
def test_equal_stages_take_what_is_known(
    name: Schedule, stages: int, m: int, f: float, b: float
) -> None:
    pipeline = Pipeline(stages=stages, schedule=name)
    made = engine(pipeline, m, equal(pipeline, f, b))
    assert total(made) == pytest.approx((m + stages - 1) * (f + b))
    for clock in made.clocks:
        idle = total(made) - clock.compute_s
        assert idle / total(made) == pytest.approx((stages - 1) / (m + stages - 1))


@given(st.integers(2, 6), st.integers(2, 4), st.integers(1, 5), SECONDS, SECONDS)
def test_interleaved_bubble(stages: int, virtual: int, rounds: int, f: float, b: float) -> None:
    m = rounds * stages
    pipeline = Pipeline(stages=stages, virtual=virtual, schedule="interleaved")
    made = engine(pipeline, m, equal(pipeline, f, b))
    assert total(made) == pytest.approx((virtual * m + stages - 1) * (f + b))
    idle = total(made) - made.clocks[0].compute_s
    assert idle / total(made) == pytest.approx((stages - 1) / (virtual * m + stages - 1))


@given(st.integers(2, 8), st.integers(0, 20), SECONDS)
def test_zero_bubble_is_that_of_its_authors_where_parts_are_equal(
    stages: int, more: int, seconds: float
) -> None:
    """(stages - 1)(F + B - W) for F = B = W, against (stages - 1)(F + B + W) of 1F1B."""
    pipeline = Pipeline(stages=stages, schedule="zb-h1")
    m = 2 * stages + more
    made = engine(pipeline, m, equal(pipeline, seconds, seconds, seconds))
    assert total(made) == pytest.approx((3 * m + stages - 1) * seconds)


@given(st.integers(1, 8), st.integers(1, 20), SECONDS, SECONDS, SECONDS)
def test_zero_bubble_is_never_slower_than_1f1b(
    stages: int, m: int, f: float, b: float, w: float
) -> None:
    zero = Pipeline(stages=stages, schedule="zb-h1")
    plain = Pipeline(stages=stages, schedule="1f1b")
    split = total(engine(zero, m, equal(zero, f, b, w)))
    assert split <= total(engine(plain, m, equal(plain, f, b + w))) * (1 + 1e-9)


PIPELINES = st.one_of(
    st.builds(
        lambda stages, name: Pipeline(stages=stages, schedule=name),
        st.integers(1, 6), st.sampled_from(["gpipe", "1f1b", "zb-h1"]),
    ),
    st.builds(
        lambda stages, virtual: Pipeline(stages=stages, virtual=virtual, schedule="interleaved"),
        st.integers(1, 5), st.integers(2, 3),
    ),
)  # fmt: skip


@given(PIPELINES, st.integers(1, 4), st.data())
def test_order_and_bounds(pipeline: Pipeline, rounds: int, data: st.DataObject) -> None:
    m = rounds * pipeline.stages
    seconds = {
        (phase, piece): data.draw(SECONDS) for phase in "FBW" for piece in range(pipeline.pieces)
    }
    transfer_s = data.draw(st.sampled_from([0.0, 0.5]))
    made = engine(pipeline, m, seconds, transfer_s, data.draw(st.booleans()))
    phases = "FBW" if pipeline.schedule == "zb-h1" else "FB"
    spans: dict[tuple[str, int, int], tuple[float, float]] = {}
    for stage, clock in enumerate(made.clocks):
        done = 0.0
        for turn, begin, end in clock.turns:
            assert begin >= done  # one thing at a time
            done = end
            spans[turn.phase, turn.chunk * pipeline.stages + stage, turn.microbatch] = begin, end
        assert clock.now_s >= clock.compute_s
        assert sum(clock.stalls.values()) + clock.compute_s == pytest.approx(clock.now_s)
    assert len(spans) == len(phases) * m * pipeline.pieces  # every turn once
    hop = transfer_s if pipeline.stages > 1 else 0.0
    last = pipeline.pieces - 1
    for (phase, piece, number), (begin, _) in spans.items():
        needs = []
        if phase == "F" and piece:
            needs.append(("F", piece - 1, hop))
        if phase == "B":
            needs.append(("F", piece, 0.0))
            if piece < last:
                needs.append(("B", piece + 1, hop))
        if phase == "W":
            needs.append(("B", piece, 0.0))
        for other, where, after in needs:
            assert begin >= spans[other, where, number][1] + after - 1e-9
    path = sum(seconds["F", p] + seconds["B", p] for p in range(pipeline.pieces)) + 2 * last * hop
    assert total(made) >= path - 1e-9  # one microbatch there and back
    assert total(made) >= max(clock.compute_s for clock in made.clocks)
    queues = defaultdict(list)
    for event in made.events:
        queues[event.stage, event.queue].append((event.start_s, event.end_s))
    for events in queues.values():
        events.sort()
        assert all(b[0] >= a[1] - 1e-9 for a, b in pairwise(events))


@given(st.integers(1, 8), st.integers(1, 20))
def test_microbatches_in_flight(stages: int, m: int) -> None:
    for name in ("1f1b", "zb-h1", "gpipe"):
        for stage, turns in enumerate(schedule(Pipeline(stages=stages, schedule=name), m)):
            counts: Counter[str] = Counter()
            most = 0
            for turn in turns:
                counts[turn.phase] += 1
                most = max(most, counts["F"] - counts["B"])
            assert most == (m if name == "gpipe" else min(m, stages - stage))


def test_microbatches_that_do_not_interleave() -> None:
    pipeline = Pipeline(stages=4, virtual=2, schedule="interleaved")
    with pytest.raises(UsageError, match="a multiple of 4 microbatches, not 6"):
        schedule(pipeline, 6)

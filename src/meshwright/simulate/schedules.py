"""Pipeline schedules: what each stage does, in order.

Piece p of the model lies on stage p mod stages, as its chunk p div stages.
"""

from __future__ import annotations

from typing import NamedTuple

from meshwright.errors import UsageError
from meshwright.plan.types import Pipeline


class Turn(NamedTuple):
    """phase: `F` forward; `B` backward (of inputs alone where a `W` follows); `W` weights."""

    phase: str
    chunk: int
    microbatch: int


def schedule(pipeline: Pipeline, microbatches: int) -> list[list[Turn]]:
    """The turns of each stage. Raises UsageError where the schedule can't take the microbatches.

    gpipe (Huang et al., 2019): all forwards, then all backwards. 1f1b (PipeDream-flush,
    Narayanan et al., 2021): as many forwards as stages are to come, then one
    backward after each forward. interleaved: the same over chunks (Narayanan et
    al., 2021). zb-h1 (Qi et al., 2023): the backward in two, weights' part later.
    """
    stages = pipeline.stages
    if pipeline.schedule == "interleaved" and microbatches % stages:
        raise UsageError(
            f"An interleaved pipeline of {stages} stages takes a multiple of {stages} "
            f"microbatches, not {microbatches}.",
            "Change the number of microbatches, or use schedule=1f1b without virtual stages.",
        )
    if pipeline.schedule == "gpipe":
        return [_gpipe(microbatches) for _ in range(stages)]
    if pipeline.schedule == "1f1b":
        return [_one_by_one(stages - 1 - stage, microbatches) for stage in range(stages)]
    if pipeline.schedule == "zb-h1":
        return [_zero_bubble(stage, stages, microbatches) for stage in range(stages)]
    return [_interleaved(stage, stages, pipeline.virtual, microbatches) for stage in range(stages)]


def _gpipe(microbatches: int) -> list[Turn]:
    numbers = range(microbatches)
    return [Turn("F", 0, n) for n in numbers] + [Turn("B", 0, n) for n in numbers]


def _one_by_one(ahead: int, microbatches: int) -> list[Turn]:
    ahead = min(ahead, microbatches)
    turns = [Turn("F", 0, n) for n in range(ahead)]
    for number in range(ahead, microbatches):
        turns += [Turn("F", 0, number), Turn("B", 0, number - ahead)]
    turns += [Turn("B", 0, n) for n in range(microbatches - ahead, microbatches)]
    return turns


def _zero_bubble(stage: int, stages: int, microbatches: int) -> list[Turn]:
    """One forward, one backward, but weights' parts wait, at most `stage` of them at a time.

    So the last stage hands its gradients back sooner, and the waiting parts fill
    what would be a bubble while the pipeline drains.
    """
    ahead = min(stages - 1 - stage, microbatches)
    turns = [Turn("F", 0, n) for n in range(ahead)]
    backwards = weights = 0

    def backward() -> None:
        nonlocal backwards, weights
        turns.append(Turn("B", 0, backwards))
        backwards += 1
        if backwards - weights > stage:
            turns.append(Turn("W", 0, weights))
            weights += 1

    for number in range(ahead, microbatches):
        turns.append(Turn("F", 0, number))
        backward()
    while backwards < microbatches:
        backward()
    turns += [Turn("W", 0, n) for n in range(weights, microbatches)]
    return turns


def _interleaved(stage: int, stages: int, virtual: int, microbatches: int) -> list[Turn]:
    total = microbatches * virtual
    ahead = min((stages - 1 - stage) * 2 + (virtual - 1) * stages, total)

    def turn(phase: str, number: int) -> Turn:
        group, within = divmod(number, stages * virtual)
        chunk = within // stages
        if phase == "B":
            chunk = virtual - 1 - chunk
        return Turn(phase, chunk, group * stages + within % stages)

    turns = [turn("F", n) for n in range(ahead)]
    for number in range(ahead, total):
        turns += [turn("F", number), turn("B", number - ahead)]
    turns += [turn("B", n) for n in range(total - ahead, total)]
    return turns

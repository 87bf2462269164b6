"""Which collectives a strategy costs, exactly, and what a lowered step keeps in memory."""

from __future__ import annotations

import weakref
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from meshwright.api import Model, parallelize, plan, sgd, simulate_plan
from meshwright.cluster.mesh import Mesh
from meshwright.layout.assignment import assign
from meshwright.layout.lowered import LoweredProgram
from meshwright.lower.lower import lower
from meshwright.plan.types import BUCKET_BYTES, Collective, Plan
from meshwright.program.types import Program
from meshwright.runtime.comm import Communicator
from meshwright.runtime.executor import Executable
from meshwright.runtime.local_ops import RandomKey
from meshwright.runtime.lockstep import run_lockstep
from meshwright.zoo.convnet import convnet_task
from meshwright.zoo.gpt import gpt_task

STRATEGIES = (
    "data", "zero=1", "zero=2", "zero=3", "tensor", "data=2,tensor=2",
    "data=2,tensor=2,zero=1", "data=2,tensor=2,zero=3", "auto",
)  # fmt: skip


@cache
def gpt(layers: int) -> Model:
    return Model(gpt_task(layers=layers, width=16, heads=4, vocab=20, seq_len=6, global_batch=8))


@cache
def convnet() -> Model:
    return Model(convnet_task(width=4, residual_blocks=1, classes=5, global_batch=8))


def planned(model: Model, strategy: str, devices: int = 4, **options: Any) -> Plan:
    return plan(model.task, f"local:{devices}", strategy, model=model, **options)


def counts(made: Plan) -> dict[tuple[str, str], int]:
    return {(item.kind, item.axis): item.count for item in made.predicted.collectives}


def counts_alone(made: Plan) -> dict[tuple[str, str], int]:
    """With a collective for each tensor."""
    return {(item.kind, item.axis): item.count for item in made.predicted.before_merging}


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_tensor_parallel_costs_four_reductions_a_layer(layers: int, microbatches: int) -> None:
    """And six beside the layers: the embedding's rows; the greatest logit, the sum of
    exponentials and the loss over the vocabulary; two in the backward, of the gradients of the
    logits' softmax and of what the head multiplies."""
    made = planned(gpt(layers), "tensor", 2, microbatches=microbatches)
    assert counts(made) == {("all_reduce", "tensor"): microbatches * (4 * layers + 6)}


def gradients(program: Program) -> int:
    return sum(name is not None for name in program.gradients.values())


def used_in_backward(program: Program) -> int:
    """Parameters that the backward needs, themselves or as a view."""
    stored = {item.value for item in program.inputs_of("parameter")}
    return len(
        {
            program.values[name].storage
            for op in program.phase_ops("backward")
            for name in op.operands()
            if program.values[name].storage in stored
        }
    )


# The table of positions is looked up once for the whole batch: its gradient is made of a sum
# over the batch that is reduced in the backward, so that nothing is left to reduce after it.
POSITIONS = 1


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_data_parallel_reduces_each_gradient_once_a_step(layers: int, microbatches: int) -> None:
    model = gpt(layers)
    number = gradients(model.microbatch(1)[0].program)
    made = planned(model, "data", microbatches=microbatches)
    each = microbatches * (1 + POSITIONS)  # the loss, and what is reduced in the backward
    assert counts_alone(made) == {("all_reduce", "data"): number - POSITIONS + each}
    assert counts(made) == {("all_reduce", "data"): 1 + each}  # all gradients in one bucket


def test_data_parallel_of_an_image_classifier() -> None:
    """One reduction a gradient, one for the loss; a batch normalisation takes two forward and
    one backward, and its own parameters' gradients come with it for free or are pending."""
    model = convnet()
    program = model.microbatch(1)[0].program
    norms = sum("batch_norm" in op.target for op in program.phase_ops("forward"))
    made = planned(model, "data")
    total = gradients(program) + 1 + 3 * norms
    assert counts_alone(made) == {("all_reduce", "data"): total}
    assert counts(made) == {("all_reduce", "data"): 1 + 1 + 3 * norms}


@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("microbatches", [1, 3])
def test_zero_gathers_and_scatters_as_often_as_its_residency_says(
    zero: int, microbatches: int
) -> None:
    model = gpt(2)
    if microbatches == 3:
        model = Model(gpt_task(layers=1, width=16, heads=4, vocab=20, seq_len=6, global_batch=12))
    program = model.microbatch(1)[0].program
    number = gradients(program)
    gathered = {
        1: number,
        2: microbatches * number,
        3: microbatches * (number + used_in_backward(program)),
    }[zero]
    scattered = (number - POSITIONS) * (1 if zero == 1 else microbatches)
    made = planned(model, f"zero={zero}", microbatches=microbatches)
    reduced = {("all_reduce", "data"): microbatches * (1 + POSITIONS)}
    assert counts_alone(made) == reduced | {
        ("all_gather", "data"): gathered,
        ("reduce_scatter", "data"): scattered,
    }
    # Merged, through the whole model once a step. In a microbatch each of two blocks has its
    # own, and so has what lies before and after them; the backward needs no table.
    apart = 4 if microbatches == 1 else 1  # one layer is no block that repeats
    again = 3 if microbatches == 1 else 1
    assert counts(made) == reduced | {
        ("all_gather", "data"): {1: 1, 2: microbatches * apart,
                                 3: microbatches * (apart + again)}[zero],
        ("reduce_scatter", "data"): 1 if zero == 1 else microbatches * apart,
    }  # fmt: skip


@pytest.mark.parametrize("strategy", ["data", "zero=1", "zero=3", "data=2,tensor=2,zero=3"])
def test_buckets_of_no_size_merge_nothing(strategy: str) -> None:
    model = gpt(2)
    made = planned(model, strategy, microbatches=2, clip_norm=0.5, bucket_bytes=0)
    merged = planned(model, strategy, microbatches=2, clip_norm=0.5)
    assert counts(made) == counts_alone(made) == counts_alone(merged)
    assert counts(merged) != counts_alone(merged)
    moved = {(item.kind, item.axis): item.bytes for item in made.predicted.collectives}
    assert moved == {(item.kind, item.axis): item.bytes for item in merged.predicted.collectives}


def test_thirty_two_layers_reduce_289_gradients_and_the_loss() -> None:
    """Nine tensors a layer and an embedding, each with a collective of its own or in buckets."""
    task = gpt_task(layers=2, width=16, heads=4, vocab=20, seq_len=6, global_batch=8)
    model = Model(replace(task, model=_NineTensors))
    made = planned(model, "data", bucket_bytes=0)
    assert counts(made) == {("all_reduce", "data"): 289 + 1}
    layer = sum(p.numel() for p in _NineTensors().layers[0].parameters()) * 4
    made = planned(model, "data", bucket_bytes=4 * layer)
    assert counts_alone(made) == {("all_reduce", "data"): 289 + 1}
    assert counts(made) == {("all_reduce", "data"): 8 + 1 + 1}  # the embedding comes last


class _Layer(nn.Module):
    """Nine parameter tensors: four projections of attention, two matrices, two norms, a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out, self.up = (
            nn.Linear(8, 8, bias=False) for _ in range(5)
        )
        self.down = nn.Linear(8, 8)
        self.norm_1, self.norm_2 = nn.RMSNorm(8), nn.RMSNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_1(x)
        scores = torch.softmax(self.query(y) @ self.key(y).transpose(1, 2), -1)
        x = x + self.out(scores @ self.value(y))
        return x + self.down(torch.relu(self.up(self.norm_2(x))))


class _NineTensors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(20, 8))
        self.layers = nn.ModuleList(_Layer() for _ in range(32))

    def forward(self, ids: Tensor) -> Tensor:
        x = nn.functional.embedding(ids, self.table)
        for layer in self.layers:
            x = layer(x)
        return x @ self.table.t()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("clip_norm", "bucket_bytes"), [(None, 1000), (0.5, BUCKET_BYTES)])
def test_what_runs_is_what_the_plan_lists(
    strategy: str, clip_norm: float | None, bucket_bytes: int
) -> None:
    model = gpt(2)
    made = planned(model, strategy, microbatches=2, clip_norm=clip_norm, bucket_bytes=bucket_bytes)
    assert simulate_plan(model.task, made, model=model).collectives == made.predicted.collectives

    def rank(comm: Communicator) -> tuple[tuple[Collective, ...], ...]:
        job = parallelize(
            model.task, optimizer=sgd, plan=made, communicator=comm, model=model, device="cpu"
        )
        ran = []
        for _ in range(2):
            job.reset_counts()
            job.step(model.task.batch)
            ran.append(job.executed())
        return tuple(ran)

    for ran in run_lockstep(Mesh(tuple(made.mesh.items())), rank):
        assert ran == (made.predicted.collectives,) * 2


def lowered_for(model: Model, made: Plan, rank: int = 0) -> LoweredProgram:
    analysis = model.microbatch(made.microbatches)[1]
    mesh = Mesh(tuple(made.mesh.items()))
    assignment = assign(analysis, mesh, made.decisions, made.parameters)
    return lower(analysis, assignment, mesh.coordinate(rank))


@pytest.mark.parametrize("strategy", ["data", "data=2,tensor=2,zero=1", "zero=3"])
def test_what_moves_for_a_parameter_has_the_line_that_uses_it(strategy: str) -> None:
    """So that a peak in a gradient's reduction or in a gather is named by a line of the model."""
    lowered = lowered_for(gpt(1), planned(gpt(1), strategy))
    apart = {
        (op.source.module, bool(op.source.file and op.source.line))
        for part in (lowered.gather, lowered.forward, lowered.backward, lowered.reduce)
        for op in part.ops
        if op.source.module in ("gradient reduction", "parameter gathering")
    }
    assert ("gradient reduction", True) in apart
    assert ("parameter gathering", True) in apart or "zero" not in strategy
    assert all(known for _, known in apart)


@pytest.mark.parametrize("strategy", ["zero=3", "data=2,tensor=2,zero=3"])
def test_no_gathered_parameter_is_saved_for_the_backward(strategy: str) -> None:
    model = gpt(2)
    lowered = lowered_for(model, planned(model, strategy))
    stored = {item.value for item in lowered.parameters}
    derived = set(stored)
    for op in lowered.forward.ops:
        if op.target == "mesh.all_gather" and set(op.operands()) <= derived:
            derived.update(name for name in op.results if name is not None)
    gathered = derived - stored
    assert gathered
    assert not {lowered.values[name].storage for name in lowered.saved} & gathered


def test_zero_2_does_save_them() -> None:
    """What the test above looks for exists elsewhere."""
    model = gpt(2)
    lowered = lowered_for(model, planned(model, "zero=2"))
    gathered = {
        op.results[0]
        for op in lowered.forward.ops
        if op.target == "mesh.all_gather" and op.operands().__next__() in stored_values(lowered)
    }
    assert gathered & {lowered.values[name].storage for name in lowered.saved}


def stored_values(lowered: LoweredProgram) -> set[str]:
    return {item.value for item in lowered.parameters}


def test_gathered_parameters_are_dead_after_the_forward() -> None:
    """By reference, on the tensors that ran."""
    model = gpt(2)
    made = planned(model, "zero=3", 2)
    captured, _ = model.microbatch(1)
    mesh = Mesh(tuple(made.mesh.items()))
    leaves = model.spec.flatten(model.task.batch)

    def rank(comm: Communicator) -> tuple[int, int]:
        lowered = lowered_for(model, made, comm.rank)
        seen: list[weakref.ref[torch.UntypedStorage]] = []
        gather = comm.all_gather

        def watched(*args: Any, **kwargs: Any) -> Tensor:
            result = gather(*args, **kwargs)
            seen.append(weakref.ref(result.untyped_storage()))
            return result

        comm.all_gather = watched  # type: ignore[method-assign]
        constants = {lowered.constants[path]: x for path, x in captured.constants.items()}
        executable = Executable(lowered, constants, comm, RandomKey(), torch.device("cpu"))
        state = {
            item.value: torch.rand(lowered.values[item.value].shape) for item in lowered.parameters
        }
        batch = {name: leaves[path].chunk(2)[comm.rank] for path, name in lowered.batch.items()}
        outputs = executable.run("forward", {**state, **batch})
        kept = {x.untyped_storage().data_ptr() for x in outputs.values()}
        alive = [ref() for ref in seen]
        return len(seen), sum(x is not None and x.data_ptr() in kept for x in alive)

    for gathered, alive in run_lockstep(mesh, rank):
        assert gathered >= len(made.parameters)
        assert alive == 0

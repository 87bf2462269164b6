"""Programs for other numbers of examples are those that a capture gives, or none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from meshwright.api import Model, plan
from meshwright.program.between import Apart, between, difference
from meshwright.program.fingerprint import fingerprint
from meshwright.task import Task
from meshwright.zoo.reference import load_task

ZOO = {
    "zoo:gpt": {"layers": "2", "width": "16", "heads": "2", "seq_len": "8", "dropout": "0.1"},
    "zoo:mlp": {"hidden": "16"},
    "zoo:dlrm": {},
    "zoo:convnet": {},
}


def programs(task: Task, counts: tuple[int, ...]):
    model = Model(task)
    return [model.microbatch(count)[1].program for count in counts]


@pytest.mark.parametrize("reference", ZOO)
def test_a_third_follows_from_two(reference):
    task = load_task(reference, {**ZOO[reference], "global_batch": "16"})
    eight, four, two = programs(task, (2, 4, 8))
    assert difference(between(eight, four, (8, 4), 2), two) == ""
    assert difference(between(four, two, (4, 2), 8), eight) == ""
    assert difference(eight, four) != ""


def test_what_is_no_line_is_refused():
    four, two = programs(load_task("zoo:mlp", {"hidden": "16", "global_batch": "8"}), (2, 4))
    with pytest.raises(Apart, match="say nothing"):
        # Had four examples been nine, three would make no whole size.
        between(four, two, (9, 2), 3)
    with pytest.raises(Apart):
        between(four, replace(two, ops=two.ops[:-1]), (4, 2), 3)


def test_an_op_of_another_kind_is_a_difference():
    (program,) = programs(load_task("zoo:mlp", {"hidden": "16", "global_batch": "8"}), (1,))
    changed = replace(program.ops[3], target="aten.neg.default")
    other = replace(program, ops=(*program.ops[:3], changed, *program.ops[4:]))
    assert program.ops[3].name in difference(program, other)


class Branching(nn.Module):
    """Does more where there are few examples, which no other number of them shows."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return torch.tanh(out) if x.shape[0] == 4 else out


def task_of(kind: type[nn.Module]) -> Task:
    return Task(
        model=kind, loss=lambda model, x: model(x).square().mean(), batch=torch.zeros(32, 8),
        name=kind.__name__,
    )  # fmt: skip


def test_other_counts_are_worked_out_and_captured_when_they_are_laid_out():
    model = Model(task_of(Branching))
    captured = [model.outline(count).derived for count in (1, 2)]
    assert captured == [False, False]
    assert model.outline(4).derived
    assert model.captures == 2
    outline, analysis = model.planned(4)
    assert outline.derived
    assert analysis is model.microbatch(4)[1]
    assert model.captures == 3
    assert not model.outline(32).derived  # one example


def test_a_step_that_a_number_of_examples_changes_is_planned_as_it_is():
    task = task_of(Branching)
    model = Model(task)
    for count in (1, 2):
        model.outline(count)
    # Eight microbatches have four examples each, and one op more.
    assert model.outline(8).derived
    made = plan(task, "local:4", "auto,microbatches=8", model=model)
    assert made.program == fingerprint(model.microbatch(8)[1].program)
    assert not model.outline(8).derived

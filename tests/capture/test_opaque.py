"""Opaque modules: captured as one op, run as they are, equal to one device."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import meshwright
from capture.opaque_models import (
    WIDTH,
    Averaging,
    ByNumpy,
    Centred,
    Counting,
    Model,
    Router,
    batch,
    classify,
    task,
)
from meshwright.api import Model as Captured
from meshwright.api import plan, verify
from meshwright.as_is import OpaqueCall
from meshwright.capture import trial
from meshwright.capture.trace import capture
from meshwright.errors import CaptureError, RunError, UsageError
from meshwright.program.verifier import verify_program
from meshwright.runtime.opaque import OpaqueRuns
from meshwright.task import Task

STRATEGIES = (
    "data=4", "data=4,zero=3", "tensor=4", "data=2,tensor=2", "data=2,tensor=2,zero=3",
    "data=2,tensor=2,zero=2,microbatches=2",
)  # fmt: skip


def by_numpy(part: nn.Module, h: Tensor) -> Tensor:
    found = part(h, bound=0.5)
    assert found["none"] is None
    assert found["name"] == "numpy"
    return found["y"] * (1 + found["chosen"][..., None])


def twice(part: nn.Module, h: Tensor) -> Tensor:
    return part(part(h) + h)


@pytest.fixture(scope="module")
def routed() -> Captured:
    return Captured(task(Router))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_module_that_branches_on_values_computes_what_one_device_does(
    routed: Captured, strategy: str
) -> None:
    found = verify(routed.task, "local:4", strategy, model=routed)
    assert found.equal, found
    assert len({ours for ours, _ in found.losses}) == len(found.losses)


@pytest.mark.parametrize(
    ("part", "call", "options"),
    [
        (ByNumpy, by_numpy, {}),
        (Router, twice, {}),
        (Router, None, {"batch": False}),
        (Centred, None, {"batch": False}),
        (Counting, None, {}),
        (Averaging, None, {"batch": False}),
        (Router, None, {"outputs": "like input"}),
        (Router, None, {"outputs": lambda x: torch.empty_like(x)}),
    ],
)
@pytest.mark.parametrize(
    "strategy", ["data=2,tensor=2", pytest.param("data=4,zero=3", marks=pytest.mark.all)]
)
def test_other_modules_do_as_well(part: Any, call: Any, options: Any, strategy: str) -> None:
    found = verify(task(part, call, **options), "local:4", strategy)
    assert found.equal, found


def test_an_input_as_long_as_the_batch_that_is_not_one() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            scores = (x @ x.transpose(-1, -2)).masked_fill(mask, -1e9).softmax(-1)
            return scores @ self.inner(x) if x.sum().item() < 1e9 else x

    def causal(part: nn.Module, h: Tensor) -> Tensor:
        return part(h, torch.ones(5, 5).triu(1).bool())

    square = Task(task(Masked, causal).model, classify, batch(5), "square")
    made = plan(square, "local:1", "data=1")
    assert made.remarks == ("opaque: part, runs as it is",)
    found = verify(square, "local:4", "tensor=4")
    assert found.equal, found
    op = next(op for op in capture(square).program.ops if op.target == "mesh.opaque.default")
    assert op.args[3] == (1, 0)


def test_ids_two_outputs_one_of_them_the_input_and_writes_to_the_other() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, WIDTH)

        def forward(self, x: Tensor, ids: Tensor, flag: bool = True) -> Any:
            found = self.table(ids) if ids.max().item() < 100 else None
            return x, {"found": found, "ids": (ids + 1,)}

    def used(part: nn.Module, h: Tensor) -> Tensor:
        same, rest = part(h, (h[..., 0] > 0).long(), flag=True)
        rest["found"] += 1
        return same * 0.3 + rest["found"] * rest["ids"][0].unsqueeze(-1)

    found = verify(task(Several, used), "local:4", "data=2,tensor=2,zero=3")
    assert found.equal, found


def test_inside_of_autocast_no_grad_and_checkpoints() -> None:
    def nested(part: nn.Module, h: Tensor) -> Tensor:
        with torch.no_grad():
            scale = part(h)
        again = torch.utils.checkpoint.checkpoint(part, h, use_reentrant=False)
        with torch.autocast("cpu", torch.bfloat16):
            half = part(h)
        assert half.dtype == torch.bfloat16
        return again * scale + half.float() * 1e-3

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if x.sum().item() < 1e9 else x

    found = verify(task(Branching, nested), "local:4", "data=2,tensor=2")
    assert found.equal, found


def test_a_module_that_exists_can_be_marked() -> None:
    model = Model(Router())
    assert meshwright.opaque(model.part) is model.part
    found = verify(Task(model, classify, batch()), "local:2", "data=2,zero=3")
    assert found.equal, found


def test_a_part_of_which_some_parameters_are_not_used_in_a_step() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) if x.abs().max().item() < 1e9 else self.other(x)

    found = verify(task(Unused), "local:4", "data=2,tensor=2,zero=3")
    assert found.equal, found


def test_a_part_that_shares_its_parameters_and_one_that_is_frozen() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(WIDTH, WIDTH)
            self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
            self.same = self.inner

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x) if x.sum().item() < 1e9 else x
            return self.frozen(self.same(y))

    def build() -> nn.Module:
        made = Model(meshwright.opaque(Tied()))
        made.down.bias = made.part.inner.bias
        return made

    found = verify(Task(build, classify, batch()), "local:4", "data=2,tensor=2,zero=3")
    assert found.equal, found


def test_a_smaller_last_batch_leaves_some_devices_nothing(routed: Captured) -> None:
    found = verify(
        routed.task, "local:4", "data=4", model=routed, batches=[batch(8), batch(3), batch(8)]
    )
    assert found.equal, found


def test_the_step_has_one_op_each_way_and_the_plan_says_so(routed: Captured) -> None:
    captured = capture(routed.task)
    verify_program(captured.program)
    ours = [op for op in captured.program.ops if op.target.startswith("mesh.")]
    assert [op.target for op in ours] == ["mesh.opaque.default", "mesh.opaque_backward.default"]
    assert {op.source.module for op in ours} == {"part"}
    assert all("opaque_models.py" in op.source.file for op in ours)
    assert set(captured.opaque) == {"part"}
    made = plan(routed.task, "local:4", "data=2,tensor=2", model=routed)
    line = "opaque: part, its batch cut over data, runs as it is on every device of tensor"
    assert made.remarks == (line,)
    assert line in str(made)


def test_work_and_memory_of_the_module_are_counted(routed: Captured) -> None:
    op = next(op for op in capture(routed.task).program.ops if op.target == "mesh.opaque.default")
    flops, moved, launches = op.args[5:8]
    tokens = 8 * 5
    assert flops >= tokens * 2 * WIDTH * WIDTH  # type: ignore[operator]
    assert moved > 0  # type: ignore[operator]
    assert launches > tokens // 2  # type: ignore[operator]
    program = routed.microbatch(1)[0].program
    kept = program.values[op.results[0]]  # type: ignore[index]
    assert kept.shape[0] == 8
    assert kept.nbytes > tokens * WIDTH * 4


def test_a_batch_of_another_length_needs_no_other_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    given = task(Router)
    model = Captured(given)
    first = model.captured(batch(8))[0]
    monkeypatch.setattr(trial, "_alone", lambda run: pytest.fail("tried again"))
    second = model.captured(batch(16))[0]
    ops = [
        next(op for op in made.program.ops if op.target == "mesh.opaque.default")
        for made in (first, second)
    ]
    assert ops[1].args[5] == 2 * ops[0].args[5]  # type: ignore[operator]
    assert second.opaque["part"].shapes == ((16, 5, WIDTH),)


def test_random_draws_are_named() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x) * (x.sum().item() < 1e9)

    made = plan(task(Noisy), "local:2", "data=2")
    assert made.remarks == (
        "opaque: part, its batch cut over data, runs as it is; its random draws are not those "
        "of one device",
    )


@pytest.mark.parametrize(
    ("part", "options", "message", "remedy"),
    [
        (Centred, {}, "examples of a batch influence each other", "batch=False"),
        (Averaging, {}, "its buffer fixed depends on the whole batch", "batch=False"),
        (lambda: Failing("raise"), {}, "raised ValueError .*this module fails", "outputs="),
        (lambda: Failing("float"), {}, "returns a float", "Return tensors"),
        (lambda: Failing("none"), {}, "returns no tensor", "Return what it computes"),
        (lambda: Failing("scalar"), {}, "influence each other", "batch=False"),
        (Router, {"outputs": lambda x: x.item()}, "as outputs of part raised", "without memory"),
        (Router, {"outputs": lambda x: x.sum()}, "the batch as dim 0", "batch=False"),
    ],
)
def test_what_can_not_be_done_is_said(part: Any, options: Any, message: str, remedy: str) -> None:
    with pytest.raises(CaptureError, match=message) as caught:
        capture(task(part, **options))
    assert "part" in caught.value.message
    assert remedy in caught.value.remedy


class Failing(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Any:
        if self.how == "raise":
            raise ValueError("this module fails")
        return {
            "float": (x, float(x.sum())), "none": None, "scalar": (x, x.mean()),
        }[self.how]  # fmt: skip


def test_outputs_that_differ_from_what_was_said_end_the_run() -> None:
    told = task(Router, outputs=lambda x: x.new_empty(*x.shape[:-1], 2 * WIDTH))
    model = Model(meshwright.opaque(Router(), outputs=lambda x: torch.cat([x, x], -1)))
    model.call = lambda part, h: part(h)[..., :WIDTH]
    with pytest.raises(RunError, match=r"opaque module part returned .* it returned"):
        verify(Task(model, classify, batch()), "local:2", "data=2")
    assert told.name == "routed"


@pytest.mark.parametrize(
    ("arguments", "options"), [((3,), {}), ((nn.Linear(2, 2),), {"outputs": "same"})]
)
def test_nonsense_is_refused(arguments: Any, options: Any) -> None:
    with pytest.raises(UsageError):
        meshwright.opaque(*arguments, **options)


def test_a_mark_is_copied_with_its_module() -> None:
    model = copy.deepcopy(Model(meshwright.opaque(Router())))
    assert set(capture(Task(model, classify, batch())).opaque) == {"part"}


def call_of(routed: Captured) -> OpaqueCall:
    return routed.microbatch(1)[0].opaque["part"]


def test_between_forward_and_backward_autograd_keeps_no_parameter(routed: Captured) -> None:
    call = call_of(routed)
    runs = OpaqueRuns({"part": call}, torch.device("cpu"))
    part = Router()
    tensors = {**dict(part.named_parameters()), **dict(part.named_buffers())}
    state = [tensors[name].detach().clone() for name in call.state]
    x = torch.randn(8, 5, WIDTH)
    token, y = runs.forward(state, [x], "part")

    # What the first pass was given is let go of and overwritten: another copy serves as well.
    again = [tensor.clone() for tensor in state]
    for tensor in state:
        tensor.fill_(float("nan"))
    del state
    gc.collect()
    given = torch.randn_like(y)
    found = runs.backward([given], token, again, "part")

    x.requires_grad_()
    expected = part(x)
    torch.testing.assert_close(y, expected)
    wanted = [*part.parameters(), x]
    for ours, theirs in zip(
        found, torch.autograd.grad(expected, wanted, given, allow_unused=True), strict=True
    ):
        torch.testing.assert_close(ours, torch.zeros_like(ours) if theirs is None else theirs)

    with pytest.raises(RunError, match="is not on this device any more"):
        runs.backward([given], token, again, "part")

"""Models with ops of a user's own: probed, planned, and equal to one device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import meshwright
from meshwright.api import Model as Captured
from meshwright.api import plan, verify
from meshwright.errors import RuleError
from meshwright.rules import user
from meshwright.task import Task


@torch.library.custom_op("equal::fused_mlp", mutates_args=())
def fused_mlp(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return F.gelu(x @ up) @ down


@torch.library.custom_op("equal::fused_mlp_backward", mutates_args=())
def fused_mlp_backward(
    gradient: Tensor, x: Tensor, up: Tensor, down: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    hidden = x @ up
    inner = torch.ops.aten.gelu_backward(gradient @ down.t(), hidden)
    rows = [t.reshape(-1, t.shape[-1]) for t in (x, inner, F.gelu(hidden), gradient)]
    return inner @ up.t(), rows[0].t() @ rows[1], rows[2].t() @ rows[3]


@torch.library.custom_op("equal::turned", mutates_args=())
def turned(parts: list[Tensor], scale: float, bias: Tensor | None = None) -> Tensor:
    """Joins, and turns by position along dim 1: that dim has to stay whole."""
    made = torch.cat(parts, -1) * scale
    angles = torch.arange(made.shape[1], dtype=made.dtype).cos()[None, :, None]
    return made * angles if bias is None else made * angles + bias


@torch.library.custom_op("equal::mixed", mutates_args=())
def mixed(x: Tensor) -> Tensor:
    return torch.fft.fftn(x).real.clone()


@torch.library.custom_op("equal::gpu_only", mutates_args=())
def gpu_only(x: Tensor) -> Tensor:
    raise RuntimeError("this op has no kernel for CPUs")


fused_mlp.register_fake(lambda x, up, down: torch.empty_like(x))
fused_mlp_backward.register_fake(
    lambda gradient, x, up, down: tuple(map(torch.empty_like, (x, up, down)))
)
fused_mlp.register_autograd(
    lambda ctx, gradient: fused_mlp_backward(gradient, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)
turned.register_fake(lambda parts, scale, bias=None: torch.cat(parts, -1))
for _op in (mixed, gpu_only):
    _op.register_fake(torch.empty_like)
    _op.register_autograd(lambda ctx, gradient: gradient)


def _turned_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    angles = torch.arange(gradient.shape[1], dtype=gradient.dtype).cos()[None, :, None]
    parts = (gradient * angles * ctx.scale).split(ctx.widths, -1)
    return list(parts), None, gradient.sum((0, 1))


def _turned_setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.widths, ctx.scale = [x.shape[-1] for x in inputs[0]], inputs[1]


turned.register_autograd(_turned_backward, setup_context=_turned_setup)


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 16)
        self.up = nn.Parameter(torch.randn(16, 64) * 0.1)
        self.down = nn.Parameter(torch.randn(64, 16) * 0.1)
        self.bias = nn.Parameter(torch.randn(32))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = turned([h, h + fused_mlp(h, self.up, self.down)], 2.0, self.bias)
        return self.head(h)


class Through(nn.Module):
    def __init__(self, op: Any) -> None:
        super().__init__()
        self.op = op
        self.inner = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.op(x * self.inner.weight.mean()))


def task(build: Any) -> Task:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(8, 6, 12, generator=generator)
    labels = torch.randint(10, (8, 6), generator=generator)
    return Task(
        build,
        lambda model, given: F.cross_entropy(model(given[0]).flatten(0, 1), given[1].flatten()),
        (x, labels),
        "custom",
    )


@pytest.fixture(scope="module")
def custom() -> Captured:
    return Captured(task(Custom))


@pytest.mark.parametrize(
    "strategy", ["data=4", "data=4,zero=3", "tensor=4", "data=2,tensor=2,zero=2"]
)
def test_a_model_of_ops_of_its_own_computes_what_one_device_does(
    custom: Captured, strategy: str
) -> None:
    made = plan(custom.task, "local:4", strategy, model=custom)
    found = verify(custom.task, plan=made, model=custom)
    assert found.equal, found
    assert "probed equal.fused_mlp: [a,b,.],[.,c],[c,d] -> [a,b,d] (sum over c)" in made.remarks
    assert any(line.startswith("probed equal.fused_mlp_backward: ") for line in made.remarks)
    assert "probed equal.turned: [a,.,.],[a,.,.],[.] -> [a,.,.]" in made.remarks
    if "tensor" in strategy:
        assert "up" in {decision.value for decision in made.decisions}


def test_progress_tells_what_was_probed() -> None:
    told: list[str] = []
    plan(task(Custom), "local:2", "data=2", progress=told.append)
    assert any(line.startswith("probed equal.fused_mlp: ") for line in told)


def test_an_op_that_can_be_cut_nowhere_runs_whole_and_the_plan_names_it() -> None:
    given = task(lambda: Through(mixed))
    made = plan(given, "local:4", "data=2,tensor=2")
    assert "runs whole on every device: equal.mixed in module the top module" in made.remarks
    assert verify(given, plan=made).equal


def test_an_op_that_can_not_be_probed_is_named_and_runs_whole_only_when_asked() -> None:
    given = task(lambda: Through(gpu_only))
    with pytest.raises(RuleError, match="this op has no kernel for CPUs") as caught:
        plan(given, "local:2", "data=2")
    assert "equal.gpu_only.default in the top module" in caught.value.message
    assert "register_rule('equal::gpu_only'" in caught.value.remedy
    try:
        meshwright.register_rule(gpu_only, whole=True)
        made = plan(given, "local:2", "data=2")
    finally:
        user.forget("equal.gpu_only.default")
    assert "runs whole on every device: equal.gpu_only in module the top module" in made.remarks

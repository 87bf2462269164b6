"""The example of the how-to runs, and its rule is what the op does."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import meshwright
from meshwright.rules import user

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-sharding-rule.md"


def test_the_registered_rule_of_the_page_is_checked_and_used() -> None:
    text = PAGE.read_text(encoding="utf-8")
    section = text.index("## Register a rule")
    start = text.index("```python\n", section) + len("```python\n")
    exec(compile(text[start : text.index("```", start)], str(PAGE), "exec"), {})
    torch.library.register_autograd("howto::scaled_product", _backward, setup_context=_setup)
    try:
        task = meshwright.Task(Model, _loss, torch.randn(4, 3, 6), "howto")
        for strategy in ("data=2", "tensor=2"):
            made = meshwright.plan(task, "local:2", strategy)
            assert "howto.scaled_product: rule registered: b s h, h f, f -> b s f" in made.remarks
            assert meshwright.verify(task, plan=made).equal
    finally:
        user.forget("howto.scaled_product.default")


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _backward(ctx, gradient):  # type: ignore[no-untyped-def]
    x, weight, gain = ctx.saved_tensors
    scaled = gradient * gain
    rows = x.flatten(0, 1).t()
    return (
        scaled @ weight.t(),
        rows @ scaled.flatten(0, 1),
        (gradient * (x @ weight)).sum((0, 1)),
    )


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 8))
        self.gain = nn.Parameter(torch.ones(8))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.ops.howto.scaled_product(x, self.weight, self.gain))


def _loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()

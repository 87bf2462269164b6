"""What can't be captured is named: what, in which module, on which line, and what to do."""

from __future__ import annotations

from typing import Any

import models
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from meshwright.capture import capture
from meshwright.errors import CaptureError, ModelError
from meshwright.task import Task


class Inner(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.linear = nn.Linear(8, 8)
        self.plain = torch.zeros(8)
        self.own = torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        if self.kind == "branch" and x.sum() > 0:  # the branch
            x = x + 1
        if self.kind == "item":
            x = x * x.max().item()  # the item
        if self.kind == "shape":
            x = torch.unique(x)  # the shape
        if self.kind == "raise":
            raise KeyError("no such thing")  # the raise
        if self.kind == "write":
            self.plain.add_(1)  # the write
        if self.kind == "numpy":
            x = x * float(x.detach().numpy().sum())  # the numpy
        if self.kind == "list":
            x = x * sum(x[0].detach().tolist())  # the list
        if self.kind == "array":
            x = x * np.asarray(x.detach()).sum()  # the array
        if self.kind == "generator":
            x = x + torch.rand(8, generator=self.own)  # the generator
        return x


class Outer(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.deep = nn.Sequential(nn.ReLU(), Inner(kind))

    def forward(self, x: Tensor) -> Tensor:
        return self.deep(self.first(x))


def caught(task: Task) -> CaptureError:
    with pytest.raises(CaptureError) as found:
        capture(task)
    assert found.value.exit_code == 4
    assert found.value.remedy
    return found.value


@pytest.mark.parametrize(
    ("kind", "message", "remedy"),
    [
        ("branch", "depends on values of a tensor", "pass a module that avoids it"),
        ("item", "depends on values of a tensor", "Move this out of the model"),
        ("shape", "depends on the shapes of a tensor", "Move this out of the model"),
        ("raise", "KeyError", "Check that the model runs"),
        ("write", "holds as a plain attribute", "register_buffer"),
        ("numpy", "are read, by numpy()", "Move this out of the model"),
        ("list", "are read, by tolist()", "Move this out of the model"),
        ("array", "are read, by NumPy", "Move this out of the model"),
        ("generator", "a torch.Generator that is kept from step to step", "default generator"),
    ],
)
@pytest.mark.parametrize("built", [False, True])
def test_the_module_and_line_are_named(kind: str, message: str, remedy: str, built: bool) -> None:
    model: Any = Outer(kind) if built else lambda: Outer(kind)
    error = caught(Task(model, models.square, torch.randn(4, 8)))
    assert message in error.message
    assert remedy in error.remedy
    assert "deep.1" in error.message
    assert "test_errors.py:" in error.message
    assert f"# the {kind}" in error.message


def test_a_batch_that_does_not_fit() -> None:
    error = caught(Task(models.MLP, models.square, torch.randn(4, 7)))
    assert "net.0" in error.message
    assert "batch (4, 7) float32" in error.remedy


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda model, batch: model(batch), r"a float32 tensor of shape \(4, 4\)"),
        (lambda model, batch: model(batch).argmax(), r"an? int64 tensor of shape \(\)"),
        (lambda model, batch: 3.0, "a float"),
        (lambda model, batch: model(batch).sum().detach(), "does not depend on any trainable"),
        (lambda model, batch: batch.sum(), "does not depend on any trainable"),
    ],
)
def test_what_is_no_loss(loss: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(Task(models.MLP, loss, torch.randn(4, 8)))


def test_a_model_without_a_loss() -> None:
    error = caught(Task(models.MLP, None, torch.randn(4, 8)))
    assert "The model's loss is a float32 tensor of shape (4, 4)" in error.message

    class Pair(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return (x,)

    assert "holds no loss" in caught(Task(lambda: Pair(8, 8), None, torch.randn(4, 8))).message


def test_nothing_to_train() -> None:
    error = caught(Task(models.MLP().requires_grad_(False), models.square, torch.randn(4, 8)))
    assert "no parameter that requires a gradient" in error.message


class WritesToParameter(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.clamp_(-0.1, 0.1)  # the clamp
        return super().forward(x)


def test_a_write_to_what_is_trained() -> None:
    error = caught(Task(lambda: WritesToParameter(8, 8), models.square, torch.randn(4, 8)))
    assert "writes to the parameter weight" in error.message
    assert "# the clamp" in error.message


def test_a_hook_after_accumulation() -> None:
    model = nn.Linear(8, 8)
    model.weight.register_post_accumulate_grad_hook(lambda parameter: None)
    error = caught(Task(model, models.square, torch.randn(4, 8)))
    assert "weight has a hook" in error.message


def test_an_empty_batch() -> None:
    with pytest.raises(ModelError, match="holds no tensor"):
        capture(Task(models.MLP, models.square, {"a": 3}))


def test_batches_of_another_structure() -> None:
    batch = {"x": torch.randn(4, 8), "scale": 2}
    captured = capture(Task(models.MLP, lambda m, b: m(b["x"]).sum() * b["scale"], batch))
    assert captured.batch_paths == ("batch['x']",)
    assert captured.batch.flatten(batch).keys() == {"batch['x']"}
    with pytest.raises(ModelError, match=r"holds batch\['y'\]"):
        captured.batch.flatten({"y": torch.randn(4, 8), "scale": 2})
    with pytest.raises(ModelError, match=r"batch\['scale'\] is 3"):
        captured.batch.flatten({"x": torch.randn(4, 8), "scale": 3})


def test_a_failed_capture_leaves_nothing_behind() -> None:
    model = Outer("raise")
    for _ in range(2):
        caught(Task(model, models.square, torch.randn(4, 8)))
    model.deep[1].kind = ""
    captured = capture(Task(model, models.square, torch.randn(4, 8)))
    assert captured.program.loss
    assert torch.randn(2).sum().item() is not None  # no mode is left active
    assert model(torch.randn(4, 8)).shape == (4, 8)

"""Runs a captured Program on real tensors beside plain eager PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from meshwright.capture import Captured, capture, interpret
from meshwright.capture.loss import run_loss
from meshwright.program.verifier import verify_program
from meshwright.task import Task


def build(task: Task, seed: int = 0) -> nn.Module:
    if isinstance(task.model, nn.Module):
        return task.model
    torch.manual_seed(seed)
    return task.model()


def materialized(captured: Captured, seed: int = 0) -> dict[str, Tensor]:
    return captured.blueprint.materialize(seed, lambda _, tensor: tensor.detach().clone())


def run(
    captured: Captured, tensors: Mapping[str, Tensor], batch: Any, tangent: float = 1.0
) -> dict[str, Tensor]:
    leaves = captured.batch.flatten(batch)
    inputs: dict[str, Tensor] = {}
    for item in captured.program.inputs:
        if item.kind in ("parameter", "buffer"):
            inputs[item.value] = tensors[item.path]
        elif item.kind == "batch":
            inputs[item.value] = leaves[item.path]
        elif item.kind == "constant":
            inputs[item.value] = captured.constants[item.path]
        else:
            dtype = getattr(torch, captured.program.values[item.value].dtype)
            inputs[item.value] = torch.tensor(tangent, dtype=dtype)
    values = interpret(captured.program, inputs)
    for name, value in captured.program.values.items():
        assert tuple(values[name].shape) == value.shape, name
        assert str(values[name].dtype) == f"torch.{value.dtype}", name
    return values


@dataclass
class Compared:
    captured: Captured
    values: dict[str, Tensor]


def compare(task: Task, *, seed: int = 0, tangent: float = 1.0, exact: bool = True) -> Compared:
    """Captures, interprets and compares loss, gradients and buffers with eager's."""
    captured = capture(task)
    program = captured.program
    verify_program(program)
    tensors = materialized(captured, seed)
    torch.manual_seed(seed + 1)
    values = run(captured, tensors, task.batch, tangent)

    model = build(task, seed)
    torch.manual_seed(seed + 1)
    loss = run_loss(task, model, task.batch)
    (loss * tangent).backward()

    def check(mine: Tensor, theirs: Tensor, what: str) -> None:
        if exact:
            assert torch.equal(mine, theirs), what
        else:
            torch.testing.assert_close(mine, theirs, msg=lambda text: f"{what}: {text}")

    check(values[program.loss], loss.detach(), "loss")
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(program.gradients) == set(parameters)
    for name, parameter in parameters.items():
        value = program.gradients[name]
        if parameter.grad is None:
            assert value is None, name
        else:
            assert value is not None, name
            check(values[value], parameter.grad, name)
    buffers = dict(model.named_buffers())
    for name, before in tensors.items():
        if name in buffers:
            update = program.buffer_updates.get(name)
            check(before if update is None else values[update], buffers[name], name)
    return Compared(captured, values)

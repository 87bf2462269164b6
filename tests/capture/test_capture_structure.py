"""What a captured Program looks like: names, sources, phases, kinds of inputs."""

from __future__ import annotations

import models
import torch
from eager_step import materialized, run
from torch import nn

from meshwright.capture import blueprint, capture
from meshwright.program.fingerprint import fingerprint
from meshwright.program.types import Program
from meshwright.program.verifier import verify_program
from meshwright.task import Task


def gpt_task(layers: int = 2) -> Task:
    batch = torch.zeros(2, 6, dtype=torch.int64), torch.zeros(2, 6, dtype=torch.int64)
    return Task(lambda: models.TinyGPT(layers), models.next_token, batch)


def targets(program: Program) -> set[str]:
    return {op.target for op in program.ops}


def test_inputs() -> None:
    captured = capture(gpt_task())
    program = captured.program
    assert [item.path for item in program.inputs_of("batch")] == ["batch[0]", "batch[1]"]
    assert captured.batch_paths == ("batch[0]", "batch[1]")
    tied = next(i for i in program.inputs_of("parameter") if i.path == "embed.weight")
    assert tied.aliases == ("head.weight",)
    assert tied.trainable
    assert "head.weight" not in program.gradients
    (tangent,) = program.inputs_of("tangent")
    assert program.values[tangent.value].shape == ()
    assert all(item.value == item.path for item in program.inputs)


def test_ops_stay_whole() -> None:
    program = capture(gpt_task()).program
    assert {
        "aten._scaled_dot_product_flash_attention_for_cpu.default",
        "aten._scaled_dot_product_flash_attention_for_cpu_backward.default",
        "aten.native_layer_norm.default", "aten.native_layer_norm_backward.default",
        "aten.gelu.default", "aten.gelu_backward.default", "aten.addmm.default",
        "aten._log_softmax.default", "aten.nll_loss_forward.default",
        "aten.nll_loss_backward.default", "aten.embedding_dense_backward.default",
    } <= targets(program)  # fmt: skip
    assert not any("detach" in t or "alias" in t or "lift" in t for t in targets(program))
    for name in targets(program):
        assert not name.split(".")[1].endswith("_"), name


def test_names_and_sources() -> None:
    program = capture(gpt_task()).program
    ops = {op.name: op for op in program.ops}
    attention = ops["blocks.1.attention/_scaled_dot_product_flash_attention_for_cpu"]
    assert attention.phase == "forward"
    assert attention.results[1] == attention.name + ":1"
    assert attention.source.module == "blocks.1.attention"
    assert attention.source.file.endswith("models.py")
    assert attention.source.code.startswith("mixed = F.scaled_dot_product_attention")
    backward = ops[
        "blocks.1.attention/backward/_scaled_dot_product_flash_attention_for_cpu_backward"
    ]
    assert backward.phase == "backward"
    assert backward.source == attention.source
    assert ops["loss/nll_loss_forward"].source.module == ""
    assert "cross_entropy" in ops["loss/nll_loss_forward"].source.code
    for op in program.ops:
        assert op.source.file, op.name
        assert op.source.line, op.name


def test_blocks_look_alike() -> None:
    program = capture(gpt_task(3)).program

    def block(index: int) -> list[tuple[str, str]]:
        prefix = f"blocks.{index}"
        return [
            (op.name.removeprefix(prefix), op.target)
            for op in program.ops
            if op.source.module.startswith(prefix)
        ]

    assert block(0) == block(1) == block(2)


def test_modules_called_twice_have_one_name() -> None:
    program = capture(Task(models.Twice, models.square, torch.randn(4, 8))).program
    modules = {op.source.module for op in program.phase_ops("forward")}
    assert modules == {"inner.0", "inner.1", ""}
    assert {"inner.1/tanh", "inner.1/tanh.1"} <= {op.name for op in program.ops}


def test_unused_and_frozen_parameters() -> None:
    program = capture(Task(models.Partial, models.square, torch.randn(4, 8))).program
    assert program.gradients["unused.weight"] is None
    assert program.gradients["used.weight"] is not None
    assert "frozen.weight" not in program.gradients
    assert program.buffer_updates.keys() == {"average", "steps"}


def test_storage_of_views() -> None:
    values = capture(gpt_task()).program.values
    attention = "blocks.0.attention"
    assert values[f"{attention}/view"].is_view
    assert values[f"{attention}/permute"].storage == values[f"{attention}/view"].storage
    assert values["blocks.0.mlp.2/gelu"].storage == "blocks.0.mlp.2/gelu"


def test_batch_norm_is_pure() -> None:
    program = capture(Task(models.ConvNet, models.square, torch.randn(4, 3, 8, 8))).program
    norms = [op for op in program.ops if "batch_norm" in op.target and op.phase == "forward"]
    assert [op.target for op in norms] == ["aten._native_batch_norm_legit_functional.default"] * 2
    assert program.buffer_updates["norm.running_mean"] == norms[1].results[3]
    assert next(norms[1].operands()) != next(norms[0].operands())
    assert norms[0].results[3] in list(norms[1].operands())


def test_dropout_stays_random() -> None:
    program = capture(Task(models.Dropping, models.square, torch.randn(4, 8))).program
    assert any("bernoulli" in name or "dropout" in name for name in targets(program))
    evaluated = capture(Task(lambda: models.Dropping().eval(), models.square, torch.randn(4, 8)))
    assert not any("dropout/" in op.name for op in evaluated.program.ops)


def test_constants_are_real() -> None:
    captured = capture(Task(models.Writes, models.square, torch.randn(4, 8)))
    constants = captured.program.inputs_of("constant")
    assert captured.constants.keys() == {item.path for item in constants}
    assert any(torch.equal(c, torch.linspace(1, 2, 8)) for c in captured.constants.values())


def test_one_blueprint_serves_many_batch_sizes() -> None:
    task = Task(models.ConvNet, models.square, torch.randn(8, 3, 8, 8))
    plan = blueprint(task.model)
    sizes = (8, 4, 2)
    captures = [capture(task, batch=torch.randn(size, 3, 8, 8), blueprint=plan) for size in sizes]
    for size, captured in zip(sizes, captures, strict=True):
        assert captured.blueprint is plan
        assert captured.program.values["batch"].shape[0] == size
        run(captured, materialized(captured), torch.randn(size, 3, 8, 8))
    assert len({fingerprint(captured.program) for captured in captures}) == 3


def test_captures_of_one_task_are_equal() -> None:
    first, second = capture(gpt_task()), capture(gpt_task())
    assert first.program == second.program
    assert capture(Task(models.TinyGPT(), *_rest())).program == first.program


def _rest() -> tuple[object, object]:
    task = gpt_task()
    return task.loss, task.batch


def test_state_that_a_forward_leaves_behind_is_dropped() -> None:
    class Caching(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.last = super().forward(x)
            return self.last

    plan = blueprint(lambda: Caching(8, 8))
    task = Task(lambda: Caching(8, 8), models.square, torch.randn(4, 8))
    for _ in range(2):
        verify_program(capture(task, blueprint=plan).program)
        assert not hasattr(plan.module, "last")

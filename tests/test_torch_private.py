"""Each private part of PyTorch still does what Meshwright uses it for.

A failure here means that PyTorch moved: adapt `meshwright/torch_private.py`.
"""

from __future__ import annotations

import re
import weakref
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from meshwright import torch_private as private

SOURCES = Path(private.__file__).parent


def test_nothing_else_imports_private_parts() -> None:
    imports = re.compile(r"^\s*(?:from|import)\s+(torch\S*)(?:\s+import\s+(.*))?", re.MULTILINE)
    for path in SOURCES.rglob("*.py"):
        if path.name == "torch_private.py":
            continue
        text = path.read_text()
        for module, names in imports.findall(text):
            imported = [part.strip().split(" ")[0] for part in (names or "").split(",")]
            private_parts = [
                part
                for part in [*module.split("."), *imported]
                if part.startswith("_") and not part.startswith("__")
            ]
            assert not private_parts, f"{path.name} imports {private_parts} of {module}"
        assert "torch._C" not in text, path.name


def test_every_name_is_explained() -> None:
    assert private.__doc__ is not None
    explained = set(re.findall(r"\w+", private.__doc__))
    assert set(private.__all__) <= explained


def test_fakes_have_shape_and_storage_but_no_memory() -> None:
    with private.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = torch.empty(2**40)
        view = fake.view(2**20, 2**20).t()
    assert isinstance(fake, private.FakeTensor)
    assert fake.fake_mode is mode
    assert fake.device.type == "cpu"
    assert private.storage_key(view) == private.storage_key(fake)
    assert private.storage_key(torch.empty(1)) != private.storage_key(fake)
    assert fake.untyped_storage().nbytes() == 2**42


def test_fakes_refuse_values() -> None:
    with private.FakeTensorMode():
        fake = torch.ones(3)
        with pytest.raises(private.DataDependentOutputException) as caught:
            fake.sum().item()
        assert "_local_scalar_dense" in str(caught.value.func)
        with pytest.raises(private.DynamicOutputShapeException):
            fake.nonzero()
        constant = torch.tensor(3)
        assert constant.item() == 3
        assert constant.constant is not None  # type: ignore[attr-defined]
    assert issubclass(private.UnsupportedOperatorException, Exception)


class Seen(private.TorchDispatchMode):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []
        self.nodes: list[int | None] = []
        self.next: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert isinstance(func, private.OpOverload)
        self.ops.append(str(func))
        self.nodes.append(private.current_autograd_node())
        self.next.append(private.next_sequence_number())
        return func(*args, **(kwargs or {}))


def test_functionalization_leaves_pure_ops() -> None:
    with Seen() as seen:
        tensor = private.to_functional(torch.zeros(4))
        with private.functionalization():
            tensor[1:].add_(1)
            torch.relu_(tensor)
    assert private.is_functional(tensor)
    assert not private.is_functional(torch.zeros(1))
    pure = [name for name in seen.ops if name.startswith("aten")]
    assert "aten.add.Tensor" in pure
    assert "aten.relu.default" in pure
    assert not [name for name in pure if name.split(".")[1].endswith("_")]
    assert private.from_functional(tensor).tolist() == [0, 1, 1, 1]


def test_backward_ops_tell_their_forward_op() -> None:
    x = torch.ones(3, requires_grad=True)
    with Seen() as seen:
        y = x.sin()
        z = y.exp().sum()
        made_for = {name: number - 1 for name, number in zip(seen.ops, seen.next, strict=True)}
        seen.ops.clear()
        seen.nodes.clear()
        z.backward()
    cosine = seen.nodes[seen.ops.index("aten.cos.default")]
    assert cosine == made_for["aten.sin.default"]
    assert private.current_autograd_node() is None


def test_modes_can_be_left() -> None:
    with private.FakeTensorMode(), private.without_modes():
        assert type(torch.ones(1)) is torch.Tensor


def test_conversions_are_forgotten() -> None:
    with private.FakeTensorMode() as mode:
        parameter = nn.Linear(3, 5).weight
        torch.ones(7, 3)
        private.forget_conversions(mode)
        assert not weakref.getweakrefs(parameter)
        model = nn.Linear(17, 19)
        private.forget_conversions(mode)
        converted = model.weight.half()
        private.forget_conversions(mode)
        assert converted.dtype == torch.float16


def test_truncated_normal_runs_the_code_that_is_looked_for() -> None:
    class Frames(private.TorchDispatchMode):  # type: ignore[misc]
        found: Any = None

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            import sys

            frame = sys._getframe()
            while frame is not None:
                if frame.f_code is private.TRUNCATED_NORMAL:
                    self.found = dict(frame.f_locals)
                frame = frame.f_back  # type: ignore[assignment]
            return func(*args, **(kwargs or {}))

    weight = torch.empty(4)
    with Frames() as frames:
        nn.init.trunc_normal_(weight, 0.5, 2.0, -1.0, 3.0)
    assert frames.found is not None
    assert frames.found["tensor"] is weight
    taken = {name: frames.found[name] for name in ("mean", "std", "a", "b", "generator")}
    assert taken == {"mean": 0.5, "std": 2.0, "a": -1.0, "b": 3.0, "generator": None}


def test_libraries_are_told_not_to_look_at_values() -> None:
    with private.compiling():
        assert torch.compiler.is_compiling()
    assert not torch.compiler.is_compiling()


def test_recurrence_is_unfused() -> None:
    lstm = nn.LSTM(4, 4)
    with private.unfused_recurrence(), Seen() as seen:
        lstm(torch.zeros(2, 1, 4))
    assert not [name for name in seen.ops if "mkldnn" in name]


Pair = namedtuple("Pair", "first second")


def test_paths_of_leaves() -> None:
    tree = {"ids": 1, "rest": [2, Pair(3, (4,))]}
    leaves, spec = private.flatten_with_paths(tree, "batch")
    assert leaves == [
        ("batch['ids']", 1),
        ("batch['rest'][0]", 2),
        ("batch['rest'][1].first", 3),
        ("batch['rest'][1].second[0]", 4),
    ]
    assert isinstance(spec, private.TreeSpec)
    assert spec.unflatten([1, 2, 3, 4]) == tree
    assert private.flatten_with_paths(5, "batch")[0] == [("batch", 5)]
    assert private.flatten(tree)[0] == [1, 2, 3, 4]


def test_reentrant_checkpoints_add_to_gradients() -> None:
    layer = nn.Linear(2, 2)
    x = torch.ones(1, 2, requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=True).sum()
    with pytest.raises(RuntimeError):
        torch.autograd.grad(y, x, retain_graph=True)
    with private.checkpoints_may_accumulate():
        torch.autograd.grad(y, x)
    assert layer.weight.grad is not None


def test_hooks_of_a_parameter() -> None:
    one, two = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    one.register_hook(lambda gradient: gradient * 3)
    private.copy_gradient_hooks(one, two)
    two.sum().backward()
    assert two.grad is not None
    assert two.grad.tolist() == [3.0, 3.0]
    assert not private.has_accumulation_hooks(one)
    one.register_post_accumulate_grad_hook(lambda parameter: None)
    assert private.has_accumulation_hooks(one)


def test_batch_norms_have_a_base() -> None:
    for kind in (nn.BatchNorm1d, nn.BatchNorm3d, nn.SyncBatchNorm):
        assert issubclass(kind, private.BatchNormBase)


def test_lengths_go_through_shapes_views_and_gradients() -> None:
    environment = private.LengthsEnvironment()
    with private.FakeTensorMode() as mode:
        weight = torch.randn(6, 4, requires_grad=True)
        private.give_lengths(mode, environment)
        size, symbol, hint = private.new_length(environment, 13)
        positions = torch.empty((size,), dtype=torch.int64)
        rows = weight[positions]
        flat = (rows @ torch.randn(4, 5)).reshape(-1)
        (gradient,) = torch.autograd.grad(flat.mean(), weight)
    private.give_lengths(mode, None)
    assert gradient.shape == (6, 4)
    expression, symbols = private.length_terms(flat.shape[0])  # type: ignore[arg-type]
    assert symbols == (symbol,)
    assert expression == 5 * symbol
    assert hint == 13


def test_what_two_sizes_give_is_worked_out_once() -> None:
    environment = private.LengthsEnvironment()
    size, _, _ = private.new_length(environment, 13)
    assert (size * 5).node is (size * 5).node
    assert (size * 5).node is not (size * 7).node
    before = len(environment.made)
    assert bool(size * 5 == size * 5)
    assert not bool(size * 5 == size * 7)
    assert len(environment.made) > before


def test_ops_are_remembered_unless_told_not_to() -> None:
    with private.FakeTensorMode() as mode:
        x = torch.empty(3, 7, 11)
        private.remember_ops(mode, False)
        before = mode.cache_info()
        torch.cosh(x)
        assert mode.cache_info() == before
        private.remember_ops(mode, True)
        torch.cosh(x)
        assert mode.cache_info() != before


def test_distributions_look_at_no_values() -> None:
    wrong = torch.tensor(-1.0)
    # Importing PyTorch's compiler turns the checks off for the whole process.
    torch.distributions.Distribution.set_default_validate_args(True)
    with private.unchecked_distributions():
        torch.distributions.Normal(0.0, wrong)
    with pytest.raises(ValueError, match="scale"):
        torch.distributions.Normal(0.0, wrong)

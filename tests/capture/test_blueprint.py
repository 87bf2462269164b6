"""Weights made from a blueprint are bitwise those of plain PyTorch."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable

import models
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from meshwright.capture import Blueprint, blueprint
from meshwright.errors import CaptureError, ModelError
from meshwright.torch_private import FakeTensor


def clone(_: str, tensor: Tensor) -> Tensor:
    return tensor.clone()


def state(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def assert_same(made: dict[str, Tensor], model: nn.Module) -> None:
    expected = state(model)
    assert made.keys() == expected.keys()
    for name, tensor in expected.items():
        assert made[name].dtype == tensor.dtype, name
        assert torch.equal(made[name], tensor), name


class Inits(nn.Module):
    """Every initialiser of torch.nn.init, and constants of every kind."""

    def __init__(self) -> None:
        super().__init__()
        init = nn.init
        shapes = {"a": (6, 4), "b": (4, 6), "c": (5, 5), "d": (32, 24)}
        for name, shape in shapes.items():
            for initialise in (
                init.orthogonal_, init.kaiming_normal_, init.kaiming_uniform_,
                init.xavier_normal_, init.xavier_uniform_, init.trunc_normal_, init.eye_,
            ):  # fmt: skip
                weight = nn.Parameter(torch.empty(shape))
                initialise(weight)
                self.register_parameter(f"{name}_{initialise.__name__}", weight)
        self.narrow = nn.Parameter(init.trunc_normal_(torch.empty(50), std=1.0, a=0.5, b=0.7))
        self.sparse = nn.Parameter(init.sparse_(torch.empty(8, 8), 0.3))
        self.dirac = nn.Parameter(init.dirac_(torch.empty(4, 4, 3)))
        self.embed = nn.Embedding(7, 3, padding_idx=2)
        self.register_buffer("tensor", torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        self.register_buffer("arange", torch.arange(10).float() / 3)
        self.register_buffer("linspace", torch.linspace(0, 1, 7))
        self.register_buffer("mask", torch.tril(torch.ones(4, 4, dtype=torch.bool)))
        self.register_buffer("array", torch.from_numpy(np.arange(6.0).reshape(2, 3)))
        inverse = 1.0 / (10000 ** (torch.arange(0, 8, 2).float() / 8))
        self.register_buffer("angles", torch.outer(torch.arange(5).float(), inverse).cos())
        self.register_buffer("order", torch.randperm(9))
        self.last = nn.Parameter(torch.randn(3))


class Rewrites(nn.Module):
    """Writes that come late: through data, views, other parameters, and of everything at once."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.apply(self._init)
        self.layers[0].weight.data.normal_(0, 0.3)
        self.layers[1].weight.data = torch.randn(6, 6) * 2
        with torch.no_grad():
            self.layers[2].weight.copy_(self.layers[0].weight + 1)
            self.layers[2].weight[1:3] = 0.25
            self.layers[0].bias[::2].uniform_()
            for parameter in self.parameters():
                parameter.mul_(0.5).clamp_(-0.4, 0.4)
            torch._foreach_add_(list(self.parameters()), 0.01)
        self.tied = nn.Linear(6, 6, bias=False)
        self.tied.weight = self.layers[1].weight
        self.scaled = nn.Parameter(self.layers[0].weight.detach().t().contiguous())
        self.copied = copy.deepcopy(self.layers[2])
        self.norm = nn.BatchNorm1d(6)
        self.norm2 = copy.deepcopy(self.norm)

    def _init(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)


class Seeds(nn.Module):
    """Generators of its own, reseeding, and draws whose number the values decide."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(5))
        own = torch.Generator().manual_seed(7)
        self.own = nn.Parameter(torch.randn(5, generator=own))
        self.own_again = nn.Parameter(torch.empty(5).uniform_(generator=own))
        self.second = nn.Parameter(torch.randn(5))
        torch.manual_seed(123)
        self.reseeded = nn.Parameter(torch.randn(5))
        self.register_buffer("coins", torch.bernoulli(torch.rand(20)))
        self.register_buffer("drawn", torch.multinomial(torch.rand(9), 4))
        self.register_buffer("mean", torch.normal(torch.arange(6.0), 1.0))
        torch.poisson(torch.rand(30) * 3)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(9)
            self.forked = nn.Parameter(torch.randn(5))
        self.after_fork = nn.Parameter(torch.randn(5))
        own.manual_seed(7)
        self.own_reset = nn.Parameter(torch.randn(5, generator=own))
        self.last = nn.Parameter(torch.rand(4))


def default_dtype() -> nn.Module:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        return models.TinyGPT()
    finally:
        torch.set_default_dtype(before)


FACTORIES: dict[str, Callable[[], nn.Module]] = {
    "mlp": models.MLP,
    "gpt": models.TinyGPT,
    "convnet": models.ConvNet,
    "inits": Inits,
    "rewrites": Rewrites,
    "seeds": Seeds,
    "lstm": lambda: nn.LSTM(4, 4, num_layers=2),
    "attention": lambda: nn.MultiheadAttention(8, 2),
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2),
    "weight-norm": lambda: weight_norm(nn.Linear(8, 8)),
    "spectral-norm": lambda: spectral_norm(nn.Linear(8, 8)),
    "half": lambda: models.TinyGPT().half(),
    "to": lambda: models.TinyGPT().to(torch.bfloat16),
    "default-dtype": default_dtype,
    "conv-transposed": lambda: nn.ConvTranspose2d(3, 4, 3),
    "channels-last": lambda: nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_values_are_those_of_the_factory(name: str) -> None:
    factory = FACTORIES[name]
    plan = blueprint(factory)
    for seed in (0, 11):
        made = plan.materialize(seed, clone)
        torch.manual_seed(seed)
        model = factory()
        assert_same(made, model)


@pytest.mark.parametrize("name", ["gpt", "inits", "rewrites", "seeds"])
def test_any_subset_has_the_same_values(name: str) -> None:
    plan = blueprint(FACTORIES[name])
    every = plan.materialize(3, clone)
    names = list(every)
    for seed in range(4):
        chosen = set(random.Random(seed).sample(names, 3))
        some = plan.materialize(3, clone, chosen)
        assert some.keys() == chosen
        assert all(torch.equal(some[name], every[name]) for name in chosen)


def test_modules_hold_fakes_that_look_like_the_real_ones() -> None:
    plan = blueprint(models.TinyGPT)
    real = models.TinyGPT()
    for name, parameter in plan.module.named_parameters():
        assert isinstance(parameter, FakeTensor)
        assert isinstance(parameter, nn.Parameter)
        assert parameter.device.type == "cpu"
        assert parameter.shape == real.get_parameter(name).shape
    assert plan.module.head.weight is plan.module.embed.weight


def test_the_callers_random_state_stays() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    plan = blueprint(Seeds)
    plan.materialize(0, clone)
    blueprint(_meta(models.MLP)).materialize(0, clone)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_default_dtype() == torch.float32


def test_keep_decides_what_stays() -> None:
    made = blueprint(models.MLP).materialize(0, lambda name, tensor: tensor[:1].clone())
    assert {tensor.shape[0] for tensor in made.values()} == {1}


class Large(nn.Module):
    """8 parameters of 36 MiB, each written three times, the last time all together.

    So large that the allocator gives their memory back to the system at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3072, 3072, bias=False) for _ in range(8))
        for layer in self.layers:
            nn.init.normal_(layer.weight)
        with torch.no_grad():
            for layer in self.layers:
                layer.weight.mul_(0.1)


def test_about_one_parameter_lives_at_a_time() -> None:
    plan = blueprint(Large)
    most = 0

    def keep(_: str, tensor: Tensor) -> Tensor:
        nonlocal most
        most = max(most, resident_bytes())
        return tensor[:1, :1].clone()

    before = resident_bytes()
    plan.materialize(0, keep)
    assert most - before < 80 * 2**20  # of the 288 MiB that the model has


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_nothing_is_allocated_for_a_model_that_could_not_fit() -> None:
    plan = blueprint(lambda: nn.Linear(2**24, 2**24))
    assert plan.module.weight.numel() == 2**48


def test_a_given_module_is_not_touched() -> None:
    model = models.ConvNet()
    before = {name: tensor.clone() for name, tensor in state(model).items()}
    identities = {name: id(tensor) for name, tensor in state(model).items()}
    plan = blueprint(model)
    assert_same(plan.materialize(0, clone), model)
    assert {name: id(tensor) for name, tensor in state(model).items()} == identities
    assert all(torch.equal(before[name], tensor) for name, tensor in state(model).items())
    assert plan.module is not model


def test_a_module_that_cannot_be_copied_is_shared() -> None:
    model = models.TinyGPT()
    model.lock = __import__("threading").Lock()
    plan = blueprint(model)
    assert isinstance(plan.module.embed.weight, FakeTensor)
    assert plan.module.head.weight is plan.module.embed.weight
    assert not isinstance(model.embed.weight, FakeTensor)
    assert plan.module.lock is model.lock


def test_a_callable_may_return_a_module_that_exists() -> None:
    model = models.MLP()
    assert_same(blueprint(lambda: model).materialize(0, clone), model)


def _meta(factory: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return factory()


@pytest.mark.parametrize("callable_", [False, True])
def test_meta_modules_are_reset(callable_: bool) -> None:
    def factory() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Embedding(4, 4))

    plan = blueprint((lambda: _meta(factory)) if callable_ else _meta(factory))
    made = plan.materialize(3, clone)
    model = _meta(factory).to_empty(device="cpu")
    torch.manual_seed(3)
    for module in model:
        module.reset_parameters()
    assert_same(made, model)


def test_meta_modules_without_reset_are_named() -> None:
    with torch.device("meta"):
        model = models.TinyGPT()
    with pytest.raises(CaptureError, match=r"The top module \(TinyGPT\) owns place") as caught:
        blueprint(model)
    assert "reset_parameters" in caught.value.remedy


class NeedsValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
        self.scale = float(self.weight.detach().abs().max())


@pytest.mark.parametrize(
    "read", [float, lambda t: t.tolist(), lambda t: t.numpy(), np.asarray, bool, lambda t: t.item()]
)
def test_construction_that_needs_values(read: Callable[[Tensor], object]) -> None:
    with pytest.raises(CaptureError) as caught:
        blueprint(lambda: nn.Dropout(0.1 if read(torch.rand(())) else 0.2))
    assert "Build the module yourself and pass the module" in caught.value.remedy
    with pytest.raises(CaptureError):
        blueprint(NeedsValues)
    assert isinstance(blueprint(NeedsValues()), Blueprint)


def test_construction_that_loads_values(tmp_path: object) -> None:
    path = os.path.join(str(tmp_path), "weights.pt")
    torch.save(models.MLP().state_dict(), path)

    def factory() -> nn.Module:
        model = models.MLP()
        model.load_state_dict(torch.load(path))
        return model

    with pytest.raises(CaptureError) as caught:
        blueprint(factory)
    assert "pass the module" in caught.value.remedy


def test_construction_that_fails() -> None:
    with pytest.raises(CaptureError, match="raised ZeroDivisionError"):
        blueprint(lambda: nn.Linear(1 // 0, 1))
    with pytest.raises(ModelError, match="returned int"):
        blueprint(lambda: 3)  # type: ignore[arg-type,return-value]


def test_lazy_modules_are_named() -> None:
    with pytest.raises(CaptureError, match="weight has no shape yet"):
        blueprint(nn.LazyLinear(3))

"""Models by what they do to autograd and the compiler: custom functions and ops, derivatives."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call, grad, jacrev, vmap
from usercase import Case, noise, on_noise, square

from meshwright.task import Task


class Scaled(torch.autograd.Function):
    """Saves tensors and a number, non-tensor arguments, gradient None for them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, power: int, name: str) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.power = power
        ctx.mark_non_differentiable()
        return x.pow(power) * w

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, w = ctx.saved_tensors
        n = ctx.power
        needs = ctx.needs_input_grad
        return (
            gradient * w * n * x.pow(n - 1) if needs[0] else None,
            (gradient * x.pow(n)).sum(0) if needs[1] else None,
            None,
            None,
        )


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (x > 0)


class Setup(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        e = x.exp()
        return e / (1 + e), e

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        y, e = output
        ctx.mark_non_differentiable(e)
        ctx.save_for_backward(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return gradient * y * (1 - y)


class Cast(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class Reversed(torch.autograd.Function):
    """Gradient reversal."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
        ctx.alpha = alpha
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient.neg() * ctx.alpha, None


class RecomputedFunction(torch.autograd.Function):
    """Runs a module again in its backward, with grad enabled."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module, *params: Tensor) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x)
        with torch.no_grad():
            return layer(x).tanh()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = ctx.layer(x).tanh()
        made = torch.autograd.grad(y, (x, *ctx.layer.parameters()), gradient)
        return made[0], None, *made[1:]


class Functions(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.fc = nn.Linear(8, 8)
        self.w = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        if self.kind == "scaled":
            return Scaled.apply(h, self.w, 3, "name")
        if self.kind == "once":
            return Once.apply(h)
        if self.kind == "setup":
            return Setup.apply(h)[0]
        if self.kind == "cast":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return Cast.apply(self.fc(x))
        if self.kind == "reversed":
            return Reversed.apply(h, 0.5)
        if self.kind == "recomputed":
            return RecomputedFunction.apply(h, self.fc, *self.fc.parameters())
        raise AssertionError(self.kind)


class Energy(nn.Module):
    """Forces as the derivative of an energy: the loss differentiates them once more."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        energy = self.net(x)
        (force,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return energy, -force


def _force_matching(model: nn.Module, batch: Tensor) -> Tensor:
    energy, force = model(batch)
    return energy.pow(2).mean() + (force - batch).pow(2).mean()


def _gradient_penalty(model: nn.Module, batch: Tensor) -> Tensor:
    x = (batch * 0.5).requires_grad_(True)
    score = model(x)
    gradient = torch.autograd.grad(
        score, x, grad_outputs=torch.ones_like(score), create_graph=True, retain_graph=True
    )[0]
    return score.mean() + 10 * (gradient.norm(2, dim=1) - 1).pow(2).mean()


def _requires_grad_batch(model: nn.Module, batch: Tensor) -> Tensor:
    batch.requires_grad_()
    score = model(batch)
    (gradient,) = torch.autograd.grad(score.sum(), batch, create_graph=True)
    return score.mean() + gradient.pow(2).mean()


class Inner(nn.Module):
    """One inner gradient step on its own weights (MAML)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        params = dict(self.fc.named_parameters())
        loss = functional_call(self.fc, params, (x,)).pow(2).mean()
        grads = torch.autograd.grad(loss, tuple(params.values()), create_graph=True)
        fast = {k: p - 0.1 * g for (k, p), g in zip(params.items(), grads, strict=True)}
        return functional_call(self.fc, fast, (x,))


class Functional(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.fc = nn.Linear(8, 8)

    def one(self, x: Tensor) -> Tensor:
        return self.fc(x).tanh()

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "vmap":
            return vmap(self.one)(x)
        if self.kind == "grad":
            return vmap(grad(lambda y: self.one(y).sum()))(x)
        if self.kind == "jacobian":
            return vmap(jacrev(self.one))(x)
        if self.kind == "vmap-dropout":
            return vmap(lambda y: F.dropout(self.one(y), 0.3), randomness="different")(x)
        params = dict(self.fc.named_parameters())
        return functional_call(self.fc, {k: v * 2 for k, v in params.items()}, (x,))


@torch.library.custom_op("meshwright_tests::twice_plus", mutates_args=())
def twice_plus(x: Tensor, y: Tensor, scale: float) -> Tensor:
    return x * 2 + y * scale


@twice_plus.register_fake
def _(x: Tensor, y: Tensor, scale: float) -> Tensor:
    return torch.empty_like(x)


def _twice_backward(ctx: Any, gradient: Tensor) -> Any:
    return gradient * 2, gradient * ctx.scale, None


def _twice_context(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.scale = inputs[2]


twice_plus.register_autograd(_twice_backward, setup_context=_twice_context)


@torch.library.custom_op("meshwright_tests::no_fake", mutates_args=())
def no_fake(x: Tensor) -> Tensor:
    return x * 2


class CustomOp(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        if self.kind == "fake":
            return twice_plus(h, x, 0.5)
        return no_fake(h)


class Compiled(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        inner = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        if kind == "compiled":
            inner = torch.compile(inner, backend="eager")
        elif kind == "in-place":
            inner.compile(backend="eager")
        elif kind == "scripted":
            inner = torch.jit.script(inner)
        elif kind == "traced":
            inner = torch.jit.trace(inner, torch.randn(4, 8))
        elif kind == "data-parallel":
            inner = nn.DataParallel(inner)
        self.inner = inner
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "function":
            return torch.compile(lambda y: self.inner(y) * 2, backend="eager")(x)
        return self.inner(x)


def _net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))


CASES: dict[str, Case] = {
    **{
        f"function-{k}": on_noise(lambda k=k: Functions(k))
        for k in ("scaled", "once", "setup", "cast", "reversed", "recomputed")
    },
    "force-matching": Case(lambda: Task(Energy, _force_matching, noise(4, 8))),
    "gradient-penalty": Case(lambda: Task(_net, _gradient_penalty, noise(4, 8))),
    "gradient-penalty-batch": Case(lambda: Task(_net, _requires_grad_batch, noise(4, 8))),
    "inner-step": on_noise(Inner),
    **{
        f"func-{k}": on_noise(lambda k=k: Functional(k))
        for k in ("vmap", "grad", "jacobian", "call", "vmap-dropout")
    },
    "op-fake": on_noise(lambda: CustomOp("fake")),
    "op-none": on_noise(lambda: CustomOp("none"), refused="no fake implementation"),
    **{
        f"wrapped-{k}": on_noise(lambda k=k: Compiled(k))
        for k in ("compiled", "in-place", "function", "data-parallel")
    },
    **{
        f"module-{k}": Case(lambda k=k: Task(Compiled(k), square, noise(4, 8)))
        for k in ("compiled", "in-place", "function", "data-parallel")
    },
    "module-scripted": Case(
        lambda: Task(Compiled("scripted"), square, noise(4, 8)), refused="TorchScript"
    ),
    "module-traced": Case(
        lambda: Task(Compiled("traced"), square, noise(4, 8)), refused="TorchScript"
    ),
}

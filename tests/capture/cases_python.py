"""Models whose forward is full of Python: logging, hooks, structures, keyword arguments."""

from __future__ import annotations

import logging
import math
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from usercase import Case, ids, noise, on_noise, square

from meshwright.task import Task

log = logging.getLogger("a.user.model")


class Talking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 16)
        self.out = nn.Linear(16, 8)
        self.seen: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        log.info("input %s of %s", tuple(x.shape), x.dtype)
        print(f"shape {x.shape} and {x.size(0)} rows on {x.device}, {x.requires_grad}")
        warnings.warn(f"odd shape {list(x.shape)}", stacklevel=2)
        h = self.fc(x)
        self.seen.append(f"{h.shape=} {h.dim()} {h.numel()} {h.stride()} {h.is_contiguous()}")
        log.debug("activations %s", h)
        assert h.shape[-1] == 16
        assert not torch.jit.is_scripting()
        return self.out(F.gelu(h)) / math.sqrt(h.shape[-1])


class Hooked(nn.Module):
    """Hooks of the user's: they scale the input, change the output, or only look."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)
        self.features: dict[str, Tensor] = {}
        self.a.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
        self.a.register_forward_hook(lambda module, args, output: output.tanh())
        self.b.register_forward_hook(self._keep)
        self.b.register_forward_hook(
            lambda module, args, kwargs, output: output + kwargs.get("shift", 0), with_kwargs=True
        )

    def _keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.features["b"] = output.detach()

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(self.a(x)) + x
        return h + self.features["b"]


class BackwardHooked(nn.Module):
    """Gradient hooks: on a module, on a tensor, on a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)
        self.a.register_full_backward_hook(lambda module, gin, gout: (gin[0] * 0.5,))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(self.b(x).relu())
        if h.requires_grad:
            h.register_hook(lambda gradient: gradient * 3)
        return h


class ScaledGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.a.weight.register_hook(lambda gradient: gradient * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).tanh()


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).transpose(-1, -2)


class Positive(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x)

    def right_inverse(self, x: Tensor) -> Tensor:
        return torch.log(torch.expm1(x.abs() + 0.1))


class Parametrized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sym = nn.Linear(8, 8)
        self.pos = nn.Linear(8, 8)
        parametrize.register_parametrization(self.sym, "weight", Symmetric())
        parametrize.register_parametrization(self.pos, "weight", Positive())

    def forward(self, x: Tensor) -> Tensor:
        with parametrize.cached():
            return self.pos(self.sym(x).tanh()) + self.sym(x)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = weight_norm(nn.Linear(8, 8))
        self.s = spectral_norm(nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.s(self.w(x).tanh())


class OldNormed(nn.Module):
    """The older weight_norm and spectral_norm, which work by pre-hooks."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.w = nn.utils.weight_norm(nn.Linear(8, 8))
            self.s = nn.utils.spectral_norm(nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.s(self.w(x).tanh())


@dataclass
class Prediction:
    scores: Tensor
    hidden: Tensor | None = None
    name: str = "prediction"


class Pair(NamedTuple):
    scores: Tensor
    other: Tensor


class Structured(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor, *, scale: float = 1.0, mask: Tensor | None = None) -> Any:
        y = self.fc(x) * scale
        if mask is not None:
            y = y * mask
        if self.kind == "dataclass":
            return Prediction(y, hidden=x)
        if self.kind == "namedtuple":
            return Pair(y, x)
        if self.kind == "ordered":
            return OrderedDict(scores=y, deep={"list": [x, None, "text"]})
        return (y, (x, [y]), {"x": x})


def _scores(output: Any) -> Tensor:
    if isinstance(output, tuple) and not isinstance(output, Pair):
        return output[0]
    if isinstance(output, dict):
        return output["scores"]
    return output.scores


def _structured(kind: str) -> Case:
    def loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
        output = model(batch["x"], scale=0.5, mask=batch["mask"])
        return F.cross_entropy(_scores(output), batch["labels"])

    batch = {"x": noise(4, 8), "labels": ids(4, below=4), "mask": None}
    return Case(lambda: Task(lambda: Structured(kind), loss, batch))


class Nested(nn.Module):
    """Batches of batches with leaves that are no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, images: list[Tensor], meta: dict[str, Any], flag: bool = False) -> Tensor:
        x = torch.stack(images, 1).mean(1)
        x = self.fc(x)
        if meta["mode"] == "double" and flag:
            x = x * 2
        if meta["extra"] is not None:
            x = x + meta["extra"]
        return x.pow(2).mean() * meta["weights"][1]


def _nested(extra: bool) -> Case:
    batch = {
        "images": [noise(4, 8), noise(4, 8, seed=5)],
        "meta": {
            "mode": "double",
            "extra": noise(4, 8, seed=6) if extra else None,
            "weights": (0.5, 2.0),
        },
        "flag": True,
    }
    return Case(lambda: Task(Nested, None, batch))


@dataclass
class Graph:
    nodes: Tensor
    edges: Tensor
    name: str = "graph"


class Point(NamedTuple):
    x: Tensor
    y: Tensor
    label: Tensor


class OnPoint(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, batch: Point) -> Tensor:
        return F.cross_entropy(self.fc(batch.x + batch.y), batch.label)


class OnGraph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, graph: Graph) -> Tensor:
        return (self.fc(graph.nodes) * graph.edges).pow(2).mean()


class Shapes(nn.Module):
    """Python and NumPy on shapes, branches on them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, n = x.shape
        scale = float(np.sqrt(np.prod(x.shape)))
        table = np.arange(n, dtype=np.float32) / n
        x = x + torch.from_numpy(table) + torch.as_tensor(np.linspace(0, 1, n), dtype=x.dtype)
        if b % 2 == 0 and n > 4:
            x = self.fc(x)
        for _ in range(n // 4):
            x = x.tanh()
        return x / scale + len(x) + x.new_tensor([1.0] * n)


CASES: dict[str, Case] = {
    "talking": on_noise(Talking),
    "hooked": on_noise(Hooked),
    "backward-hooked": on_noise(BackwardHooked),
    "scaled-gradient": on_noise(ScaledGradient),
    "parametrized": on_noise(Parametrized),
    "orthogonal": Case(
        lambda: Task(nn.Sequential(orthogonal(nn.Linear(8, 8)), nn.Tanh()), square, noise(4, 8))
    ),
    "normed": on_noise(Normed),
    "old-normed": on_noise(OldNormed),
    **{
        f"output-{kind}": _structured(kind)
        for kind in ("dataclass", "namedtuple", "ordered", "tuple")
    },
    "nested": _nested(False),
    "nested-extra": _nested(True),
    "namedtuple-batch": Case(
        lambda: Task(OnPoint, None, Point(noise(4, 8), noise(4, 8, seed=5), ids(4, below=4)))
    ),
    "dataclass-batch": Case(lambda: Task(OnGraph, None, Graph(noise(4, 8), noise(4, 4)))),
    "shapes": on_noise(Shapes),
    "square-again": Case(lambda: Task(lambda: nn.Linear(8, 8, bias=False), square, noise(4, 8))),
}

"""Networks over images and volumes with their spatial dims cut, against one device.

Odd sizes throughout, so that parts differ, windows straddle them and some devices
hold nothing at the narrowest place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lower.test_special_lowerings import by_hand
from meshwright.api import Model, parallelize, plan, sgd, verify
from meshwright.cluster.mesh import Mesh
from meshwright.plan.types import Collective
from meshwright.runtime.comm import Communicator
from meshwright.runtime.lockstep import run_lockstep
from meshwright.task import Task

Decisions = list[tuple[str, str, int]]


class Volume(nn.Module):
    """A U-Net: strided, pooled and dilated on the way down, transposed and resampled up."""

    def __init__(self, norm: str = "group") -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 4, 3, padding=1)
        self.norm = {
            "group": lambda: nn.GroupNorm(2, 4),
            "instance": lambda: nn.InstanceNorm3d(4, affine=True),
            "batch": lambda: nn.BatchNorm3d(4),
        }[norm]()
        self.down = nn.Conv3d(4, 6, 3, stride=2, padding=1)
        self.deep = nn.Conv3d(6, 6, 3, padding=2, dilation=2)
        self.up = nn.ConvTranspose3d(6, 4, 2, stride=2)
        self.out = nn.Conv3d(8, 3, 3, padding=1, padding_mode="replicate")

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.norm(self.first(x)))
        low = F.relu(self.down(skip))
        lowest = F.relu(self.deep(F.max_pool3d(low, 3, 2, 1)))
        lowest = F.interpolate(lowest, size=low.shape[2:], mode="trilinear")
        high = self.up(low + lowest)
        high = high[:, :, : skip.shape[2], : skip.shape[3], : skip.shape[4]]
        return self.out(torch.cat([high, skip], 1))


def volumes(norm: str = "group", n: int = 2) -> Task:
    seeded = torch.Generator().manual_seed(3)
    x = torch.randn(n, 1, 9, 7, 5, generator=seeded)
    y = torch.randint(3, (n, 9, 7, 5), generator=seeded)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        scores = model(batch[0])
        likely = scores.softmax(1)
        truth = F.one_hot(batch[1], 3).movedim(-1, 1).to(likely.dtype)
        dims = (2, 3, 4)
        dice = (2 * (likely * truth).sum(dims) + 1) / ((likely + truth).sum(dims) + 1)
        return F.cross_entropy(scores, batch[1]) + 1 - dice.mean()

    return Task(lambda: Volume(norm), loss, (x, y), "volume")


def side(axis: str, dim: int) -> Decisions:
    """Dim 0 is the first after the channels."""
    return [(axis, "batch[0]", dim + 2), (axis, "batch[1]", dim + 1)]


def check(task: Task, mesh: dict[str, int], decisions: Decisions, **options: Any) -> None:
    model = Model(task)
    made = by_hand(model, mesh, *decisions)
    result = verify(task, plan=made, model=model, steps=2, **options)
    assert result.equal, result


BATCH: Decisions = [("data", "batch[0]", 0), ("data", "batch[1]", 0)]


NORMS = ("group", "instance", "batch")
CUTS: tuple[tuple[dict[str, int], Decisions], ...] = (
    ({"spatial": 2}, side("spatial", 0)),
    ({"spatial": 4}, side("spatial", 0)),
    ({"spatial": 3}, side("spatial", 2)),
    ({"spatial": 2, "edge": 2}, side("spatial", 0) + side("edge", 1)),
    ({"spatial": 2, "edge": 3}, side("spatial", 2) + side("edge", 0)),
    ({"data": 2, "spatial": 2}, BATCH + side("spatial", 1)),
    ({"spatial": 2, "tensor": 2}, [*side("spatial", 0), ("tensor", "down.weight", 1)]),
    ({"tensor": 2, "spatial": 2}, [("tensor", "deep.weight", 0), *side("spatial", 1)]),
    ({"data": 2, "spatial": 2}, side("data", 0) + side("spatial", 0)),
)


@pytest.mark.parametrize(
    ("norm", "mesh", "decisions"),
    # Norms in turn; each cut with each of them in the longer sweep.
    [
        pytest.param(norm, *cut, marks=() if turn % 3 == kind else pytest.mark.all)
        for turn, cut in enumerate(CUTS)
        for kind, norm in enumerate(NORMS)
    ],
    ids=str,
)
def test_a_unet_of_volumes(norm: str, mesh: dict[str, int], decisions: Decisions) -> None:
    check(volumes(norm), mesh, decisions)


class Around(nn.Module):
    """One image op between two convolutions."""

    def __init__(self, op: Callable[[Tensor], Tensor] | nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.op = op
        self.last = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.op(torch.tanh(self.first(x))))


OPS: dict[str, Callable[[], Callable[[Tensor], Tensor] | nn.Module]] = {
    "far": lambda: nn.Conv2d(4, 4, 3, padding=6, dilation=6),
    "depthwise": lambda: nn.Conv2d(4, 4, 5, padding=2, groups=4),
    "one window": lambda: nn.Conv2d(4, 4, (11, 3), padding=(0, 1)),
    "layer norm of images": lambda: nn.LayerNorm([4, 11, 6]),
    "unpadded pool": lambda: nn.AvgPool2d(3, 2, ceil_mode=True, count_include_pad=False),
    "max": lambda: nn.MaxPool2d(3, 2, 1),
    "pyramid": lambda: (
        lambda x: x + F.interpolate(F.adaptive_avg_pool2d(x, (3, 2)), (11, 6), mode="bilinear")
    ),
    "global": lambda: lambda x: x * F.adaptive_avg_pool2d(x, 1),
    "image pooling": lambda: (
        lambda x: torch.cat(
            [x[:, :2], F.interpolate(F.adaptive_avg_pool2d(x[:, 2:], 1), (11, 6), mode="bilinear")],
            1,
        )
    ),
    "adaptive max": lambda: nn.AdaptiveMaxPool2d((4, 3)),
    "cubic": lambda: nn.Upsample(scale_factor=1.5, mode="bicubic"),
    "corners": lambda: nn.Upsample(size=(17, 9), mode="bilinear", align_corners=True),
    "nearest": lambda: nn.Upsample(scale_factor=2),
    "reflected": lambda: nn.ReflectionPad2d((1, 2, 3, 1)),
    "padded": lambda: nn.ZeroPad2d((1, 2, 3, -1)),
    "cropped": lambda: lambda x: x[:, :, 1:-2],
    "every other": lambda: lambda x: x[:, :, ::2],
    "transposed": lambda: nn.ConvTranspose2d(4, 4, 3, 2, 1, 1),
    "shuffled": lambda: nn.Sequential(nn.Conv2d(4, 16, 1), nn.PixelShuffle(2)),
}


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param({"spatial": 2}, marks=pytest.mark.all),  # as the first of the two axes below
        {"spatial": 4},
        {"spatial": 2, "edge": 2},
    ],
    ids=str,
)
def test_an_image_op_between_convolutions(name: str, mesh: dict[str, int]) -> None:
    seeded = torch.Generator().manual_seed(4)
    x = torch.randn(2, 2, 11, 6, generator=seeded)

    def loss(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
        return model(batch[0]).square().mean()

    task = Task(lambda: Around(OPS[name]()), loss, (x,), name)
    decisions = [("spatial", "batch[0]", 2), *([("edge", "batch[0]", 3)] if "edge" in mesh else [])]
    check(task, mesh, decisions)


class Signal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 4, 5, stride=2)
        self.second = nn.Conv1d(4, 4, 3, padding=2, dilation=2, padding_mode="reflect")
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(F.pad(torch.tanh(self.first(x)), (2, 0)), 2)
        x = F.interpolate(F.avg_pool1d(self.second(x), 2, 1), scale_factor=2, mode="linear")
        return self.head(x.mean(-1))


@pytest.mark.parametrize("parts", [2, 3])
def test_a_signal(parts: int) -> None:
    seeded = torch.Generator().manual_seed(5)
    batch = torch.randn(3, 1, 37, generator=seeded), torch.randint(3, (3,), generator=seeded)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    check(Task(Signal, loss, batch, "signal"), {"spatial": parts}, [("spatial", "batch[0]", 2)])


class Attending(nn.Module):
    """Attention among the pixels of the narrowest place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3, stride=2, padding=1)
        self.qkv = nn.Conv2d(8, 24, 1)
        self.last = nn.ConvTranspose2d(8, 2, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        low = self.first(x)
        q, k, v = self.qkv(low).flatten(2).unflatten(1, (3, 2, 4)).transpose(-1, -2).unbind(1)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).flatten(1, 2)
        return self.last(low + mixed.unflatten(-1, low.shape[2:]))


@pytest.mark.parametrize("parts", [2, 4])
def test_attention_among_pixels(parts: int) -> None:
    x = torch.randn(2, 2, 12, 8, generator=torch.Generator().manual_seed(6))

    def loss(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
        return F.mse_loss(model(batch[0]), batch[0])

    check(
        Task(Attending, loss, (x,), "attending"), {"spatial": parts}, [("spatial", "batch[0]", 2)]
    )


@pytest.mark.parametrize("strategy", ["spatial=2", "spatial=4", "data=2,spatial=2"])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_what_runs_is_what_the_plan_lists(strategy: str, microbatches: int) -> None:
    """Halo included; and a spatial strategy gathers nothing of a U-Net."""
    task = volumes(n=4)
    model = Model(task)
    devices = 2 if strategy == "spatial=2" else 4
    made = plan(task, f"local:{devices}", strategy, model=model, microbatches=microbatches)
    kinds = {item.kind for item in made.predicted.collectives if item.axis == "spatial"}
    assert kinds == {"halo", "all_reduce"}

    def rank(comm: Communicator) -> tuple[Collective, ...]:
        job = parallelize(
            task, optimizer=sgd, plan=made, communicator=comm, model=model, device="cpu"
        )
        job.reset_counts()
        job.step(task.batch)
        return job.executed()

    ran = run_lockstep(Mesh(tuple(made.mesh.items())), rank)
    assert ran[0] == made.predicted.collectives
    for other in ran[1:]:
        assert {(c.kind, c.axis, c.count) for c in other} == {
            (c.kind, c.axis, c.count) for c in ran[0]
        }

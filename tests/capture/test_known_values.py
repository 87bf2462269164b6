"""Values that follow from constants and shapes may be read, while building and in the step."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from meshwright.api import verify
from meshwright.capture.trace import capture
from meshwright.errors import CaptureError
from meshwright.task import Task


class Positions(nn.Module):
    """Reads what it makes of the length of its input alone, in several ways."""

    def __init__(self, how):
        super().__init__()
        self.layer, self.how = nn.Linear(4, 4), how

    def forward(self, x):
        positions = torch.arange(x.shape[1])
        return self.layer(self.how(x, positions)).square().mean()


def task(how):
    return Task(lambda: Positions(how), lambda model, batch: model(batch), torch.randn(8, 6, 4))


def _by_item(x, positions):
    return x * (positions.max().item() + 1)


def _by_bool(x, positions):
    return x * 2 if torch.any(positions.diff() != 1) else x * 3


def _by_slice(x, positions):
    last = positions[-1]
    return x[:, last - 2 : last + 1]


def _by_list(x, positions):
    return sum(x[:, k] for k in (positions * 2 % 6).tolist())


def _by_size(x, positions):
    return x[:, : int(torch.full((), 3).int())] + torch.zeros(positions[3] * 1, 4)


def _by_equal(x, positions):
    return x * 2 if torch.equal(positions, torch.arange(6)) else x


@pytest.mark.parametrize("how", [_by_item, _by_bool, _by_slice, _by_list, _by_size, _by_equal])
def test_what_follows_from_the_shape_can_be_read(how):
    assert verify(task(how), "local:4", "data").equal


@pytest.mark.parametrize(
    "how",
    [
        lambda x, positions: x * (x[0, 0, 0] + positions[0]).item(),
        lambda x, positions: x * torch.rand(3).sum().item(),
        lambda x, positions: x if (positions.float() * x[0, :, 0]).sum() > 0 else x * 2,
    ],
)
def test_what_depends_on_the_batch_or_on_a_draw_is_refused(how):
    with pytest.raises(CaptureError, match="values"):
        capture(task(how))


class Depths(nn.Module):
    """Layers with rates of stochastic depth, read one by one as they are built."""

    def __init__(self):
        super().__init__()
        rates = [rate.item() for rate in torch.linspace(0, 0.4, 3)]
        rates += torch.linspace(0, 0.2, 2).tolist()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in rates)
        self.rates = rates

    def forward(self, x):
        for layer, rate in zip(self.layers, self.rates, strict=True):
            x = x + F.dropout(layer(x), rate, self.training)
        return x.square().mean()


def test_rates_are_read_while_the_model_is_built():
    result = verify(
        Task(Depths, lambda model, batch: model(batch), torch.randn(8, 4)), "local:4", "zero=3"
    )
    assert result.equal


def test_weights_are_not_read_while_the_model_is_built():
    def build():
        layer = nn.Linear(4, 4)
        layer.scale = layer.weight[0, 0].item()
        return layer

    with pytest.raises(CaptureError, match="needs the values"):
        capture(Task(build, lambda model, batch: model(batch).sum(), torch.randn(8, 4)))


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (nn.AdaptiveAvgPool1d(1), (8, 6, 5)),
        (nn.AdaptiveAvgPool2d(1), (8, 6, 5, 4)),
        (nn.AdaptiveAvgPool2d((1, 1)), (8, 6, 5, 4)),
        (nn.AdaptiveAvgPool2d((1, 2)), (8, 6, 5, 4)),
        (nn.AdaptiveAvgPool3d(1), (8, 6, 3, 5, 4)),
    ],
)
def test_pooling_to_a_cell_of_what_lies_channels_last(pool, shape):
    class Pools(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x):
            return pool(self.layer(x.transpose(1, -1)).transpose(1, -1)).square().mean()

    made = Task(Pools, lambda model, batch: model(batch), torch.randn(shape))
    assert verify(made, "local:4", "data").equal

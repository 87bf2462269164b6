import pytest
import torch
import torch.nn.functional as F

from meshwright.api import verify
from meshwright.capture.bags import embedding_bag
from meshwright.errors import CaptureError
from meshwright.task import Task

FLAT = torch.tensor([1, 5, 2, 2, 0, 7, 3, 3, 3, 1])
OFFSETS = torch.tensor([0, 3, 3, 8])  # the second bag is empty


def both(*args, **kwargs):
    """Result and gradient of PyTorch's function and of ours."""
    found = []
    for function in (F.embedding_bag, embedding_bag):
        torch.manual_seed(0)
        weight = torch.randn(8, 3, requires_grad=True)
        made = function(args[0], weight, *args[1:], **kwargs)
        (made * torch.randn(made.shape)).sum().backward()
        found.append((made.detach(), weight.grad))
    return found


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 3, -1])
@pytest.mark.parametrize(
    ("indices", "offsets", "last"),
    [
        (FLAT.view(5, 2), None, False),
        (FLAT.view(10, 1), None, False),
        (FLAT, OFFSETS, False),
        (FLAT, torch.tensor([0, 3, 3, 8, 10]), True),
    ],
    ids=["even", "one each", "offsets", "last offset"],
)
def test_bags_are_pytorchs(indices, offsets, last, padding, mode):
    given = {"mode": mode, "padding_idx": padding, "include_last_offset": last}
    (theirs, gradient), (ours, ours_gradient) = both(indices, offsets, **given)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(ours_gradient, gradient)


@pytest.mark.parametrize("offsets", [None, OFFSETS], ids=["even", "offsets"])
def test_weighted_bags_are_pytorchs(offsets):
    indices = FLAT.view(5, 2) if offsets is None else FLAT
    weights = torch.rand(indices.shape)
    theirs, ours = both(indices, offsets, mode="sum", per_sample_weights=weights)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
def test_bags_that_cannot_be_the_same_everywhere_are_refused(option):
    with pytest.raises(CaptureError) as caught:
        embedding_bag(FLAT.view(5, 2), torch.randn(8, 3), **option)
    assert next(iter(option)) in caught.value.message
    assert caught.value.remedy


class Bags(torch.nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.table = torch.nn.EmbeddingBag(16, 8, mode=mode)
        self.head = torch.nn.Linear(8, 4)

    def forward(self, *given):
        return self.head(self.table(*given))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("strategy", ["zero=3", "data=2,tensor=2"])
def test_bags_of_a_model_equal_one_device(mode, strategy):
    batch = (torch.randint(16, (8, 3)), torch.randint(4, (8,)))

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    found = verify(Task(lambda: Bags(mode), loss, batch), "local:4", strategy)
    assert found.equal, found


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_with_offsets_equal_one_device(mode):
    batch = (torch.randint(16, (12,)), torch.tensor([0, 3, 3, 7]), torch.randint(4, (4,)))

    def loss(model, batch):
        return F.cross_entropy(model(*batch[:2]), batch[2])

    found = verify(Task(lambda: Bags(mode), loss, batch), "local:4", "data=2,tensor=2")
    assert found.equal, found

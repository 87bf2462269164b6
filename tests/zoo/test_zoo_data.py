import itertools
import sys

import pytest
import torch

from meshwright.errors import ModelError
from meshwright.task import Task
from meshwright.zoo.convnet import convnet_task
from meshwright.zoo.data import batches_for
from meshwright.zoo.digits import DigitBatches, digits
from meshwright.zoo.gpt import gpt_task
from meshwright.zoo.mlp import mlp_task
from meshwright.zoo.text import TokenBatches, batches, stdlib_text

DATA = {
    "text": lambda seed: batches(seed, batch=3, seq_len=20),
    "digits": lambda seed: DigitBatches(seed, batch=3),
}


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_text_is_large_and_the_same_each_time():
    text = stdlib_text()
    assert len(text) > 2_000_000
    stdlib_text.cache_clear()
    assert stdlib_text() == text


def test_targets_are_the_next_tokens():
    text = bytes(range(200))
    ids, targets = TokenBatches(text, seed=0, batch=5, seq_len=7)[0]
    assert ids.shape == targets.shape == (5, 7)
    assert ids.dtype == targets.dtype == torch.int64
    assert torch.equal(ids + 1, targets)


def test_the_last_window_can_be_drawn():
    ids, targets = TokenBatches(b"abcd", seed=0, batch=2, seq_len=3)[0]
    assert ids.tolist() == [[97, 98, 99]] * 2
    assert targets.tolist() == [[98, 99, 100]] * 2


@pytest.mark.parametrize("name", DATA)
def test_a_batch_depends_on_seed_and_step_alone(name):
    make = DATA[name]
    uninterrupted = list(itertools.islice(make(1), 6))
    assert equal(make(1)[5], uninterrupted[5])
    assert not equal(make(1)[5], make(1)[4])
    assert not equal(make(1)[5], make(2)[5])


def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(ModelError, match="a window needs 11"):
        TokenBatches(b"0123456789", seed=0, batch=1, seq_len=10)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    digits.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModelError) as caught:
        DigitBatches(0, batch=1)
    assert "pip install scikit-learn" in caught.value.remedy
    assert isinstance(caught.value.__cause__, ImportError)


@pytest.mark.parametrize(
    "task",
    [
        gpt_task(layers=1, seq_len=12, global_batch=3),
        convnet_task(image_size=16, channels=3, global_batch=3),
        mlp_task(global_batch=3),
    ],
    ids=lambda task: task.name,
)
def test_zoo_data_is_shaped_like_the_example_batch(task):
    drawn = batches_for(task, seed=0)[0]
    for tensor, example in zip(drawn, task.batch, strict=True):
        assert tensor.shape == example.shape
        assert tensor.dtype == example.dtype


def test_a_model_from_elsewhere_has_no_zoo_data():
    assert batches_for(Task(model=torch.nn.Identity(), loss=None, batch=None)) is None


@pytest.mark.parametrize(
    "task",
    [mlp_task(features=8), gpt_task(vocab=64), convnet_task(classes=4)],
    ids=lambda task: task.name,
)
def test_data_that_does_not_fit_the_model_is_refused(task):
    with pytest.raises(ModelError):
        batches_for(task)


def test_convnet_learns_the_digits():
    torch.manual_seed(0)
    task = convnet_task(width=8, global_batch=64)
    model = task.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    data = batches_for(task, seed=0)
    losses = []
    for step in range(30):
        loss = task.loss(model, data[step])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 < losses[0]

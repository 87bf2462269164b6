import pickle

import pytest
import torch
from torch import nn

from meshwright.errors import ModelError
from meshwright.task import Task
from meshwright.zoo.convnet import convnet_task
from meshwright.zoo.gpt import gpt_task
from meshwright.zoo.mlp import mlp_task
from meshwright.zoo.registry import FACTORIES

SMALL = {
    "gpt": {"layers": 2, "width": 32, "heads": 4, "seq_len": 16, "global_batch": 2},
    "convnet": {"width": 8, "global_batch": 4},
    "mlp": {"hidden": 16, "global_batch": 4},
    "deeplab": {"size": "tiny"},
    "diffusion-unet": {"size": "tiny"},
    "dit": {"size": "tiny"},
    "dlrm": {"size": "tiny"},
    "gns": {"size": "tiny"},
    "lstm": {"size": "tiny"},
    "moe": {"size": "tiny"},
    "ncf": {"size": "tiny"},
    "resnet50": {"size": "tiny"},
    "unet3d": {"size": "tiny"},
}


def build(task: Task) -> nn.Module:
    assert not isinstance(task.model, nn.Module)
    return task.model()


def count(task: Task) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build(task).parameters())


def test_every_zoo_model_has_a_small_form_here():
    assert set(SMALL) == set(FACTORIES)


@pytest.mark.parametrize("name", SMALL)
def test_forward_backward_and_loss_are_finite(name):
    task = FACTORIES[name](**SMALL[name])
    model = build(task)
    loss = task.loss(model, task.batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert loss.shape == ()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name


@pytest.mark.parametrize("name", SMALL)
def test_example_batch_and_initial_parameters_are_deterministic(name):
    first, second = (FACTORIES[name](**SMALL[name]) for _ in range(2))
    for a, b in zip(first.batch, second.batch, strict=True):
        assert torch.equal(a, b)
    states = []
    for task in (first, second):
        torch.manual_seed(3)
        states.append(build(task).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("name", SMALL)
def test_the_builder_can_be_sent_to_another_process(name):
    task = FACTORIES[name](**SMALL[name])
    assert isinstance(pickle.loads(pickle.dumps(task.model))(), nn.Module)


def test_gpt_has_the_parameters_of_its_shape():
    width, layers, vocab, seq_len = 384, 6, 256, 128
    block = 12 * width**2 + 13 * width
    assert count(gpt_task()) == (vocab + seq_len) * width + layers * block + 2 * width
    assert 10e6 < count(gpt_task()) < 15e6


def test_gpt_ties_its_head_and_starts_near_uniform():
    task = gpt_task(**SMALL["gpt"])
    model = build(task)
    assert model.lm_head.weight is model.token_embedding.weight
    assert abs(task.loss(model, task.batch).item() - 5.545) < 0.1  # ln 256


def test_gpt_is_causal():
    model = build(gpt_task(**SMALL["gpt"])).eval()
    ids = torch.randint(256, (1, 16))
    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] + 1) % 256
    with torch.no_grad():
        assert torch.equal(model(ids)[:, :-1], model(changed)[:, :-1])


def test_gpt_dropout_acts_in_training_alone():
    model = build(gpt_task(**SMALL["gpt"], dropout=0.5))
    ids = torch.randint(256, (1, 16))
    with torch.no_grad():
        assert not torch.equal(model(ids), model(ids))
        model.eval()
        assert torch.equal(model(ids), model(ids))


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (9, 2), (32, 3)])
def test_convnet_takes_images_of_8_to_32(size, channels):
    task = convnet_task(width=4, image_size=size, channels=channels, global_batch=2)
    assert build(task)(task.batch[0]).shape == (2, 10)


def test_convnet_counts():
    width = 32
    wide = 2 * width
    expected = 9 * width + 2 * width + 9 * width * wide + 2 * wide
    expected += 2 * 2 * (9 * wide**2 + 2 * wide) + wide * 10 + 10
    assert count(convnet_task()) == expected


def test_mlp_counts():
    assert count(mlp_task()) == 64 * 256 + 256 + 2 * (256**2 + 256) + 256 * 10 + 10


@pytest.mark.parametrize(
    ("factory", "options", "says"),
    [
        (gpt_task, {"width": 100, "heads": 6}, "not a multiple of heads=6"),
        (gpt_task, {"layers": 0}, "layers is 0"),
        (gpt_task, {"dropout": 1.5}, "dropout is 1.5"),
        (convnet_task, {"image_size": 64}, "image_size is 64"),
        (mlp_task, {"hidden": -1}, "hidden is -1"),
    ],
)
def test_impossible_shapes_are_refused(factory, options, says):
    with pytest.raises(ModelError) as caught:
        factory(**options)
    assert says in caught.value.message
    assert caught.value.remedy

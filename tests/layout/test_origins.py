from collections import Counter

import pytest

from meshwright.api import Model, plan
from meshwright.zoo.reference import load_task

SMALL = {"layers": "3", "width": "32", "heads": "4", "seq_len": "16"}


@pytest.fixture(scope="module")
def model():
    return Model(load_task("zoo:gpt", SMALL))


@pytest.mark.parametrize(
    "strategy", ["data", "tensor", "zero=1", "data=2,tensor=2,zero=3", "zero=2,microbatches=2"]
)
def test_origins_add_up_to_the_planned_collectives(model, strategy):
    made = plan(model.task, "local:4", strategy, model=model, clip_norm=1.0)
    counted: Counter[tuple[str, str]] = Counter()
    moved: Counter[tuple[str, str]] = Counter()
    for item in made.origins:
        counted[item.kind, item.axis] += item.count
        moved[item.kind, item.axis] += item.bytes
    assert {(c.kind, c.axis): c.count for c in made.predicted.collectives} == dict(counted)
    assert {(c.kind, c.axis): c.bytes for c in made.predicted.collectives} == dict(moved)


def test_the_plan_names_megatrons_four_reductions_of_a_layer(model):
    made = plan(model.task, "local:4", "tensor", model=model)
    of_blocks = {
        (item.part, item.module): item.count for item in made.origins if "blocks" in item.module
    }
    assert of_blocks == {
        ("forward", "blocks.*.attn.proj"): 3,
        ("forward", "blocks.*.mlp.proj"): 3,
        ("backward", "blocks.*.ln_1"): 3,
        ("backward", "blocks.*.ln_2"): 3,
    }
    assert "blocks.*.attn.proj" in str(made)

"""What users fix: it is obeyed, it changes no number, and contradictions are named together."""

from __future__ import annotations

from functools import cache

import pytest

from meshwright.api import Model, plan, verify
from meshwright.cluster.mesh import Mesh
from meshwright.errors import StrategyError
from meshwright.layout.assignment import Assignment, assign
from meshwright.plan.types import Plan
from meshwright.search.constraints import apply, check, parse
from meshwright.search.strategy import mesh_for, parse_strategy
from meshwright.zoo.reference import load_task

GPT = {"layers": 2, "width": 32, "heads": 4, "vocab": 64, "seq_len": 16, "global_batch": 8}
OPTIONS = {
    "zoo:gpt": GPT,
    "zoo:mlp": {"features": 12, "hidden": 16, "layers": 2, "classes": 5, "global_batch": 8},
    "zoo:moe": {"size": "tiny", "layers": 1},
    "zoo:dlrm": {"size": "tiny"},
    "zoo:resnet50": {"size": "tiny"},
}


@cache
def model(name: str) -> Model:
    return Model(load_task(name, OPTIONS[name]))


def planned(name: str, strategy: str, *constraints: str) -> Plan:
    return plan(
        model(name).task, "local:4", strategy, model=model(name), constraints=constraints
    )  # fmt: skip


def assigned(name: str, made: Plan) -> Assignment:
    mesh = Mesh(tuple(made.mesh.items()))
    analysis = model(name).microbatch(made.microbatches)[1]
    return assign(analysis, mesh, made.decisions, made.parameters)


def refused(name: str, strategy: str, *constraints: str) -> StrategyError:
    with pytest.raises(StrategyError) as caught:
        planned(name, strategy, *constraints)
    assert caught.value.remedy
    return caught.value


def dims(assignment: Assignment, path: str, axis: str) -> int | None:
    split = assignment.parameters[path].compute.split(axis)
    return None if split is None else split.dim


@pytest.mark.parametrize("strategy", ["data=2,tensor=2", "data=2,tensor=2,zero=3"])
def test_a_parameter_stays_whole_and_the_rest_is_cut(strategy: str) -> None:
    made = planned("zoo:gpt", strategy, "layout token_embedding.weight=whole")
    found = assigned("zoo:gpt", made)
    table = found.parameters["token_embedding.weight"]
    assert table.storage.shards == ()
    assert dims(found, "blocks.1.mlp.fc.weight", "tensor") == 0
    assert not any(item.value == "token_embedding.weight" for item in made.decisions)
    assert made.constraints == ("layout token_embedding.weight=whole",)


def test_one_of_a_group_stays_whole() -> None:
    made = planned("zoo:gpt", "data=2,tensor=2", "layout blocks.0.mlp.fc.weight=whole:tensor")
    found = assigned("zoo:gpt", made)
    assert dims(found, "blocks.0.mlp.fc.weight", "tensor") is None
    assert dims(found, "blocks.0.mlp.proj.weight", "tensor") == 1
    assert dims(found, "blocks.1.mlp.fc.weight", "tensor") == 0
    assert verify(model("zoo:gpt").task, plan=made, model=model("zoo:gpt"), steps=2).equal


def test_a_parameter_is_cut_where_it_was_asked_to_be() -> None:
    made = planned("zoo:gpt", "data=2,tensor=2", "layout blocks.*.mlp.fc.weight=-1:tensor")
    found = assigned("zoo:gpt", made)
    for layer in range(2):
        assert dims(found, f"blocks.{layer}.mlp.fc.weight", "tensor") == 1
    assert made.decisions[0].fixed == "cut"
    assert verify(model("zoo:gpt").task, plan=made, model=model("zoo:gpt"), steps=2).equal


def test_the_inside_of_a_dim_is_cut() -> None:
    made = planned("zoo:gpt", "tensor", "layout blocks.0.attn.qkv.weight=0[3,4]:tensor")
    split = assigned("zoo:gpt", made).parameters["blocks.0.attn.qkv.weight"].compute.split("tensor")
    assert split is not None
    assert (split.outer, split.extent) == (3, 4)


@pytest.mark.parametrize(
    "text", ["blocks.*.mlp.fc/view.1=whole", "blocks.*.mlp.fc/view.1=1:tensor"]
)
def test_what_an_op_makes_lies_as_asked(text: str) -> None:
    """By the lowered program itself: the op after it gets it so."""
    from meshwright.lower.lower import lower

    made = planned("zoo:gpt", "data=2,tensor=2", f"layout {text}")
    assignment = assigned("zoo:gpt", made)
    analysis = model("zoo:gpt").microbatch(1)[1]
    lowered = lower(analysis, assignment, assignment.mesh.coordinate(0))
    for layer in range(2):
        name = f"blocks.{layer}.mlp.fc/view.1"
        found = [lay for local, lay in lowered.layouts.items() if local.partition("@")[0] == name]
        splits = [layout.split("tensor") for layout in found]
        if text.endswith("whole"):
            assert any(layout.shards == () for layout in found)
        else:
            assert any(split is not None and split.dim == 1 for split in splits)
    assert verify(model("zoo:gpt").task, plan=made, model=model("zoo:gpt"), steps=2).equal


def test_modules_are_pinned() -> None:
    pins = ("pin blocks.0=use", "pin token_embedding=replicated", "pin blocks.1.mlp.*=step")
    made = planned("zoo:gpt", "data=2,tensor=2,zero=2", *pins)
    found = assigned("zoo:gpt", made)
    assert found.parameters["blocks.0.attn.proj.weight"].residency == "use"
    assert found.parameters["blocks.0.attn.proj.weight"].storage.split("data") is not None
    assert found.parameters["blocks.1.mlp.fc.weight"].residency == "step"
    assert found.parameters["blocks.1.attn.proj.weight"].residency == "microbatch"
    assert found.parameters["token_embedding.weight"].storage.shards == ()
    assert made.parameters["token_embedding.weight"].residency == "always"
    assert verify(model("zoo:gpt").task, plan=made, model=model("zoo:gpt"), steps=2).equal


def test_residency_can_be_asked_for_beside_plain_data_parallelism() -> None:
    made = planned("zoo:mlp", "data", "pin *=use")
    assert {item.residency for item in made.parameters.values()} == {"use"}


@pytest.mark.parametrize(
    ("name", "strategy", "constraints"),
    [
        ("zoo:moe", "data=2,expert=2", ("pin *.gate=replicated", "layout *norm*=whole")),
        ("zoo:dlrm", "data=2,tensor=2", ("layout tables.0.weight=whole",)),
        pytest.param(
            "zoo:resnet50",
            "data=2,tensor=2,zero=1",
            ("layout head.weight=whole", "pin stem=replicated"),
            marks=pytest.mark.all,
        ),
        ("zoo:mlp", "auto", ("mesh tensor=2,data=2", "forbid zero=3")),
        ("zoo:mlp", "auto", ("forbid data",)),
    ],
)
def test_numbers_are_those_of_one_device(
    name: str, strategy: str, constraints: tuple[str, ...]
) -> None:
    made = planned(name, strategy, *constraints)
    parsed = parse(constraints)
    check(parsed, model(name).microbatch(1)[1], assigned(name, made))
    assert verify(model(name).task, plan=made, model=model(name), steps=2).equal


def test_auto_keeps_to_the_mesh_and_its_order() -> None:
    made = planned("zoo:mlp", "auto", "mesh tensor=2,data=2")
    assert list(made.mesh.items()) == [("tensor", 2), ("data", 2)]
    everything = (made, *made.alternatives)
    assert all(dict(item.mesh) == {"tensor": 2, "data": 2} for item in everything)
    assert planned("zoo:mlp", "auto", "mesh tensor=4").mesh["tensor"] == 4


def test_auto_leaves_out_what_is_forbidden() -> None:
    made = planned("zoo:mlp", "auto", "forbid tensor", "forbid zero=3", "forbid zero=1,data=4")
    for item in (made, *made.alternatives):
        assert item.mesh.get("tensor", 1) == 1
        assert "zero=3" not in item.strategy
        assert not ({"zero=1", "data=4"} <= set(item.strategy.split(",")))


def test_auto_finds_an_axis_for_a_layout() -> None:
    made = planned("zoo:mlp", "auto", "layout hidden.0.weight=0:tensor")
    assert made.mesh["tensor"] > 1
    assert dims(assigned("zoo:mlp", made), "hidden.0.weight", "tensor") == 0


def test_applied_twice_is_applied_once() -> None:
    analysis = model("zoo:gpt").microbatch(1)[1]
    found = parse(["layout blocks.1.mlp.fc.weight=whole", "pin blocks.0=use"])
    mesh = mesh_for(parse_strategy("data=2,tensor=2"), 4)
    made = planned("zoo:gpt", "data=2,tensor=2")
    once = apply(found, analysis, mesh, made.decisions, made.parameters)
    assert apply(found, analysis, mesh, *once) == once
    assert once[0] != made.decisions


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("layuot a=whole", "Did you mean 'layout'"),
        ("layout", "means nothing"),
        ("layout a", "does not say how 'a' lies"),
        ("layout a=wohle", "does not say how 'a' lies"),
        ("layout a=0:tensr", "Did you mean 'tensor'"),
        ("layout a=0:stage", "no axis that values are cut over"),
        ("layout a=0:tensor,1:tensor", "two dims over one axis"),
        ("mesh tensor", "no axis with its size"),
        ("mesh data=2,data=2", "there twice"),
        ("mesh data=2,stage=2", "stage inside of others"),
        ("forbid tensr", "Did you mean 'tensor'"),
        ("forbid zero=7", "stages are 0, 1, 2 and 3"),
        ("forbid auto", "forbids auto"),
        ("pin a=gone", "what 'a' is pinned to"),
        ("pin a", "what 'a' is pinned to"),
    ],
)
def test_what_does_not_parse_is_named(text: str, says: str) -> None:
    with pytest.raises(StrategyError) as caught:
        parse([text])
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("strategy", "constraints", "says"),
    [
        ("data", ("layout hidden.0.weight=0:tensor", "layout hidden.*.weight=1:tensor"),
         "cut hidden.0.weight over tensor in two ways"),
        ("auto", ("layout hidden.0.weight=0:tensor", "pin hidden=replicated"), "leaves it whole"),
        ("auto", ("pin hidden.0=use", "pin hidden.*=step"), "to use and step"),
        ("auto", ("pin hidden.0=use", "layout hidden.0.*=whole"), "leaves it whole"),
        ("auto", ("mesh tensor=4", "forbid tensor"), "forbids what 'mesh tensor=4'"),
        ("data=2,tensor=2", ("forbid tensor",), "the strategy 'data=2,tensor=2'"),
        ("zero=3", ("forbid zero=3",), "the strategy 'zero=3'"),
        ("auto", ("forbid tensor", "layout hidden.0.weight=0:tensor"),
         "'forbid tensor' forbids what 'layout hidden.0.weight=0:tensor'"),
        ("auto", ("forbid zero", "pin hidden.0=use"), "'pin hidden.0=use'"),
        ("data=4", ("mesh data=2,tensor=2",), "give the axis data 2 and 4 devices"),
        ("auto", ("mesh data=3",), "a mesh of 3 devices, but the cluster has 4"),
        ("auto", ("mesh data=4", "layout hidden.0.weight=0:tensor"), "has no axis tensor"),
        ("data", ("layout hidden.0.weight=0:tensor",), "does not have"),
        ("tensor", ("pin hidden.0=use",), "an axis that the mesh tensor 4 does not have"),
    ],
)  # fmt: skip
def test_contradictions_are_named_together(
    strategy: str, constraints: tuple[str, ...], says: str
) -> None:
    error = refused("zoo:mlp", strategy, *constraints)
    assert says in error.message
    named = [text for text in constraints if f"'{text}'" in error.message]
    assert named == list(constraints)


def test_all_of_them_are_in_one_error() -> None:
    error = refused(
        "zoo:mlp", "auto", "layout nothing.here=whole", "layout hidden.0.weight=5:tensor",
        "pin hiden=use",
    )  # fmt: skip
    assert "'layout nothing.here=whole' names nothing" in error.message
    assert "cuts dim 5 of hidden.0.weight, whose shape is [16, 16]" in error.message
    assert "did you mean hidden" in error.message


def test_a_dim_that_can_not_be_cut() -> None:
    error = refused("zoo:resnet50", "tensor", "layout *conv1.weight=2:tensor")
    assert "convolution" in error.message
    assert "can't be divided" in error.message
    error = refused("zoo:mlp", "tensor", "layout hidden.0.weight=0[4,1]:tensor")
    assert "cuts 1 of dim 0" in error.message


def test_layers_that_are_treated_unlike_others_are_known() -> None:
    names = [f"layers.{k}.{part}.weight" for k in range(4) for part in ("norm_1", "norm_2", "fc")]
    assert not parse(["layout *.norm_1.*=whole", "pin hidden=use"]).singled_out(names)
    found = parse(["layout layers.2.fc.weight=whole", "forbid tensor"])
    assert found.singled_out(names) == ("layers.2.fc.weight",)
    assert found.names_single_layers(names)


def test_forbidden_microbatches_leave_other_counts():
    """What is forbidden of the count says nothing of a candidate that has another."""
    task = load_task("zoo:mlp", {"hidden": "16", "global_batch": "8"})
    model = Model(task)
    made = plan(task, "local:2", "auto", model=model, constraints=["forbid microbatches=1"])
    assert made.microbatches > 1
    with pytest.raises(StrategyError, match="forbid microbatches=1"):
        plan(task, "local:2", "data", model=model, constraints=["forbid microbatches=1"])

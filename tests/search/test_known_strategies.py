"""The strategies that experts know, for models of the kinds that they know them for.

The cheap tests hold the strategy, by name, beside its rivals: that it is simulated as the
fastest that fits, how the plan is made, and its collectives by arithmetic. `auto` finding it
by itself from the plain model is a longer test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from known_models import slow_network, transformer, zoo

from meshwright.api import Model, plan
from meshwright.cluster.parse import parse_cluster
from meshwright.cluster.types import Cluster
from meshwright.errors import NoPlanFits
from meshwright.plan.types import Plan

LAYERS = 2
Structure = Callable[[Plan], None]


def counts(made: Plan, axis: str) -> dict[str, int]:
    """Collectives over an axis, one for each tensor."""
    found = made.predicted.before_merging or made.predicted.collectives
    return {item.kind: item.count for item in found if item.axis == axis}


def axes(made: Plan) -> dict[str, int]:
    return {name: size for name, size in made.mesh.items() if size > 1}


def residencies(made: Plan) -> set[str]:
    return {item.residency for item in made.parameters.values()}


def cut(made: Plan, path: str) -> set[str]:
    """Axes over which a parameter lies cut between steps."""
    return {item.axis for item in made.parameters[path].cuts}


GATHERS = {"always": 0, "step": 1, "microbatch": 1, "use": 2}  # of one microbatch


def gathered(made: Plan) -> int:
    """Gathers of parameters that are stored in parts: once a step, or forward and backward."""
    return sum(GATHERS[item.residency] for item in made.parameters.values())


def reductions(made: Plan, axis: str) -> int:
    found = counts(made, axis)
    return found.get("all_reduce", 0) + found.get("reduce_scatter", 0)


# Structure of each


def small(made: Plan) -> None:
    """Data parallel, whatever is stored where: each gradient and the loss are reduced once."""
    assert axes(made) == {"data": 8}
    assert reductions(made, "data") == 9 * LAYERS + 1 + 1
    assert counts(made, "data").get("all_gather", 0) == gathered(made)
    predicted = made.predicted
    assert predicted.compute_s is not None
    assert predicted.communication_s is not None
    # Reduced beside the backward.
    assert predicted.step_time_s < predicted.compute_s + predicted.communication_s


def sharded(made: Plan) -> None:
    """Every matrix is stored in parts and gathered for each use, none is cut for the compute."""
    sizes = axes(made)
    assert sizes.keys() <= {"replica", "data"}
    assert sizes["data"] >= 8
    assert "use" in residencies(made)
    assert cut(made, "layers.0.gate.weight") == {"data"}
    assert cut(made, "layers.1.query.weight") == {"data"}
    times, kinds = made.microbatches, [item.residency for item in made.parameters.values()]
    each = sum(times if kind in ("microbatch", "use") else 1 for kind in kinds)
    assert reductions(made, "data") == each + times  # and the loss
    if "replica" in sizes:
        # Once a step, but for norms', of which each microbatch makes a whole one.
        assert len(kinds) + times <= reductions(made, "replica") <= each + times
    once = kinds.count("step")
    assert counts(made, "data")["all_gather"] == times * (gathered(made) - once) + once
    assert counts(made, "replica").keys() <= {"all_reduce"}


def sharded_inside(made: Plan) -> None:
    """Stored over the devices of a host alone; only parts of gradients cross the network."""
    sharded(made)
    assert axes(made) == {"replica": 8, "data": 8}
    reduced = {c.axis: c.bytes for c in made.predicted.collectives if c.kind == "all_reduce"}
    scattered = {c.axis: c.bytes for c in made.predicted.collectives if c.kind == "reduce_scatter"}
    assert scattered.keys() == {"data"}
    parts = scattered["data"] / 8  # of each microbatch, and reduced over hosts once a step
    assert 0.99 * parts / made.microbatches < reduced["replica"] < 1.01 * parts


def wide(made: Plan) -> None:
    """Megatron's, each of its four reductions a layer a scatter and a gather.

    Over all devices, or over parts of them, which then store what they don't share in parts.
    """
    sizes = axes(made)
    assert sizes.keys() <= {"data", "tensor"}
    assert sizes["tensor"] >= 4
    found = counts(made, "tensor")
    assert 4 * LAYERS <= found["reduce_scatter"] <= 4 * LAYERS + 2
    assert 4 * LAYERS <= found["all_gather"] <= 4 * LAYERS + 2
    assert cut(made, "layers.0.gate.weight") == cut(made, "layers.1.query.weight") == sizes.keys()


def both(made: Plan) -> None:
    """Tensor inside a host, the batch and the storage of each part outside of it."""
    sizes = axes(made)
    assert list(sizes)[-1] == "tensor"
    assert sizes.keys() <= {"replica", "data", "tensor"}
    assert 2 <= sizes["tensor"] <= 8
    assert cut(made, "layers.0.gate.weight") == {"data", "tensor"}
    layers = len(made.parameters) // 9
    found = counts(made, "tensor")
    assert 4 * layers <= found["reduce_scatter"] <= 4 * layers + 2
    assert 4 * layers <= found["all_gather"] <= 4 * layers + 2


def long(made: Plan) -> None:
    assert axes(made) == {"context": 8}
    assert ("batch[0]", 1) in {(item.value, item.dim) for item in made.decisions}
    found = counts(made, "context")
    if BY_OP in made.strategy:
        # From positions to heads and back around attention: queries, keys, values and what it
        # gives, in the forward and in the backward.
        assert found["all_to_all"] == 8 * LAYERS
        assert found["all_gather"] == gathered(made)
        assert reductions(made, "context") == 9 * LAYERS + 1 + 1
        return
    # Keys and values are gathered, and their gradients scattered, in each layer.
    assert found["all_gather"] == 2 * LAYERS + gathered(made)
    assert reductions(made, "context") == 2 * LAYERS + 9 * LAYERS + 1 + 1


def experts(made: Plan) -> None:
    assert "expert" in axes(made)
    assert cut(made, "blocks.0.moe.w_up") >= {"expert"}
    assert "expert" not in {
        item.axis for item in made.decisions if "attention" in item.value or "gate.w" in item.value
    }
    # To the experts and back, and in the backward both again.
    assert counts(made, "expert")["all_to_all"] == 4 * LAYERS


def graph(made: Plan) -> None:
    """Edges are cut. One sum of messages a step of the network each way, where nodes are whole."""
    assert axes(made) == {"edge": 8}
    assert ("batch[1]", 1) in {(item.value, item.dim) for item in made.decisions}  # [2, edges]
    if BY_OP in made.strategy:
        # Nodes may lie cut as well; nothing that is moved is as large as the messages.
        nodes = 256**2 * 128 * 4
        assert all(o.bytes // o.count <= nodes for o in made.origins if o.part != "reduce")
        return
    per_part: dict[str, int] = {}
    for origin in made.origins:
        if origin.kind == "all_reduce" and origin.part in ("forward", "backward"):
            per_part[origin.part] = per_part.get(origin.part, 0) + origin.count
    assert per_part["forward"] == STEPS
    assert counts(made, "edge").keys() == {"all_reduce"}


def volume(made: Plan) -> None:
    assert axes(made) == {"spatial": 8}
    found = counts(made, "spatial")
    assert found.keys() == {"all_reduce", "halo"}
    convolutions = sum("weight" in path for path in made.parameters)
    assert found["halo"] >= convolutions // 2  # most windows reach over a part's border


def images(made: Plan) -> None:
    """Data parallel; each batch norm sums twice forward (mean, squares) and once backward."""
    assert axes(made) == {"data": 32}
    of_part = {
        part: sum(o.count for o in made.origins if (o.part, o.kind) == (part, "all_reduce"))
        for part in ("forward", "backward")
    }
    norms = sum(item.endswith("running_mean") for item in _buffers("resnet50"))
    assert norms == 53
    assert of_part == {"forward": 2 * norms + 1, "backward": norms}  # one for the loss
    assert reductions(made, "data") == 3 * norms + 1 + len(made.parameters)


def tables(made: Plan) -> None:
    """Every device has a part of each large table and of the batch; lookups are exchanged."""
    sizes = axes(made)
    assert sizes.keys() <= {"replica", "data"}
    batch = {item.axis for item in made.decisions if (item.value, item.dim) == ("batch[0]", 0)}
    assert batch == sizes.keys()
    wide = [path for path in made.parameters if path.startswith("tables") and cut(made, path)]
    assert {f"tables.{k}.weight" for k in (0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19)} <= set(wide)
    for path in ("tables.0.weight", "tables.16.weight"):
        assert cut(made, path) == sizes.keys()
        assert made.parameters[path].residency == "always"
    # What is looked up, once each way, with the dense part's own vector.
    exchanged = sum(c.bytes for c in made.predicted.collectives if c.kind == "all_to_all")
    vectors = 65536 * 128 * 4 // 16
    assert 2 * len(wide) * vectors <= exchanged <= 2 * (26 + 2) * vectors
    # Gradients of the dense part and of small tables, and a loss.
    reduced = sum(
        c.bytes for c in made.predicted.collectives if c.kind in ("all_reduce", "reduce_scatter")
    )
    assert reduced < 2**25


def _buffers(name: str) -> list[str]:
    program = zoo(name, size="full").microbatch(1)[0].program
    return [item.path for item in program.inputs_of("buffer")]


BY_OP = "each op by itself"  # what the search calls plans that groups of dims don't make
STEPS = 3
SMALL = {
    "layers": LAYERS, "width": 768, "heads": 12, "hidden": 2048, "vocab": 32000, "seq_len": 1024,
    "batch": 64,
}  # fmt: skip
# Layers of Llama-3 405B's size with 16,384 tokens a device: for fewer, gathers over a network
# of 400 Gb/s a device take longer than the products that use them, and tensor parallelism
# inside a host, which divides them, is the better plan. Four such layers with their gradients
# and states are 120 GiB, three 92 GiB. With one microbatch a tenth of that network bounds
# whatever crosses it, gathers or gradients, and tensor parallelism divides both; with two,
# gradients cross it once a step.
LARGE = {
    "width": 16384, "heads": 128, "hidden": 53248, "vocab": 32000, "seq_len": 8192, "batch": 128,
}  # fmt: skip
WIDE = {
    "layers": LAYERS, "width": 12288, "heads": 96, "hidden": 32768, "vocab": 32000,
    "seq_len": 2048,
}  # fmt: skip
LONG = {
    "layers": LAYERS, "width": 2048, "heads": 16, "hidden": 5504, "vocab": 32000,
    "seq_len": 131072, "batch": 1,
}  # fmt: skip
MANY_EXPERTS = {
    "size": "full", "layers": "2", "global_batch": "128", "seq_len": "2048", "experts": "128",
    "width": "2048", "heads": "16", "kv_heads": "16", "hidden": "5632",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    model: Callable[[], Model]
    cluster: Callable[[], Cluster]
    strategy: str
    rivals: tuple[str, ...]
    structure: Structure
    options: dict[str, object] = field(default_factory=dict)


ROWS = {
    "a small transformer on one host": Row(
        lambda: transformer(**SMALL), lambda: parse_cluster("1x8:h100-sxm"), "data",
        ("tensor", "tensor,sequence", "data=2,tensor=4", "context"), small,
    ),
    "parameters that do not fit, a slow network": Row(
        lambda: transformer(**{**LARGE, "batch": 256}, layers=3),
        lambda: slow_network("8x8:h100-sxm"),
        "replica=8,data=8,zero=3,microbatches=2",
        ("data", "zero=1", "zero=2", "zero=3,microbatches=2", "data=8,tensor=8,sequence",
         "data=32,tensor=2,sequence,zero=1,microbatches=4",
         "data=32,tensor=2,sequence,zero=2,microbatches=2",
         "replica=8,data=4,tensor=2,sequence,zero=3,microbatches=2"),
        sharded_inside,
    ),
    "parameters that do not fit, a fast network": Row(
        lambda: transformer(**LARGE, layers=4), lambda: parse_cluster("8x8:h100-sxm"), "zero=3",
        ("data", "zero=1", "zero=2", "data=8,tensor=8,sequence", "replica=8,data=8,zero=3",
         "data=32,tensor=2,sequence,zero=3"),
        sharded,
    ),
    "a wide transformer with a small batch on one host": Row(
        lambda: transformer(**WIDE, batch=2), lambda: parse_cluster("1x8:h100-sxm"),
        "tensor,sequence", ("tensor", "context"), wide,
    ),
    # 29 G parameters: 217 GiB whole, and 2,048 tokens a device, too few to gather them for.
    "a wide transformer on many hosts": Row(
        lambda: transformer(**{**WIDE, "layers": 16}, batch=128),
        lambda: parse_cluster("16x8:h100-sxm"), "data=32,tensor=4,sequence,zero=1",
        ("zero=3", "data=16,tensor=8,sequence,zero=1", "data=8,tensor=16,sequence,zero=1"), both,
    ),
    "one long sequence": Row(
        lambda: transformer(**LONG), lambda: parse_cluster("1x8:h100-sxm"), "context",
        ("tensor", "tensor,sequence", "context=4,tensor=2"), long,
    ),
    "a mixture of experts": Row(
        lambda: zoo("moe", **MANY_EXPERTS), lambda: parse_cluster("16x8:h100-sxm"), "expert",
        ("zero=1", "zero=3", "data=16,expert=8,zero=1", "data=16,tensor=8,zero=1"), experts,
    ),
    "one large graph": Row(
        lambda: zoo("gns", size="full", steps=str(STEPS)), lambda: parse_cluster("1x8:h100-sxm"),
        "edge", ("tensor", "edge=4,tensor=2"), graph,
    ),
    "one large volume": Row(
        lambda: zoo("unet3d", size="full", levels="5", global_batch="1"),
        lambda: parse_cluster("1x8:h100-sxm"), "spatial", ("tensor", "spatial=4,tensor=2"), volume,
    ),
    "huge tables": Row(
        lambda: zoo("dlrm", size="full"), lambda: parse_cluster("2x8:h100-sxm"), "tables",
        ("zero=3", "tensor", "data=2,tensor=8"), tables,
    ),
    "images": Row(
        lambda: zoo("resnet50", size="full"), lambda: parse_cluster("4x8:h100-sxm"), "data",
        ("zero=3", "data=4,tensor=8", "data=8,spatial=4"), images,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(ROWS))
def test_what_experts_would_choose_is_simulated_as_the_fastest_that_fits(name: str) -> None:
    row = ROWS[name]
    model, cluster = row.model(), row.cluster()
    made = plan(model.task, cluster, row.strategy, model=model)
    row.structure(made)
    for rival in row.rivals:
        try:
            other = plan(model.task, cluster, rival, model=model)
        except NoPlanFits:
            continue
        assert made.predicted.step_time_s < other.predicted.step_time_s, rival


@pytest.mark.all
@pytest.mark.parametrize("name", ROWS)
def test_auto_finds_it_from_the_plain_model(name: str) -> None:
    row = ROWS[name]
    model, cluster = row.model(), row.cluster()
    found = plan(model.task, cluster, "auto", model=model, budget_s=120)
    assert found.predicted.peak_memory_bytes <= cluster.memory_bytes
    row.structure(found)
    named = plan(model.task, cluster, row.strategy, model=model)
    assert found.predicted.step_time_s <= named.predicted.step_time_s * (1 + 1e-9)


@pytest.mark.parametrize("layers", [3, pytest.param(32, marks=pytest.mark.all)])
def test_data_parallelism_reduces_each_gradient_and_the_loss(layers: int) -> None:
    """Of a transformer with 9 parameter tensors a layer and an embedding: 289 for 32 layers."""
    model = transformer(**{**SMALL, "layers": layers})
    made = plan(model.task, "1x8:h100-sxm", "data", model=model)
    assert counts(made, "data") == {"all_reduce": 9 * layers + 1 + 1}
    merged = {item.kind: item.count for item in made.predicted.collectives}
    assert 2 <= merged["all_reduce"] < 9 * layers + 2


@pytest.mark.parametrize("layers", [3, pytest.param(32, marks=pytest.mark.all)])
def test_megatrons_layout_has_four_reductions_a_layer(layers: int) -> None:
    """128 for 32 layers. Beside them: rows of the embedding, the head's input, and four of one
    number a token or fewer, for the loss over a vocabulary that is cut."""
    model = transformer(**{**SMALL, "layers": layers})
    made = plan(model.task, "1x8:h100-sxm", "tensor", model=model)
    stream = SMALL["batch"] * SMALL["seq_len"] * SMALL["width"] * 2
    assert counts(made, "tensor") == {"all_reduce": 4 * layers + 2 + 4}
    large = [item for item in made.origins if item.bytes // item.count == stream]
    # The loss's small ones share an origin with the embedding's.
    assert sum(item.count for item in large) in (4 * layers + 1, 4 * layers + 2)

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


def with_memory(cluster: Cluster, nbytes: float) -> Cluster:
    """The cluster with so much memory a device: few layers then need what many would."""
    groups = tuple(
        group.model_copy(
            update={"profile": group.profile.model_copy(update={"memory_bytes": int(nbytes)})}
        )
        for group in cluster.groups
    )
    return cluster.model_copy(update={"groups": groups})


# Structure of each


def small(made: Plan) -> None:
    """Data parallel, whatever is stored where: no product is cut."""
    assert axes(made).keys() <= {"data", "replica"}
    assert counts(made, "tensor") == {}


def sharded(made: Plan) -> None:
    """Every large parameter is stored over all devices, none is cut for the compute."""
    assert axes(made) == {"data": 64}
    assert "use" in residencies(made)
    assert cut(made, "layers.0.gate.weight") == {"data"}


def sharded_inside(made: Plan) -> None:
    """Stored over the devices of a host alone; only parts of gradients cross the network."""
    assert axes(made) == {"replica": 8, "data": 8}
    assert cut(made, "layers.0.gate.weight") == {"data"}
    reduced = {c.axis: c.bytes for c in made.predicted.collectives if c.kind == "all_reduce"}
    scattered = {c.axis: c.bytes for c in made.predicted.collectives if c.kind == "reduce_scatter"}
    assert scattered.keys() == {"data"}
    assert abs(reduced["replica"] / (scattered["data"] / 8) - 1) < 0.01


def wide(made: Plan) -> None:
    """Megatron's, each of its four reductions a layer a scatter and a gather."""
    assert axes(made) == {"tensor": 8}
    found = counts(made, "tensor")
    assert 4 * LAYERS <= found["reduce_scatter"] <= 4 * LAYERS + 2
    assert 4 * LAYERS <= found["all_gather"] <= 4 * LAYERS + 2
    assert cut(made, "layers.0.gate.weight") == cut(made, "layers.1.query.weight") == {"tensor"}


def both(made: Plan) -> None:
    """Tensor inside a host, data outside of it with storage cut over data as well."""
    assert list(axes(made)) == ["data", "tensor"]
    assert axes(made)["tensor"] <= 8
    assert cut(made, "layers.0.gate.weight") == {"data", "tensor"}


def long(made: Plan) -> None:
    assert axes(made) == {"context": 8}
    found = counts(made, "context")
    # Keys and values are gathered, and their gradients scattered, in each layer.
    assert found["all_gather"] == found["reduce_scatter"] == 2 * LAYERS


def experts(made: Plan) -> None:
    assert "expert" in axes(made)
    assert cut(made, "blocks.0.moe.w_up") >= {"expert"}
    assert "expert" not in {
        item.axis for item in made.decisions if "attention" in item.value or "gate.w" in item.value
    }
    # To the experts (twice: two views of what they take) and back; backward both again, and
    # what they took once more for each of two gradients of weights.
    assert counts(made, "expert")["all_to_all"] == 7 * LAYERS


def graph(made: Plan) -> None:
    """One sum of messages a step of the network each way; nodes are whole."""
    assert axes(made) == {"edge": 8}
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
    """Data parallel; each batch norm reduces its statistics, forward and backward."""
    assert axes(made) == {"data": 32}
    forward = [o for o in made.origins if o.part == "forward" and o.kind == "all_reduce"]
    norms = sum(item.endswith("running_mean") for item in _buffers("resnet50"))
    assert sum(item.count for item in forward) == norms + 1  # and the loss


def tables(made: Plan) -> None:
    """No device has a whole large table; the dense part sees a part of the batch."""
    assert cut(made, "tables.0.weight")
    assert made.parameters["tables.0.weight"].residency == "always"
    assert any(item.value.startswith("batch[0]") and item.dim == 0 for item in made.decisions)
    assert not cut(made, "head.weight")


def _buffers(name: str) -> list[str]:
    program = zoo(name, size="full").microbatch(1)[0].program
    return [item.path for item in program.inputs_of("buffer")]


STEPS = 3
SMALL = {
    "layers": LAYERS, "width": 768, "heads": 12, "hidden": 2048, "vocab": 32000, "seq_len": 1024,
    "batch": 64,
}  # fmt: skip
LARGE = {
    "layers": 3, "width": 8192, "heads": 64, "hidden": 28672, "vocab": 32000, "seq_len": 4096,
    "batch": 64,
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
    strategy: str | None  # None where no name says it
    rivals: tuple[str, ...]
    structure: Structure
    options: dict[str, object] = field(default_factory=dict)


ROWS = {
    "a small transformer on one host": Row(
        lambda: transformer(**SMALL), lambda: parse_cluster("1x8:h100-sxm"), "data",
        ("zero=3", "tensor", "tensor,sequence", "data=2,tensor=4", "context"), small,
    ),
    "parameters that do not fit, a slow network": Row(
        lambda: transformer(**LARGE),
        lambda: with_memory(slow_network("8x8:h100-sxm"), 12e9), "replica=8,data=8,zero=3",
        ("data", "zero=1", "zero=2", "zero=3", "data=8,tensor=8,zero=3", "data=8,tensor=8"),
        sharded_inside,
    ),
    "parameters that do not fit, a fast network": Row(
        lambda: transformer(**LARGE), lambda: with_memory(parse_cluster("8x8:h100-sxm"), 12e9),
        "zero=3",
        ("data", "zero=1", "zero=2", "data=8,tensor=8", "replica=8,data=8,zero=3"), sharded,
    ),
    "a wide transformer with a small batch on one host": Row(
        lambda: transformer(**WIDE, batch=2), lambda: parse_cluster("1x8:h100-sxm"),
        "tensor,sequence", ("tensor", "context"), wide,
    ),
    "a wide transformer on many hosts": Row(
        lambda: transformer(**WIDE, batch=64), lambda: parse_cluster("16x8:h100-sxm"),
        "data=16,tensor=8,sequence,zero=1",
        ("data=16,tensor=8,sequence", "data=16,tensor=8,zero=1", "data=16,tensor=8"), both,
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
        lambda: zoo("dlrm", size="full"), lambda: parse_cluster("2x8:h100-sxm"), None,
        ("zero=3", "tensor", "data=2,tensor=8"), tables,
    ),
    "images": Row(
        lambda: zoo("resnet50", size="full"), lambda: parse_cluster("4x8:h100-sxm"), "data",
        ("zero=3", "data=4,tensor=8", "data=8,spatial=4"), images,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.strategy])
def test_what_experts_would_choose_is_simulated_as_the_fastest_that_fits(name: str) -> None:
    row = ROWS[name]
    model, cluster = row.model(), row.cluster()
    made = plan(model.task, cluster, row.strategy or "", model=model)
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
    found = plan(model.task, cluster, "auto", model=model, budget_s=60)
    assert found.predicted.peak_memory_bytes <= cluster.memory_bytes
    row.structure(found)
    if row.strategy:
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

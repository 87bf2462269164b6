"""Small lowered programs, written by hand, whose figures can be worked out on paper."""

from __future__ import annotations

from meshwright.cluster.mesh import Mesh
from meshwright.cluster.types import Cluster, HostGroup, LinkLevel, Point, Profile
from meshwright.layout.lowered import LoweredProgram, Section, StoredParameter
from meshwright.layout.types import REPLICATED
from meshwright.program.types import Op, Ref, Value

MB = 1 << 20


def profile(**changes: object) -> Profile:
    fields: dict[str, object] = {
        "name": "plain", "device": "cpu", "source": "test", "memory_bytes": 1 << 30,
        "peak_flops": 1e12, "memory_bytes_per_s": 1e10, "op_overhead_s": 1e-6,
        "matmul": (Point(x=1e6, seconds=1e-5), Point(x=1e12, seconds=1.0)),
    }  # fmt: skip
    return Profile(**(fields | changes))


def cluster(hosts: int = 1, devices: int = 4, **changes: object) -> Cluster:
    group = HostGroup(
        hosts=hosts, devices=devices, profile=profile(**changes),
        levels=(
            LinkLevel(name="host", devices=devices, bytes_per_s=1e10, latency_s=1e-6),
            LinkLevel(name="across", devices=hosts * devices, bytes_per_s=1e9, latency_s=1e-5),
        ),
    )  # fmt: skip
    return Cluster(text="test", groups=(group,))


class Builder:
    """Collects values and ops; every value is `float32`, of so many elements."""

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}

    def value(self, name: str, *shape: int, of: str | None = None) -> str:
        self.values[name] = Value(name, shape, "float32", of or name)
        return name

    def op(
        self, target: str, operands: tuple[str, ...], result: str, *shape: int,
        of: str | None = None, phase: str = "forward", **kwargs: object,
    ) -> Op:  # fmt: skip
        self.value(result, *shape, of=of)
        args = tuple(Ref(name) for name in operands)
        return Op(f"op_{result}", target, args, tuple(kwargs.items()), (result,), False, phase)


def linear(
    *, zero: bool = False, world: int = 2, tokens: int = 256, width: int = 512
) -> LoweredProgram:
    """relu(x @ w) with its gradient, the weight replicated or stored in shards over `data`."""
    b = Builder()
    rows = width // world if zero else width
    b.value("w", rows, width)
    b.value("x", tokens, width)
    b.value("tangent")
    gathers = []
    weight = "w"
    if zero:
        weight = "w_full"
        gathers = [b.op("mesh.all_gather", ("w",), "w_full", width, width, axis="data", dim=0)]
    forward = [
        b.op("aten.mm.default", ("x", weight), "y", tokens, width),
        b.op("aten.view.default", ("y",), "y_view", width, tokens, of="y"),
        b.op("aten.relu.default", ("y_view",), "z", width, tokens),
        b.op("aten.sum.default", ("z",), "loss"),
    ]
    backward = [
        b.op("aten.expand.default", ("tangent",), "dz", width, tokens, of="tangent"),
        b.op("aten.threshold_backward.default", ("dz", "z"), "dy", width, tokens),
        b.op("aten.view.default", ("dy",), "dy_view", tokens, width, of="dy"),
        b.op("aten.t.default", ("x",), "xt", width, tokens, of="x"),
        b.op("aten.mm.default", ("xt", "dy_view"), "dw", width, width),
    ]
    if zero:
        reduce = [b.op("mesh.reduce_scatter", ("dw",), "dw_out", rows, width, axis="data", dim=0)]
    else:
        reduce = [b.op("mesh.all_reduce", ("dw",), "dw_out", width, width, axis="data")]
    parameter = StoredParameter(
        "weight", (width, width), "float32", REPLICATED, "w", True, "dw_out"
    )
    return LoweredProgram(
        mesh=Mesh((("data", world),)),
        values=b.values,
        layouts={},
        parameters=(parameter,),
        buffers=(),
        batch={"batch[0]": "x"},
        constants={},
        tangent="tangent",
        loss="loss",
        buffer_updates={},
        saved=("z",),
        accumulated={"weight": "dw"},
        gather=Section(("w",), tuple(gathers), (weight,)),
        forward=Section((weight, "x"), tuple(forward), ("loss", "z")),
        backward=Section(("z", "x", "tangent"), tuple(backward), ("dw",)),
        reduce=Section(("dw",), tuple(reduce), ("dw_out",)),
        clip=Section((), (), ()),
        norm=None,
    )


def long(ops: int) -> LoweredProgram:
    """A chain of `ops` ops with a few distinct shapes, half of them saved for the backward."""
    b = Builder()
    b.value("w", 64, 64)
    b.value("x", 32, 64)
    b.value("tangent")
    forward, previous, saved = [], "x", []
    for index in range(ops // 2):
        name = f"f{index}"
        if index % 3 == 0:
            forward.append(b.op("aten.mm.default", (previous, "w"), name, 32, 64))
        elif index % 3 == 1:
            forward.append(b.op("aten.gelu.default", (previous,), name, 32, 64))
        else:
            forward.append(b.op("aten.view.default", (previous,), name, 32, 64, of=previous))
        if index % 2:
            saved.append(name)
        previous = name
    backward = []
    for index in range(ops - ops // 2):
        name = f"b{index}"
        source = saved[-1 - index % len(saved)]
        backward.append(b.op("aten.mul.Tensor", (previous, source), name, 32, 64, phase="backward"))
        previous = name
    parameter = StoredParameter("w", (64, 64), "float32", REPLICATED, "w", True, previous)
    return LoweredProgram(
        Mesh((("data", 2),)), b.values, {}, (parameter,), (), {"x": "x"}, {}, "tangent",
        saved[-1], {}, tuple(saved), {"w": previous},
        Section(("w",), (), ("w",)),
        Section(("w", "x"), tuple(forward), (*saved, f"f{ops // 2 - 1}")),
        Section((*saved, "tangent"), tuple(backward), (previous,)),
        Section((previous,), (), (previous,)), Section((), (), ()), None,
    )  # fmt: skip

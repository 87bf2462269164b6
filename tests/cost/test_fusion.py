"""Fused kernels: the bytes at their border, one launch."""

from __future__ import annotations

from graphlib import TopologicalSorter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.cluster.parse import parse_cluster
from meshwright.cost.compute import op_bytes
from meshwright.cost.fusion import Fused, _Fusion, fuse
from meshwright.cost.table import table_for
from meshwright.program.types import Op, Ref, Value

ROWS, COLUMNS = 64, 128
FULL = (ROWS, COLUMNS)
SIZE = ROWS * COLUMNS * 4


class Chain:
    """Ops in order; every value is float32 of `FULL` unless it says otherwise."""

    def __init__(self, *inputs: str) -> None:
        self.ops: list[Op] = []
        self.values = {name: Value(name, FULL, "float32", name) for name in inputs}

    def op(
        self, target: str, operands: str, result: str, shape: tuple[int, ...] = FULL,
        *literals: object, of: str | None = None,
    ) -> Chain:  # fmt: skip
        self.values[result] = Value(result, shape, "float32", of or result)
        args = (*(Ref(name) for name in operands.split()), *literals)
        self.ops.append(Op(result, target, args, (), (result,), False, "forward"))
        return self

    def fused(self, *outlives: str) -> dict[str, Fused | None]:
        parts = fuse(self.ops, self.values, outlives)
        return {op.name: part for op, part in zip(self.ops, parts, strict=True)}


def test_a_chain_reads_and_writes_at_its_border_alone() -> None:
    chain = Chain("x", "y").op("aten.add.Tensor", "x y", "s").op("aten.gelu.default", "s", "g")
    chain.op("aten.mul.Tensor", "g x", "out")
    assert chain.fused("out") == {"s": Fused(3 * SIZE, 1), "g": Fused(0, 0), "out": Fused(0, 0)}
    # What is used later is written too.
    assert chain.fused("out", "s")["s"] == Fused(4 * SIZE, 1)


def test_products_end_a_chain() -> None:
    chain = Chain("x", "w").op("aten.gelu.default", "x", "a").op("aten.mm.default", "a w", "p")
    chain.op("aten.relu.default", "p", "b").op("aten.add.Tensor", "b x", "out")
    found = chain.fused("out")
    assert found["p"] is None
    assert found["a"] == Fused(2 * SIZE, 1)
    assert found["b"] == Fused(3 * SIZE, 1)
    assert found["out"] == Fused(0, 0)


def test_no_kernel_waits_for_one_that_waits_for_it() -> None:
    """`c` may not join `a`: between them stands a product."""
    chain = Chain("x").op("aten.relu.default", "x", "a").op("aten.mm.default", "a x", "p")
    chain.op("aten.add.Tensor", "a p", "c")
    found = chain.fused("c")
    assert found["a"] == Fused(2 * SIZE, 1)
    assert found["c"] == Fused(3 * SIZE, 1)


def test_views_cost_nothing_and_pass_on() -> None:
    flat = (ROWS * COLUMNS,)
    chain = Chain("x").op("aten.relu.default", "x", "a")
    chain.op("aten.view.default", "a", "v", flat, of="a").op("aten.exp.default", "v", "e", flat)
    assert chain.fused("e") == {"a": Fused(2 * SIZE, 1), "v": Fused(0, 0), "e": Fused(0, 0)}


def test_reductions_along_rows_go_on_in_the_same_kernel() -> None:
    few = (ROWS, 1)
    chain = Chain("x").op("aten.mul.Tensor", "x x", "sq")
    chain.op("aten.mean.dim", "sq", "m", few, (-1,), True).op("aten.rsqrt.default", "m", "r", few)
    chain.op("aten.mul.Tensor", "x r", "out")
    found = chain.fused("out")
    assert found["sq"] == Fused(2 * SIZE, 1)
    assert sum(part.launches for part in found.values() if part) == 1


def test_reductions_along_columns_end_one() -> None:
    few = (1, COLUMNS)
    chain = Chain("x").op("aten.relu.default", "x", "a")
    chain.op("aten.sum.dim_IntList", "a", "s", few, (0,), True)
    chain.op("aten.mul.Tensor", "x s", "out")
    found = chain.fused("out")
    assert found["a"] == Fused(SIZE + COLUMNS * 4, 1)
    assert found["out"] == Fused(2 * SIZE + COLUMNS * 4, 1)


def test_ops_that_share_an_input_share_a_kernel() -> None:
    chain = Chain("g", "a", "b").op("aten.mul.Tensor", "g b", "da")
    chain.op("aten.mul.Tensor", "g a", "db")
    found = chain.fused("da", "db")
    assert found == {"da": Fused(5 * SIZE, 1), "db": Fused(0, 0)}


def test_gathered_rows_are_read_alone() -> None:
    chain = Chain("x")
    chain.values["table"] = Value("table", (10**6, COLUMNS), "float32", "table")
    chain.values["ids"] = Value("ids", (ROWS,), "int64", "ids")
    chain.op("aten.embedding.default", "table ids", "rows").op("aten.add.Tensor", "rows x", "out")
    assert chain.fused("out")["rows"] == Fused(3 * SIZE + ROWS * 8, 1)


def test_norms_gradients_of_scale_and_shift_take_a_second_kernel() -> None:
    chain = Chain("dy", "x", "h").op("aten.native_layer_norm_backward.default", "dy x", "dx")
    chain.op("aten.add.Tensor", "dx h", "out")
    found = chain.fused("out")
    assert found["dx"] == Fused((3 + 1 + 2) * SIZE, 2)


TARGETS = ["aten.add.Tensor", "aten.mul.Tensor", "aten.mm.default", "aten.gelu.default",
           "aten._softmax.default", "aten.sum.dim_IntList", "aten.clone.default"]  # fmt: skip


def random_chain(steps: list[tuple[str, int, int]]) -> Chain:
    chain = Chain("x0", "x1")
    names = ["x0", "x1"]
    for number, (target, first, second) in enumerate(steps):
        one, other = names[first % len(names)], names[second % len(names)]
        two = target.endswith(("Tensor", "mm.default"))
        literals = ((number % 2,),) if "sum" in target else ()
        chain.op(target, f"{one} {other}" if two else one, f"r{number}", FULL, *literals)
        names.append(f"r{number}")
    return chain


@settings(max_examples=150)
@given(st.lists(st.tuples(st.sampled_from(TARGETS), st.integers(0), st.integers(0)), max_size=14))
def test_fusing_never_adds_bytes_or_launches(steps: list[tuple[str, int, int]]) -> None:
    chain = random_chain(steps)
    parts = fuse(chain.ops, chain.values, [op.name for op in chain.ops[-1:]])
    kept = [op for op, part in zip(chain.ops, parts, strict=True) if part is not None]
    fused = [part for part in parts if part is not None]
    assert sum(part.nbytes for part in fused) <= sum(op_bytes(op, chain.values) for op in kept)
    assert sum(part.launches for part in fused) <= len(kept)
    assert bool(kept) == any(part.launches for part in fused)


@settings(max_examples=150)
@given(st.lists(st.tuples(st.sampled_from(TARGETS), st.integers(0), st.integers(0)), max_size=14))
def test_kernels_can_run_one_after_another(steps: list[tuple[str, int, int]]) -> None:
    chain = random_chain(steps)
    fusion = _Fusion(chain.ops, chain.values, ())
    fusion.run()
    kernel = {
        op.name: f"kernel {number}" if number is not None else op.name
        for op, number in zip(chain.ops, fusion.group_of_op, strict=True)
    }
    order = TopologicalSorter[str]()
    for op in chain.ops:
        needed = {kernel[name] for name in op.operands() if name in kernel}
        order.add(kernel[op.name], *(needed - {kernel[op.name]}))
    order.prepare()  # raises where kernels wait for each other


@pytest.mark.parametrize("launches", [1, 3])
def test_cost_of_a_fused_kernel(launches: int) -> None:
    table = table_for(parse_cluster("1x8:a100-80g"))
    cost = table.fused(Fused(10**9, launches))
    assert cost.seconds == table.streaming(10**9, launches)
    assert cost.host_s == pytest.approx(launches * table.constants.host_launch_s)
    assert table.fused(Fused(0, 0)).seconds == 0

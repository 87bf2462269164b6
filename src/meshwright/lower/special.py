"""Special lowerings: ops whose local form differs from the op on local shapes.

Each takes a `Site` (the op, its operands already in the layouts that the chosen
cuts ask for) and returns the local names of the op's results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import cast

from meshwright.layout.cuts import compatible, ordered
from meshwright.layout.types import REPLICATED, Layout, Reduce, Split
from meshwright.lower.builder import Builder
from meshwright.program.types import Argument, Op, Ref
from meshwright.rules.losses import REDUCTION_POSITION, SUM
from meshwright.rules.types import FactorCut, OpRule


@dataclass(frozen=True)
class Site:
    """One op about to be lowered.

    operands: local names, in `Op.operands()` order, laid out as `chosen` asks.
    chosen: for each axis, the factor that the op is cut along.
    layouts: for each result, the layout that the rule gives, sums pending.
    wanted: for each result, the layout that the assigned groups want.
    shapes, dtypes: of the whole results.
    stream: which of the Program's random ops this is.
    ring: axes over which attention passes keys and values round a ring.
    """

    b: Builder
    op: Op
    rule: OpRule
    operands: tuple[str, ...]
    chosen: Mapping[str, FactorCut]
    layouts: tuple[Layout | None, ...]
    wanted: tuple[Layout, ...]
    shapes: tuple[tuple[int, ...] | None, ...]
    dtypes: tuple[str | None, ...]
    stream: int = 0
    ring: frozenset[str] = frozenset()

    def emit(
        self,
        target: str,
        args: tuple[Argument, ...],
        shape: tuple[int, ...],
        layout: Layout,
        dtype: str | None = None,
        kwargs: tuple[tuple[str, Argument], ...] = (),
    ) -> Ref:
        dtype = dtype or self.b.values[self.operands[0]].dtype
        return Ref(
            self.b.emit(
                target, args, shape, dtype, layout,
                like=self.op.name, source=self.op.source, kwargs=kwargs,
            )
        )  # fmt: skip

    def fill(
        self, number: float, shape: tuple[int, ...], layout: Layout, dtype: str | None = None
    ) -> Ref:
        dtype = dtype or self.b.values[self.operands[0]].dtype
        return Ref(
            self.b.fill(
                number, shape, dtype, layout, like=self.op.name, source=self.op.source
            )
        )  # fmt: skip

    @property
    def empty(self) -> bool:
        """Whether this device holds nothing of one of the operands."""
        return any(0 in self.b.values[name].shape for name in self.operands)

    def convert(self, value: Ref, layout: Layout) -> Ref:
        return Ref(self.b.convert(value.name, layout, self.op.source))

    def settle(self, value: Ref) -> Ref:
        """Reduce whatever is pending."""
        return self.convert(value, Layout(self.layout(value).shards))

    def layout(self, value: Ref) -> Layout:
        return self.b.whole[value.name].layout

    def shape(self, value: Ref) -> tuple[int, ...]:
        return self.b.whole[value.name].shape

    def operand(self, position: int) -> Ref:
        return Ref(self.operands[position])

    def pending(self, layout: Layout, reduce: Reduce, *factors: int) -> Layout:
        """`layout` with a pending reduction over each axis that cuts one of `factors`."""
        for axis, cut in self.chosen.items():
            if cut.factor in factors:
                layout = layout.with_partial(axis, reduce)
        return layout

    def special_factors(self) -> tuple[int, ...]:
        return tuple(k for k, factor in enumerate(self.rule.factors) if factor.special)


Lowering = Callable[[Site], tuple[str | None, ...]]


# The product alone of an op that adds a bias; the last sums over its batch and has no such form.
_PRODUCTS = {
    "aten.addmm.default": "aten.mm.default",
    "aten.baddbmm.default": "aten.bmm.default",
    "aten.addmv.default": "aten.mv.default",
    "aten.addbmm.default": "aten.addbmm.default",
}


def bias_once(site: Site) -> tuple[str | None, ...]:
    """addmm, baddbmm, convolution with a cut contraction: product, reduction, then the bias."""
    layout, shape = site.layouts[0], site.shapes[0]
    assert layout is not None and shape is not None
    if site.op.target in _PRODUCTS:
        bias, left, right = (site.operand(k) for k in range(3))
        options = dict(site.op.kwargs)
        product = _PRODUCTS[site.op.target]
        none = (site.fill(0, shape, layout),) if product.startswith("aten.add") else ()
        made = site.emit(product, (*none, left, right), shape, layout)
        if options.get("alpha", 1) != 1:
            made = site.emit("aten.mul.Scalar", (made, options["alpha"]), shape, layout)
        if options.get("beta", 1) != 1:
            bias = site.emit(
                "aten.mul.Scalar", (bias, options["beta"]), site.shape(bias), site.layout(bias)
            )
    else:
        bias = site.operand(2)
        args = (site.operand(0), site.operand(1), None, *site.op.args[3:])
        made = (
            site.fill(0, shape, layout)
            if site.empty
            else site.emit("aten.convolution.default", args, shape, layout)
        )
        bias = bias_of_channels(site, bias)
    return (add_bias_once(site, made, bias).name,)


def bias_of_channels(site: Site, bias: Ref) -> Ref:
    """A bias [C] as [1, C, 1, …], to be added to a convolution's result."""
    shape = site.shapes[0]
    assert shape is not None
    shards = tuple(
        (axis, Split(1, cut.outer, cut.extent)) for axis, cut in site.layout(bias).shards
    )
    local = site.b.values[bias.name].shape[0]
    return site.emit(
        "aten.view.default",
        (bias, (1, local, *[1] * (len(shape) - 2))),
        (1, shape[1], *[1] * (len(shape) - 2)),
        Layout(shards),
    )


def add_bias_once(site: Site, made: Ref, bias: Ref) -> Ref:
    """`made`, the op's result without its bias, reduced where it is pending; then the bias."""
    layout, shape = site.layouts[0], site.shapes[0]
    assert layout is not None and shape is not None
    held = Layout(layout.shards)
    for axis, _ in layout.partial:
        split = site.wanted[0].split(axis)
        if split is not None and all(compatible(split, other) for _, other in held.shards):
            held = held.with_shard(axis, split)
    target = ordered(held, site.b.mesh)
    made = site.convert(made, target)
    if target != Layout(layout.shards):
        rank = len(site.shape(bias))
        shift = len(shape) - rank
        shards = tuple(
            (axis, replace(split, dim=split.dim - shift))
            for axis, split in target.shards
            if split.dim >= shift and site.shape(bias)[split.dim - shift] != 1
        )
        bias = site.convert(bias, Layout(shards))
    return site.emit("aten.add.Tensor", (made, bias), shape, target)


def global_mean(site: Site) -> tuple[str | None, ...]:
    """A mean over a cut dim: local sums over the global count; the sum stays pending."""
    layout, shape = site.layouts[0], site.shapes[0]
    assert layout is not None and shape is not None
    count = _averaged(site)
    if site.op.target.startswith("aten.mean"):
        name = "aten.sum.dim_IntList" if ".dim" in site.op.target else "aten.sum.default"
        args = (site.operand(0), *site.op.args[1:])
    else:
        name, args = site.op.target, _as_sum(site)
    total = site.emit(name, args, shape, layout, site.dtypes[0], site.op.kwargs)
    made = site.emit("aten.div.Scalar", (total, count), shape, layout, site.dtypes[0])
    return (made.name,)


def global_mean_backward(site: Site) -> tuple[str | None, ...]:
    layout, shape = site.layouts[0], site.shapes[0]
    assert layout is not None and shape is not None
    count = _averaged(site)
    made = site.emit(site.op.target, _as_sum(site), shape, layout, None, site.op.kwargs)
    return (site.emit("aten.div.Scalar", (made, count), shape, layout).name,)


def _averaged(site: Site) -> int:
    """How many terms a mean has: the product of the factors that it averages over."""
    return prod(site.rule.factors[factor].size for factor in site.special_factors())


def _as_sum(site: Site) -> tuple[Argument, ...]:
    """The arguments of a loss or its gradient with the reduction turned into a sum."""
    position = REDUCTION_POSITION[site.op.target]
    operands = iter(site.operands)
    args = [Ref(next(operands)) if isinstance(a, Ref) else a for a in site.op.args]
    args += [None] * (position + 1 - len(args))
    args[position] = SUM
    return tuple(args)


def softmax_across(site: Site) -> tuple[str | None, ...]:
    """softmax or log_softmax over a cut dim: the maximum and the sum are reduced."""
    x = site.operand(0)
    layout, shape = site.layout(x), site.shape(x)
    dim = cast(int, site.op.args[1]) % len(shape)
    narrow = (*shape[:dim], 1, *shape[dim + 1 :])
    across = _without_dim(layout, dim)
    factors = site.special_factors()
    top = site.settle(
        site.emit("mesh.amax", (x, dim), narrow,
                  site.pending(across, "max", *factors))
    )  # fmt: skip
    centred = site.emit("aten.sub.Tensor", (x, top), shape, layout)
    powers = site.emit("aten.exp.default", (centred,), shape, layout)
    total = site.settle(
        site.emit("aten.sum.dim_IntList", (powers, (dim,), True), narrow,
                  site.pending(across, "sum", *factors))
    )  # fmt: skip
    if "log_softmax" in site.op.target:
        total = site.emit("aten.log.default", (total,), narrow, across)
        return (site.emit("aten.sub.Tensor", (centred, total), shape, layout).name,)
    return (site.emit("aten.div.Tensor", (powers, total), shape, layout).name,)


def softmax_backward_across(site: Site) -> tuple[str | None, ...]:
    gradient, output = site.operand(0), site.operand(1)
    layout, shape = site.layout(output), site.shape(output)
    dim = cast(int, site.op.args[2]) % len(shape)
    narrow = (*shape[:dim], 1, *shape[dim + 1 :])
    pending = site.pending(_without_dim(layout, dim), "sum", *site.special_factors())
    logarithm = "log_softmax" in site.op.target
    terms = (
        gradient if logarithm else site.emit("aten.mul.Tensor", (gradient, output), shape, layout)
    )
    total = site.settle(site.emit("aten.sum.dim_IntList", (terms, (dim,), True), narrow, pending))
    if logarithm:
        powers = site.emit("aten.exp.default", (output,), shape, layout)
        scaled = site.emit("aten.mul.Tensor", (powers, total), shape, layout)
        return (site.emit("aten.sub.Tensor", (gradient, scaled), shape, layout).name,)
    scaled = site.emit("aten.mul.Tensor", (output, total), shape, layout)
    return (site.emit("aten.sub.Tensor", (terms, scaled), shape, layout).name,)


def nll_loss(site: Site) -> tuple[str | None, ...]:
    """Each device's terms of loss and weight are summed in one reduction of two numbers."""
    scores = site.operand(0)
    reduction, ignore = site.op.args[3], cast(int, site.op.args[4])
    target, ignore = _local_classes(site, scores, site.operand(1), ignore)
    weight = site.operand(2) if len(site.operands) > 2 else None
    layout = REPLICATED
    factors = site.special_factors()
    dtype = site.dtypes[0] or "float32"
    if reduction == 0:
        first = site.layouts[0]
        assert first is not None and site.shapes[0] is not None
        class_factors = site.rule.operands[0][_class_dim(site.shape(scores))]
        each = site.emit(
            "mesh.nll_loss",
            (scores, target, weight, 0, ignore),
            site.shapes[0],
            site.pending(first, "sum", *class_factors),
            dtype,
        )
        none = site.fill(0, (), REPLICATED, dtype)
        return (site.settle(each).name, none.name)
    terms = site.emit(
        "mesh.nll_loss", (scores, target, weight, 2, ignore), (2,),
        site.pending(layout, "sum", *factors), dtype,
    )  # fmt: skip
    terms = site.settle(terms)
    loss = site.emit("aten.select.int", (terms, 0, 0), (), REPLICATED, dtype)
    total = site.emit("aten.select.int", (terms, 0, 1), (), REPLICATED, dtype)
    if reduction == 1:
        loss = site.emit("aten.div.Tensor", (loss, total), (), REPLICATED, dtype)
    return (loss.name, total.name)


def nll_loss_backward(site: Site) -> tuple[str | None, ...]:
    """As on one device, with targets outside this device's classes ignored."""
    scores = site.operand(1)
    layout, shape = site.layouts[0], site.shapes[0]
    assert layout is not None and shape is not None
    target, ignore = _local_classes(site, scores, site.operand(2), cast(int, site.op.args[5]))
    weight = site.operand(3) if isinstance(site.op.args[3], Ref) else None
    total = site.operand(len(site.operands) - 1)
    made = site.emit(
        "mesh.nll_loss_backward",
        (site.operand(0), scores, target, weight, site.op.args[4], ignore, total),
        shape,
        layout,
    )
    return (made.name,)


def _class_dim(shape: tuple[int, ...]) -> int:
    return 0 if len(shape) == 1 else 1


def _local_classes(site: Site, scores: Ref, target: Ref, ignore: int) -> tuple[Ref, int]:
    """Targets counted from this device's first class, others marked as ignored."""
    dim = _class_dim(site.shape(scores))
    start, count = site.b.range(scores.name, dim)
    if count == site.shape(scores)[dim]:
        return target, ignore
    local = site.emit(
        "mesh.local_index",
        (target, start, count, ignore, -100),
        site.shape(target),
        site.layout(target),
        "int64",
    )
    return local, -100


def embedding_rows(site: Site) -> tuple[str | None, ...]:
    """Look up the rows held here, zeros for the others; the sum over devices is pending."""
    layout, shape = site.layouts[0], site.shapes[0]
    assert layout is not None and shape is not None
    weight, indices = site.operand(0), site.operand(1)
    start, count = site.b.range(weight.name, 0)
    made = site.emit("mesh.embedding_rows", (weight, indices, start, count), shape, layout)
    return (made.name,)


def embedding_rows_backward(site: Site) -> tuple[str | None, ...]:
    layout, shape = site.layouts[0], site.shapes[0]
    assert layout is not None and shape is not None
    rows_layout = Layout(tuple(item for item in layout.shards if item[1].dim == 0))
    rows = site.b.declare(site.b.fresh(site.op.name), (shape[0],), "int64", rows_layout)
    start, count = site.b.range(rows, 0)
    del site.b.values[rows], site.b.whole[rows]
    padding = cast(int, site.op.args[3])
    indices = site.operand(1)
    local = site.emit(
        "mesh.local_index",
        (indices, start, count, padding, -1),
        site.shape(indices),
        site.layout(indices),
        "int64",
    )
    made = site.emit(
        site.op.target, (site.operand(0), local, count, -1, site.op.args[4]), shape, layout
    )
    return (made.name,)


def _without_dim(layout: Layout, dim: int) -> Layout:
    return Layout(tuple(item for item in layout.shards if item[1].dim != dim))

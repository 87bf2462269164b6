"""Attention over a cut sequence: keys and values gathered, or going round a ring.

The queries that a device holds stay; the rule cuts keys and values alike. What
each query may see follows from positions: see `meshwright.runtime.local_attention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from meshwright.layout.cuts import ordered
from meshwright.layout.types import Layout, Split, cuts
from meshwright.lower.special import Site
from meshwright.program.types import Argument, Op, Ref, Symbol

_FOR_CPU = "aten._scaled_dot_product_flash_attention_for_cpu"

Numbers = tuple[tuple[int, int, int, int], ...]  # `Cuts` of `runtime.local_attention`
Options = tuple[tuple[str, Argument], ...]


@dataclass(frozen=True)
class _Made:
    """One result to declare: a whole tensor of `shape` cut by `layout`."""

    shape: tuple[int, ...]
    dtype: str
    layout: Layout


@dataclass(frozen=True)
class _Attention:
    """What forward and backward have in common; `axes` are those that cut the sequence."""

    site: Site
    query: Ref
    key: Ref
    value: Ref
    mask: Ref | None
    is_causal: bool
    scale: Argument
    axes: tuple[str, ...]

    @property
    def ring(self) -> str | None:
        """The axis round which keys and values go; None where they are gathered."""
        return self.axes[0] if len(self.axes) == 1 and self.axes[0] in self.site.ring else None

    def held(self, steps: int = 0) -> Numbers:
        """Cuts of the sequence here, or of the part that comes here after `steps` shifts."""
        b, shards = self.site.b, self.site.layout(self.query).shards
        layout = Layout(tuple((a, replace(s, dim=0)) for a, s in shards if a in self.axes))
        size = self.site.shape(self.query)[2]
        return tuple(
            (split.outer, split.extent, parts, (index - steps) % parts)
            for split, parts, index, _ in cuts((size,), layout, b.mesh, b.coordinate)
        )

    def options(self, **cuts: Argument) -> Options:
        size = self.site.shape(self.query)[2]
        return (
            ("size", size), *cuts.items(), ("scale", self.scale), ("is_causal", self.is_causal)
        )  # fmt: skip

    def plain(self) -> Options:
        mask: Options = (("attn_mask", self.mask),) if self.mask else ()
        return (*mask, ("scale", self.scale))

    def without_axes(self, layout: Layout) -> Layout:
        return Layout(tuple(item for item in layout.shards if item[0] not in self.axes))

    def gathered(self, value: Ref) -> Ref:
        return self.site.convert(value, self.without_axes(self.site.layout(value)))

    def result(self, position: int) -> _Made:
        shape, dtype = self.site.shapes[position], self.site.dtypes[position]
        layout = self.site.layouts[position]
        assert shape is not None and dtype is not None and layout is not None
        return _Made(shape, dtype, layout)


def attention(site: Site) -> tuple[str | None, ...]:
    """(query, key, value, dropout, is_causal, *, attn_mask, scale) -> (output, logsumexp)."""
    one = _read(site, 0, 4)
    results = one.result(0), one.result(1)
    if one.ring is not None:
        return _ring(one, one.ring)
    operands = (one.query, one.gathered(one.key), one.gathered(one.value))
    if one.is_causal:
        made = _emit(site, "mesh.attention", operands, one.options(cuts=one.held()), results)
    elif _missing(site, *operands):
        return tuple(site.fill(0, r.shape, r.layout, r.dtype).name for r in results)
    else:
        made = _emit(site, f"{_FOR_CPU}.default", (*operands, 0.0, False), one.plain(), results)
    return tuple(ref.name for ref in made)


def attention_backward(site: Site) -> tuple[str | None, ...]:
    """(grad, query, key, value, output, logsumexp, dropout, is_causal, *, attn_mask, scale)."""
    one = _read(site, 1, 7)
    gradient, out, lse = site.operand(0), site.operand(4), site.operand(5)
    if one.ring is not None:
        return _ring_backward(one, one.ring, gradient, out, lse)
    operands = (gradient, one.query, one.gathered(one.key), one.gathered(one.value), out, lse)
    results = [one.result(0)]
    for position in (1, 2):
        whole = one.result(position)
        layout = one.without_axes(whole.layout)
        for axis in one.axes:
            layout = layout.with_partial(axis, "sum")
        results.append(_Made(whole.shape, whole.dtype, ordered(layout, site.b.mesh)))
    if one.is_causal:
        options = one.options(cuts=one.held())
        made = _emit(site, "mesh.attention_backward", operands, options, results)
    elif _missing(site, *operands):
        made = tuple(site.fill(0, r.shape, r.layout, r.dtype) for r in results)
    else:
        target, arguments = f"{_FOR_CPU}_backward.default", (*operands, 0.0, False)
        made = _emit(site, target, arguments, one.plain(), results)
    return tuple(
        site.convert(ref, one.result(position).layout).name for position, ref in enumerate(made)
    )


def _read(site: Site, first: int, causal_at: int) -> _Attention:
    """The arguments of the op; `first` is where its query stands among the operands."""
    given = dict(site.op.kwargs)
    mask = site.operand(len(site.operands) - 1) if isinstance(given.get("attn_mask"), Ref) else None
    causal = len(site.op.args) > causal_at and site.op.args[causal_at] is True
    sequence = site.rule.operands[first][2]
    axes = (axis for axis, cut in site.chosen.items() if cut.factor in sequence)
    return _Attention(
        site, site.operand(first), site.operand(first + 1), site.operand(first + 2), mask,
        causal or given.get("is_causal") is True, given.get("scale"),
        tuple(axes),
    )  # fmt: skip


def _missing(site: Site, *operands: Ref) -> bool:
    """Whether this device holds nothing of one of the operands."""
    return any(0 in site.b.values[ref.name].shape for ref in operands)


def _ring(one: _Attention, axis: str) -> tuple[str | None, ...]:
    """A block a device, the own one first, with a shift between any two."""
    site, (out, lse) = one.site, (one.result(0), one.result(1))
    packed = _packed(one, axis)
    # Outputs are joined in the precision of the logarithms.
    wanted = _Made(out.shape, lse.dtype, out.layout), lse
    joined: tuple[Ref, ...] = ()
    parts = site.b.mesh.extent(axis)
    for step in range(parts):
        packed = _shifted(site, packed, axis) if step else packed
        options = one.options(mine=one.held(), theirs=one.held(step), last=step == parts - 1)
        arguments = (one.query, packed, one.mask, *joined)
        joined = _emit(site, "mesh.attention_step", arguments, options, wanted)
    return _rounded(site, joined[0], out).name, joined[1].name


def _ring_backward(
    one: _Attention, axis: str, gradient: Ref, out: Ref, lse: Ref
) -> tuple[str | None, ...]:
    """The blocks go round once more, and their gradients with them, one step further."""
    site, (grad_query, grad_key, grad_value) = one.site, (one.result(k) for k in range(3))
    packed = _packed(one, axis)
    precision = site.b.values[lse.name].dtype
    wanted = (
        _Made(grad_query.shape, precision, grad_query.layout),
        _Made(site.shape(packed), precision, site.layout(packed)),
    )
    sums: tuple[Ref, ...] = ()
    for step in range(site.b.mesh.extent(axis)):
        if step:
            packed = _shifted(site, packed, axis)
            sums = (sums[0], _shifted(site, sums[1], axis))
        options = one.options(mine=one.held(), theirs=one.held(step))
        arguments = (gradient, one.query, packed, out, lse, one.mask, *sums)
        sums = _emit(site, "mesh.attention_step_backward", arguments, options, wanted)
    home = _shifted(site, sums[1], axis)
    count, width = site.b.local(grad_key.shape, grad_key.layout)[2:]
    options = (("dtype", Symbol("dtype", grad_key.dtype)),)
    made = _emit(site, "mesh.ring_unpack", (home, count, width), options, (grad_key, grad_value))
    return _rounded(site, sums[0], grad_query).name, made[0].name, made[1].name


def _packed(one: _Attention, axis: str) -> Ref:
    """Keys and values of this device side by side, padded to the size of the longest part."""
    site = one.site
    parts, layout = site.b.mesh.extent(axis), site.layout(one.key)
    (_, extent, _, _), size = one.held()[0], site.shape(one.key)[2]
    longest = -(-extent // parts) * (size // extent)
    batch, heads, _, width = site.shape(one.key)
    shape = (batch, heads, longest * parts, width + site.shape(one.value)[3])
    shards = tuple(
        (a, Split(2, 1, longest * parts, s.shift) if a == axis else s) for a, s in layout.shards
    )
    return site.emit("mesh.ring_pack", (one.key, one.value, longest), shape, Layout(shards))


def _shifted(site: Site, value: Ref, axis: str) -> Ref:
    return site.emit(
        "mesh.ring_shift", (value,), site.shape(value), site.layout(value),
        site.b.values[value.name].dtype, (("axis", axis),),
    )  # fmt: skip


def _rounded(site: Site, value: Ref, to: _Made) -> Ref:
    if site.b.values[value.name].dtype == to.dtype:
        return value
    options = (("dtype", Symbol("dtype", to.dtype)),)
    return site.emit("aten._to_copy.default", (value,), to.shape, to.layout, to.dtype, options)


def _emit(
    site: Site, target: str, args: tuple[Argument, ...], options: Options, results: Sequence[_Made]
) -> tuple[Ref, ...]:
    """An op that returns a tuple."""
    b = site.b
    names = tuple(b.declare(b.fresh(site.op.name), r.shape, r.dtype, r.layout) for r in results)
    b.ops.append(Op(names[0], target, args, options, names, True, b.phase, site.op.source))
    return tuple(map(Ref, names))

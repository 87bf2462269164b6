"""Losses in which the classes of one example meet, over a cut batch."""

from __future__ import annotations

from meshwright.lower.special import Site
from meshwright.program.types import Argument, Op, Ref
from meshwright.rules.losses import MEAN, REDUCTION_POSITION, SUM


def margin_loss(site: Site) -> tuple[str | None, ...]:
    """multi_margin and multilabel_margin losses: a mean is a sum over the global batch's size."""
    target = site.op.target
    position = REDUCTION_POSITION[target]
    operands = iter(site.operands)
    args: list[Argument] = [
        Ref(next(operands)) if isinstance(item, Ref) else item for item in site.op.args
    ]
    args += [None] * (position + 1 - len(args))
    mean = args[position] in (None, MEAN)
    scores = site.operand(1 if "backward" in target else 0)
    args[position] = SUM if mean else args[position]
    count = site.shape(scores)[0]
    results: list[str | None] = []
    if site.empty:
        for shape, layout, dtype in zip(site.shapes, site.layouts, site.dtypes, strict=True):
            assert shape is not None and layout is not None
            results.append(site.fill(0, shape, layout, dtype).name)
        return tuple(results)
    for name, shape, layout, dtype in zip(
        site.op.results, site.shapes, site.layouts, site.dtypes, strict=True
    ):
        assert name is not None and shape is not None and layout is not None and dtype is not None
        results.append(site.b.declare(site.b.fresh(name), shape, dtype, layout))
    first = results[0]
    assert first is not None
    site.b.ops.append(
        Op(
            first, target, tuple(args), site.op.kwargs, tuple(results), site.op.returns_tuple,
            site.b.phase, site.op.source,
        )
    )  # fmt: skip
    if mean:
        shape, layout = site.shapes[0], site.layouts[0]
        assert shape is not None and layout is not None
        divided = site.emit("aten.div.Scalar", (Ref(first), count), shape, layout, site.dtypes[0])
        results[0] = divided.name
    return tuple(results)

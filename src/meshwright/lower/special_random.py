"""Random ops: draws are a function of seed, op, step, microbatch and global position."""

from __future__ import annotations

from meshwright.lower.special import Site
from meshwright.program.types import Argument, Op

RANDOM = frozenset({
    "aten.native_dropout.default", "aten.bernoulli.p", "aten.bernoulli.default",
    "aten.rand_like.default", "aten.randn_like.default", "aten.rand.default", "aten.randn.default",
})  # fmt: skip


def random(site: Site) -> tuple[str | None, ...]:
    """One `mesh.random` op that knows the whole shape and the cuts of what it draws."""
    name = site.op.results[0]
    layout, shape = site.layouts[0], site.shapes[0]
    assert layout is not None and shape is not None and name is not None
    results: list[str | None] = []
    for result, whole, dtype, lay in zip(
        site.op.results, site.shapes, site.dtypes, site.layouts, strict=True
    ):
        if result is None or whole is None or dtype is None or lay is None:
            results.append(None)
            continue
        results.append(site.b.declare(site.b.fresh(result), whole, dtype, lay))
    assert results[0] is not None
    kwargs: tuple[tuple[str, Argument], ...] = (
        ("kind", site.op.target.split(".")[1] + ("_p" if site.op.target.endswith(".p") else "")),
        ("stream", site.stream),
        ("shape", shape),
        ("cuts", site.b.cuts(results[0])),
        ("dtype", site.dtypes[0]),
    )
    operands: tuple[Argument, ...] = tuple(site.operand(k) for k in range(len(site.operands)))
    rest = () if not operands else tuple(a for a in site.op.args[1:] if isinstance(a, (int, float)))
    site.b.ops.append(
        Op(
            results[0], "mesh.random", (*operands, *rest), kwargs, tuple(results),
            site.op.returns_tuple, site.b.phase, site.op.source,
        )
    )  # fmt: skip
    return tuple(results)

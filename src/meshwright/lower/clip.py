"""The global norm of the gradients, which clipping divides by."""

from __future__ import annotations

from meshwright.layout.assignment import Parameter
from meshwright.layout.cuts import ordered
from meshwright.layout.lowered import Section
from meshwright.layout.types import REPLICATED
from meshwright.lower.builder import Builder
from meshwright.lower.clean import section
from meshwright.program.types import Ref, Source

_CLIP = Source("gradient clipping")


def clip_section(
    b: Builder, gradients: tuple[tuple[str, Parameter], ...]
) -> tuple[Section, str | None]:
    """The global norm of reduced gradients, and its name; nothing when there are none.

    Local sums of squares, then one reduction per way of being cut.
    """
    b.ops = []
    if not gradients:
        return section([], ()), None
    by_axes: dict[tuple[str, ...], list[str]] = {}
    for name, parameter in gradients:
        axes = tuple(axis for axis, _ in parameter.storage.shards)
        by_axes.setdefault(axes, []).append(name)
    total: str | None = None
    for axes, names in by_axes.items():
        layout = REPLICATED
        for axis in axes:
            layout = layout.with_partial(axis, "sum")
        squares = b.emit(
            "mesh.sum_of_squares", tuple(Ref(name) for name in names), (), "float32",
            ordered(layout, b.mesh), like="norm", source=_CLIP,
        )  # fmt: skip
        squares = b.convert(squares, REPLICATED, _CLIP)
        if total is not None:
            squares = b.emit(
                "aten.add.Tensor", (Ref(total), Ref(squares)), (), "float32", REPLICATED,
                like="norm", source=_CLIP,
            )  # fmt: skip
        total = squares
    assert total is not None
    norm = b.emit(
        "aten.sqrt.default", (Ref(total),), (), "float32", REPLICATED,
        like="norm", source=_CLIP,
    )  # fmt: skip
    return section(b.ops, (norm,)), norm

"""Upsampling and padding by reflection or replication: linear maps of each spatial dim."""

from __future__ import annotations

from meshwright.program.types import Argument, Op
from meshwright.rules.registry import Call, rule
from meshwright.rules.types import Localize, OpRule, Shape
from meshwright.rules.windows import spatial_rule

UPSAMPLES = (
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d",
    "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d",
)  # fmt: skip

PADS = tuple(f"{kind}_pad{rank}d" for kind in ("reflection", "replication") for rank in (1, 2, 3))


def _input_size(position: int) -> Localize:
    def localize(
        op: Op, operands: tuple[Shape, ...], results: tuple[Shape | None, ...]
    ) -> tuple[Argument, ...]:
        assert results[0] is not None
        return (*op.args[:position], results[0], *op.args[position + 1 :])

    return localize


@rule(*(f"aten.{name}.default" for name in UPSAMPLES))
def upsample(call: Call) -> OpRule:
    """(input, output_size of the spatial dims, …)."""
    return spatial_rule(call, "i", "o", "spatial_resample", both=True)


@rule(*(f"aten.{name}_backward.default" for name in UPSAMPLES))
def upsample_backward(call: Call) -> OpRule:
    """(grad, output_size, input_size of all dims, …)."""
    return spatial_rule(
        call, "o", "i", "spatial_resample_backward", both=True, localize=_input_size(2)
    )


@rule(*(f"aten.{name}.default" for name in PADS))
def pad(call: Call) -> OpRule:
    """(input, padding), the last dim's two numbers first."""
    return spatial_rule(call, "i", "o", "spatial_resample")


@rule(*(f"aten.{name}_backward.default" for name in PADS))
def pad_backward(call: Call) -> OpRule:
    """(grad, input, padding)."""
    return spatial_rule(call, "oi", "i", "spatial_resample_backward")

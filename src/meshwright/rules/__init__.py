"""Factor rules, one file per op family."""

from meshwright.rules import (
    attention,
    convolution,
    embedding,
    factory,
    indexing,
    losses,
    matmul,
    normalisation,
    pointwise,
    reduction,
    views,
)
from meshwright.rules.registry import rule_of, rules_of, targets
from meshwright.rules.types import Factor, FactorCut, OpRule

_FAMILIES = (
    attention, convolution, embedding, factory, indexing, losses,
    matmul, normalisation, pointwise, reduction, views,
)  # fmt: skip

__all__ = ["Factor", "FactorCut", "OpRule", "rule_of", "rules_of", "targets"]

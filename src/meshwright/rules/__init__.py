"""Factor rules, one file per op family."""

from meshwright.rules import (
    attention,
    attention_cuda,
    convolution,
    diagonal,
    embedding,
    factory,
    fft,
    grouped,
    indexing,
    linalg,
    losses,
    matmul,
    neighbours,
    normalisation,
    opaque,
    pointwise,
    pooling,
    ragged,
    reduction,
    rows,
    sorting,
    upsampling,
    views,
)
from meshwright.rules.registry import rule_of, rules_of, targets
from meshwright.rules.types import Factor, FactorCut, OpRule

_FAMILIES = (
    attention, attention_cuda, convolution, diagonal, embedding, factory, fft, grouped, indexing,
    linalg, losses, matmul, neighbours, normalisation, opaque, pointwise, pooling, ragged,
    reduction, rows, sorting, upsampling, views,
)  # fmt: skip

__all__ = ["Factor", "FactorCut", "OpRule", "rule_of", "rules_of", "targets"]

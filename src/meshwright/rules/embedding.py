"""Embedding tables: rows can be cut, each device looking up what it holds."""

from __future__ import annotations

from meshwright.rules.build import einsum, letters
from meshwright.rules.registry import Call, rule
from meshwright.rules.types import OpRule


@rule("aten.embedding.default")
def embedding(call: Call) -> OpRule:
    """(weight [V, D], indices […], padding_idx, scale_grad_by_freq, sparse) -> […, D]."""
    names = letters(len(call.shapes[1]))
    return einsum(
        f"vz,{names}->{names}z", call.shapes, call.results, special={"v": "embedding_rows"}
    )


@rule("aten.embedding_dense_backward.default")
def embedding_dense_backward(call: Call) -> OpRule:
    """(grad […, D], indices […], num_weights, padding_idx, scale_grad_by_freq) -> [V, D].

    Scaling by frequency counts every index of the whole batch, so then only D can be cut.
    """
    names = letters(len(call.shapes[1]))
    scaled = bool(call.arg(4, "scale_grad_by_freq", False))
    return einsum(
        f"{names}z,{names}->vz",
        call.shapes,
        call.results,
        fixed=f"{names}v" if scaled else "",
        special={"v": "embedding_rows_backward"},
    )

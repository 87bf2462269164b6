"""Which lowering a factor's `special` names."""

from __future__ import annotations

from collections.abc import Mapping

from meshwright.lower import special, special_attention, special_norm
from meshwright.lower.special import Lowering

SPECIAL: Mapping[str, Lowering] = {
    "bias_once": special.bias_once,
    "global_mean": special.global_mean,
    "global_mean_backward": special.global_mean_backward,
    "softmax_across": special.softmax_across,
    "softmax_backward_across": special.softmax_backward_across,
    "nll_loss": special.nll_loss,
    "nll_loss_rows": special.nll_loss,
    "nll_loss_backward": special.nll_loss_backward,
    "embedding_rows": special.embedding_rows,
    "embedding_rows_backward": special.embedding_rows_backward,
    "batch_norm": special_norm.batch_norm,
    "batch_norm_backward": special_norm.batch_norm_backward,
    "attention": special_attention.attention,
    "attention_backward": special_attention.attention_backward,
}

COVERS: Mapping[str, frozenset[str]] = {"nll_loss": frozenset({"nll_loss_rows"})}
"""Lowerings that do the work of others as well, where an op is cut along factors of both."""

CONTIGUOUS = frozenset(
    {"nll_loss", "nll_loss_backward", "embedding_rows", "embedding_rows_backward"}
)
"""Lowerings that count from a first index, so that only contiguous parts will do."""

"""Which lowering a factor's `special` names."""

from __future__ import annotations

from collections.abc import Mapping

from meshwright.lower import (
    special,
    special_attention,
    special_conv,
    special_index,
    special_losses,
    special_moments,
    special_norm,
    special_pool,
    special_reduce,
    special_resample,
    special_rows,
)
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
    "take_held": special_index.take,
    "put_held": special_index.put,
    "put_terms": special_index.put,
    "gather_held": special_index.gather,
    "scatter_held": special_index.scatter,
    "scatter_terms": special_index.scatter,
    "margin_loss": special_losses.margin_loss,
    "variance_across": special_reduce.variance_across,
    "norm_across": special_reduce.norm_across,
    "logsumexp_across": special_reduce.logsumexp_across,
    "extreme_across": special_reduce.extreme_across,
    "scan_across": special_reduce.scan_across,
    "batch_norm": special_norm.batch_norm,
    "batch_norm_backward": special_norm.batch_norm_backward,
    "group_norm": special_moments.group_norm,
    "group_norm_backward": special_moments.group_norm_backward,
    "layer_norm": special_moments.layer_norm,
    "layer_norm_backward": special_moments.layer_norm_backward,
    "spatial_convolution": special_conv.spatial_convolution,
    "spatial_convolution_backward": special_conv.spatial_convolution_backward,
    "spatial_max_pool": special_pool.spatial_max_pool,
    "spatial_max_pool_backward": special_pool.spatial_max_pool_backward,
    "spatial_resample": special_resample.spatial_resample,
    "spatial_resample_backward": special_resample.spatial_resample_backward,
    "spatial_pad": special_rows.spatial_pad,
    "spatial_slice": special_rows.spatial_slice,
    "spatial_slice_backward": special_rows.spatial_slice_backward,
    "attention": special_attention.attention,
    "attention_backward": special_attention.attention_backward,
}

COVERS: Mapping[str, frozenset[str]] = {
    "spatial_convolution": frozenset({"bias_once"}),
    "nll_loss": frozenset({"nll_loss_rows"}),
    "put_held": frozenset({"put_terms"}),
    "scatter_held": frozenset({"scatter_terms"}),
}
"""Lowerings that do the work of others as well, where an op is cut along factors of both."""

CONTIGUOUS = frozenset({
    "nll_loss", "nll_loss_backward", "embedding_rows", "embedding_rows_backward",
    "take_held", "put_held", "gather_held", "scatter_held", "extreme_across", "scan_across",
    "margin_loss",
})  # fmt: skip
"""Lowerings that count from a first index, so that only contiguous parts will do."""

"""The op families: the one table that says how an op's time is counted."""

from __future__ import annotations

from functools import cache
from typing import Literal, get_args

from meshwright.cluster.types import CollectiveKind
from meshwright.errors import RuleError

Family = Literal[
    "matmul", "convolution", "attention", "recurrent", "pointwise", "transcendental", "reduction",
    "normalisation", "batch_norm", "softmax", "indexing", "pooling", "factory", "random", "view",
    "copy", "collective", "custom", "opaque",
]  # fmt: skip

COMPUTE_BOUND: frozenset[Family] = frozenset({"matmul", "convolution", "attention", "recurrent"})

# Names are of ATen packets, without namespace, overload or the underscore of
# the in-place form.
_NAMES: dict[Family, str] = {
    "matmul": """
        mm addmm bmm baddbmm addbmm matmul linear dot vdot mv addmv addr ger outer
        _addmm_activation linear_backward _grouped_mm _scaled_mm
        _trilinear _euclidean_dist
        _int_mm matmul_backward _scaled_mm_v2 _scaled_grouped_mm _scaled_grouped_mm_v2 mkldnn_linear
        _weight_int8pack_mm _weight_int4pack_mm _weight_int4pack_mm_for_cpu""",
    "convolution": """
        convolution _convolution convolution_backward convolution_overrideable
        mkldnn_convolution cudnn_convolution conv1d conv2d conv3d conv_transpose1d
        conv_transpose2d conv_transpose3d
        _conv_depthwise2d conv_depthwise3d conv_tbc
        _slow_conv2d_forward _slow_conv2d_backward slow_conv3d_forward slow_conv_dilated2d
        slow_conv_dilated3d slow_conv_transpose2d slow_conv_transpose3d
        convolution_backward_overrideable cudnn_convolution_transpose cudnn_convolution_relu
        cudnn_convolution_add_relu miopen_convolution miopen_convolution_transpose
        miopen_depthwise_convolution""",
    "attention": """
        scaled_dot_product_attention
        _scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_backward
        _scaled_dot_product_flash_attention_for_cpu
        _scaled_dot_product_flash_attention_for_cpu_backward
        _scaled_dot_product_efficient_attention _scaled_dot_product_efficient_attention_backward
        _scaled_dot_product_cudnn_attention _scaled_dot_product_cudnn_attention_backward
        _scaled_dot_product_attention_math _scaled_dot_product_attention_math_for_mps
        _scaled_dot_product_fused_attention_overrideable
        _scaled_dot_product_fused_attention_overrideable_backward
        _flash_attention_forward _flash_attention_backward
        _efficient_attention_forward _efficient_attention_backward
        _flash_attention_forward_no_dropout_inplace _cudnn_attention_forward
        _cudnn_attention_backward""",
    "recurrent": """
        mkldnn_rnn_layer mkldnn_rnn_layer_backward _cudnn_rnn _cudnn_rnn_backward miopen_rnn
        miopen_rnn_backward""",
    "pointwise": """
        absolute divide fix fill_diagonal
        abs add addcdiv addcmul angle pow bitwise_and bitwise_left_shift bitwise_not bitwise_or
        bitwise_right_shift bitwise_xor ceil clamp clamp_max clamp_min clip conj_physical copysign
        deg2rad div eq floor floor_divide fmax fmin fmod frac frexp gcd ge greater greater_equal gt
        hardshrink hardshrink_backward hardsigmoid hardsigmoid_backward hardswish
        hardswish_backward hardtanh hardtanh_backward heaviside hypot isfinite isinf isnan isneginf
        isposinf isreal lcm ldexp le leaky_relu leaky_relu_backward lerp less less_equal
        logical_and logical_not logical_or logical_xor lt masked_fill masked_scatter
        maximum minimum mul multiply nan_to_num native_dropout_backward ne neg negative nextafter
        not_equal polar positive rad2deg reciprocal relu relu6 remainder
        round rrelu_with_noise_backward rsub sgn sign signbit softshrink softshrink_backward sqrt
        rsqrt square sub subtract threshold threshold_backward true_divide trunc where
        _prelu_kernel _prelu_kernel_backward prelu glu glu_backward complex
        mse_loss mse_loss_backward smooth_l1_loss smooth_l1_loss_backward huber_loss
        huber_loss_backward l1_loss soft_margin_loss soft_margin_loss_backward
        binary_cross_entropy binary_cross_entropy_backward
        isclose isin triu tril rrelu _conj_physical
        __and__ __or__ __xor__ __lshift__ __rshift__ __iand__ __ior__ __ixor__ __ilshift__
        __irshift__
        linalg_cross
        _add_relu _masked_scale glu_jvp glu_backward_jvp masked_scatter_backward
        fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask
        _fake_quantize_per_tensor_affine_cachemask_tensor_qparams
        _fake_quantize_learnable_per_tensor_affine _fake_quantize_learnable_per_channel_affine
        _fake_quantize_learnable_per_tensor_affine_backward
        _fake_quantize_learnable_per_channel_affine_backward
        _amp_update_scale _amp_foreach_non_finite_check_and_unscale
        _fused_adagrad _fused_adam _fused_adamw _fused_sgd""",
    "transcendental": """
        arccos arccosh arcsin arcsinh arctan arctan2 arctanh log_sigmoid
        acos acosh asin asinh atan atan2 atanh celu cos cosh digamma elu elu_backward erf erfc
        erfinv exp exp2 expm1 gelu gelu_backward i0 igamma igammac lgamma log log10 log1p log2
        log_sigmoid_forward log_sigmoid_backward logaddexp logaddexp2 logit logit_backward mish
        mish_backward mvlgamma polygamma selu sigmoid sigmoid_backward silu silu_backward sin
        sinc sinh softplus softplus_backward tan tanh tanh_backward xlogy float_power
        binary_cross_entropy_with_logits kl_div
        _fft_r2c _fft_c2c _fft_c2r linalg_matrix_exp
        _dirichlet_grad _standard_gamma_grad
        _thnn_fused_gru_cell _thnn_fused_gru_cell_backward _thnn_fused_lstm_cell
        _thnn_fused_lstm_cell_backward_impl""",
    "reduction": """
        sum mean prod amax amin max min all any argmax argmin aminmax std std_mean var var_mean
        norm linalg_vector_norm nansum nanmean median nanmedian mode kthvalue topk sort argsort
         unique_consecutive _unique2 bincount histc count_nonzero logsumexp cumsum cumprod
        cummax cummin logcumsumexp _logcumsumexp trace dist cdist _cdist_forward _cdist_backward
        _pdist_forward _pdist_backward searchsorted bucketize equal item _local_scalar_dense
        trapezoid
        nll_loss nll_loss_forward nll_loss_backward nll_loss2d_forward nll_loss2d_backward
        nll_loss_nd cross_entropy_loss value_selecting_reduction_backward
        _linalg_det _linalg_eigh _linalg_slogdet _linalg_solve_ex _linalg_svd
        linalg_cholesky_ex linalg_eig linalg_householder_product linalg_inv_ex linalg_lu
        linalg_lu_factor_ex linalg_lu_solve linalg_pinv linalg_qr linalg_solve_triangular lu_unpack
        cholesky_inverse cholesky_solve multi_margin_loss multi_margin_loss_backward
        multilabel_margin_loss_forward multilabel_margin_loss_backward
        _aminmax _cummax_helper _cummin_helper _linalg_eigvals cholesky
        _cholesky_solve_helper linalg_lstsq geqrf linalg_ldl_factor_ex linalg_ldl_solve ormqr
        triangular_solve histogram _unique unique_dim unique_dim_consecutive segment_reduce
        _segment_reduce_backward allclose _ctc_loss _ctc_loss_backward _cudnn_ctc_loss
        miopen_ctc_loss _is_all_true _is_any_true native_norm hash_tensor
        _compute_linear_combination linalg__powsum _foreach_powsum _linalg_check_errors""",
    "normalisation": """
        native_layer_norm native_layer_norm_backward layer_norm native_group_norm
        native_group_norm_backward group_norm rms_norm _fused_rms_norm _fused_rms_norm_backward
        renorm _weight_norm_interface _weight_norm_interface_backward""",
    "batch_norm": """
        native_batch_norm native_batch_norm_backward
        _native_batch_norm_legit _native_batch_norm_legit_functional
        _native_batch_norm_legit_no_training cudnn_batch_norm cudnn_batch_norm_backward
        _batch_norm_with_update _batch_norm_with_update_functional _batch_norm_no_update
        batch_norm_backward batch_norm
        batch_norm_stats batch_norm_elemt
        batch_norm_backward_reduce batch_norm_backward_elemt batch_norm_gather_stats
        batch_norm_gather_stats_with_counts batch_norm_update_stats miopen_batch_norm
        miopen_batch_norm_backward""",
    "softmax": """
        _softmax softmax _log_softmax log_softmax _softmax_backward_data
        _log_softmax_backward_data _safe_softmax _masked_softmax _masked_softmax_backward""",
    "indexing": """
        embedding embedding_dense_backward embedding_backward _embedding_bag
        _embedding_bag_forward_only _embedding_bag_dense_backward embedding_renorm gather
        gather_backward index index_select index_add index_copy index_fill index_put
        _index_put_impl _unsafe_index _unsafe_index_put _unsafe_masked_index
        _unsafe_masked_index_put_accumulate index_reduce put take take_along_dim scatter scatter_add
        scatter_reduce masked_select nonzero argwhere slice_scatter select_scatter
        diagonal_scatter as_strided_scatter slice_backward select_backward diagonal_backward
        index_select_backward one_hot unfold_backward
        max_pool2d_with_indices_backward max_pool3d_with_indices_backward avg_pool2d_backward
        avg_pool3d_backward _adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward
        adaptive_max_pool2d_backward adaptive_max_pool3d_backward upsample_nearest1d_backward
        upsample_nearest2d_backward upsample_nearest3d_backward upsample_bilinear2d_backward
        _upsample_bilinear2d_aa_backward upsample_bicubic2d_backward upsample_linear1d_backward
        upsample_trilinear3d_backward _upsample_nearest_exact1d_backward
        _upsample_nearest_exact2d_backward _upsample_nearest_exact3d_backward
        grid_sampler_2d_backward
        grid_sampler_3d_backward fractional_max_pool2d_backward fractional_max_pool3d_backward
        max_unpool2d max_unpool3d
        nonzero_static slice_inverse
        _embedding_bag_backward _embedding_bag_per_sample_weights_backward
        _grid_sampler_2d_cpu_fallback_backward cudnn_grid_sampler_backward max_pool2d_backward
        mkldnn_max_pool2d_backward mkldnn_max_pool3d_backward mkldnn_adaptive_avg_pool2d_backward
        _upsample_bicubic2d_aa_backward cudnn_affine_grid_generator_backward
        _padded_dense_to_jagged_forward _jagged_to_padded_dense_forward""",
    "pooling": """
        max_pool1d max_pool2d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d
        avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d
        adaptive_avg_pool2d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d
        upsample_nearest2d upsample_nearest3d upsample_bilinear2d _upsample_bilinear2d_aa
        _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
        upsample_bicubic2d upsample_linear1d upsample_trilinear3d grid_sampler_2d
        fractional_max_pool2d fractional_max_pool3d grid_sampler_3d im2col col2im
        pixel_shuffle pixel_unshuffle
        _grid_sampler_2d_cpu_fallback
        cudnn_grid_sampler cudnn_affine_grid_generator mkldnn_max_pool2d mkldnn_max_pool3d
        mkldnn_adaptive_avg_pool2d _upsample_bicubic2d_aa""",
    "factory": """
        zeros ones full empty empty_strided empty_permuted new_zeros new_ones new_full new_empty
        new_empty_strided zeros_like ones_like full_like empty_like arange linspace logspace eye
        scalar_tensor tril_indices triu_indices zero fill
        affine_grid_generator hann_window hamming_window blackman_window resize_as
        range bartlett_window
        kaiser_window fft_fftfreq fft_rfftfreq resize _efficientzerotensor _resize_output
        _new_zeros_with_same_feature_meta _cudnn_init_dropout_state""",
    "random": """
        rand randn randint randperm rand_like randn_like randint_like bernoulli dropout
        native_dropout
        normal normal_functional uniform exponential multinomial random log_normal geometric cauchy
        rrelu_with_noise rrelu_with_noise_functional poisson
        _fused_dropout _fill_mem_eff_dropout_mask _standard_gamma
        _sample_dirichlet binomial _philox_normal _philox_uniform""",
    "view": """
        broadcast_tensors atleast_1d atleast_2d atleast_3d mH matrix_H moveaxis numpy_T ravel
        reshape_as swapdims dsplit hsplit vsplit
        view _unsafe_view reshape _reshape_alias expand expand_as t transpose permute unsqueeze
        squeeze select slice split split_with_sizes chunk unbind narrow diagonal as_strided detach
        alias movedim swapaxes flatten unflatten view_as view_as_real view_as_complex real imag
        conj _conj _neg_view resolve_conj resolve_neg unfold lift lift_fresh lift_fresh_copy
        sym_size sym_numel sym_stride adjoint mT broadcast_to tensor_split unsafe_split
        unsafe_split_with_sizes unsafe_chunk _assert_async
        _assert_scalar _assert_tensor_metadata
        is_same_size is_pinned
        record_stream _make_dep_token _functional_sym_constrain_range
        _functional_sym_constrain_range_for_size is_set_to
        _has_same_storage_numel _functional_assert_async _functional_assert_scalar set""",
    "copy": """
        type_as fliplr flipud row_stack column_stack
        clone copy _to_copy to contiguous cat concat concatenate stack hstack vstack dstack repeat
        repeat_interleave tile flip roll rot90 pad constant_pad_nd reflection_pad1d
        reflection_pad1d_backward reflection_pad2d reflection_pad2d_backward replication_pad1d
        replication_pad1d_backward replication_pad2d replication_pad2d_backward
        reflection_pad3d reflection_pad3d_backward replication_pad3d replication_pad3d_backward
        _pad_circular cartesian_prod meshgrid block_diag diag diag_embed
        split_copy split_with_sizes_copy permute_copy transpose_copy slice_copy select_copy
        unbind_copy view_copy expand_copy unfold_copy
        channel_shuffle diagonal_copy
        _reshape_copy _stack _chunk_cat _copy_from
        _lazy_clone narrow_copy _pack_padded_sequence _pin_memory mkldnn_reorder_conv2d_weight
        mkldnn_reorder_conv3d_weight _cudnn_rnn_flatten_weight _transform_bias_rescale_qkv""",
}

COLLECTIVES: frozenset[str] = frozenset(get_args(CollectiveKind))

# Meshwright's own ops that are not plain local helpers.
_OWN: dict[str, Family] = {
    **dict.fromkeys(COLLECTIVES, "collective"),
    "shard": "copy",
    **dict.fromkeys(
        ("attention", "attention_backward", "attention_step", "attention_step_backward"),
        "attention",
    ),
    "ring_pack": "copy",
    "ring_unpack": "copy",
    "rows": "copy",
    "settle": "view",
    "arrive": "view",
    **dict.fromkeys(
        (
            f"{kind}_{part}"
            for kind in ("group", "layer")
            for part in ("sum", "squares", "apply", "terms", "gradient")
        ),
        "normalisation",
    ),
    "resample": "pooling",
    "resample_backward": "indexing",
    "max_pool": "pooling",
    "adaptive_max_pool": "pooling",
    "max_pool_backward": "indexing",
    "random": "random",
    "local_index": "pointwise",
    "amax": "reduction",
    "nonzero": "indexing",
    "take": "indexing",
    "put": "indexing",
    "length": "view",
    "term": "view",
    "embedding_rows": "indexing",
    **dict.fromkeys(
        ("take_held", "put_held", "gather_held", "select_held", "scatter_held"), "indexing"
    ),
    "extreme": "reduction",
    "extreme_position": "reduction",
    "nll_loss": "reduction",
    "nll_loss_backward": "indexing",
    "batch_norm_apply": "batch_norm",
    "sum_of_squares": "reduction",
    "opaque": "opaque",
    "opaque_backward": "opaque",
}  # fmt: skip

_FAMILY_OF: dict[str, Family] = {
    name: family for family, names in _NAMES.items() for name in names.split()
}


@cache
def family_of(target: str) -> Family:
    """Family of an op's target, such as `aten.mm.default` or `mesh.all_reduce`.

    An op of a user's own, in a namespace of its own, is `custom`: what is known
    of it is what it reads and writes, and a plan names those that it has.
    Raises RuleError for one of ATen's or of Meshwright's own that has no family.
    """
    namespace, _, rest = target.partition(".")
    name = rest.split(".")[0]
    if namespace not in ("aten", "mesh") and rest.count(".") == 1:
        return "custom"
    if namespace == "mesh" and name in _OWN:
        return _OWN[name]
    family = _of_aten(name) if namespace == "aten" else None
    if family is None:
        raise RuleError(
            f"the cost model does not know the op {target}",
            "Add its name to a family in meshwright/cost/families.py.",
        )
    return family


def _of_aten(name: str) -> Family | None:
    family = _FAMILY_OF.get(name) or _FAMILY_OF.get(name.removesuffix("_"))
    if family is None and name.startswith("_foreach_"):
        return _of_aten(name.removeprefix("_foreach_"))
    if family is None and name.endswith("_copy"):  # of a view, in memory of its own
        return "copy" if _of_aten(name.removesuffix("_copy")) == "view" else None
    if family is None and name.startswith("special_"):
        return "transcendental"
    return family

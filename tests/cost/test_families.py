"""The table of op families, beside the ops that PyTorch has."""

from __future__ import annotations

import re

import pytest
import torch

from meshwright.cost import families
from meshwright.cost.families import family_of
from meshwright.errors import RuleError
from meshwright.rules import targets


def packets() -> set[str]:
    return {
        name.removeprefix("aten::").split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("aten::")
    }


def test_no_op_is_in_two_families() -> None:
    names = [name for group in families._NAMES.values() for name in group.split()]
    assert len(names) == len(set(names))


def test_names_are_ones_that_pytorch_has() -> None:
    known = packets()
    made_up = {
        name for name in families._FAMILY_OF if name not in known and f"{name}_" not in known
    }
    assert not made_up


def test_every_pointwise_op_has_a_family() -> None:
    missing = []
    for name in packets():
        packet = getattr(torch.ops.aten, name, None)
        if packet is None:
            continue
        overloads = [getattr(packet, overload) for overload in packet.overloads()]
        pointwise = any(torch.Tag.pointwise in overload.tags for overload in overloads)
        if pointwise and not known(f"aten.{name}.default"):
            missing.append(name)
    assert not missing


def known(target: str) -> bool:
    try:
        family_of(target)
    except RuleError:
        return False
    return True


def test_every_dense_op_of_aten_has_a_family() -> None:
    """Those that capture may meet: no decomposition of their own, tensors in and out."""
    # Sparse, nested, quantized and test tensors, and other devices' kernels, are refused earlier.
    elsewhere = re.compile(
        "sparse|nested|quant|test|spdiags|spsolve|hspmm|mkldnn|mps|miopen|cslt|triton|nnpack|jagged"
        "|qparams|q_|qscheme|int4pack|int_repr|indices|values|dual|primal|philox|observer|obs_fq"
        "|coalesce|_nnz|dense|dim[IDV]?$|convert|copy_from|histogramdd|lanczos|padded_tensor|_foobar"
        "|transformer_encoder|native_multi_head|sdp_choice|mixed_dtypes|use_cudnn"
    )
    missing = []
    for full in torch._C._dispatch_get_all_op_names():
        name, _, overload = full.removeprefix("aten::").partition(".")
        if not full.startswith("aten::") or elsewhere.search(name):
            continue
        if torch._C._dispatch_has_kernel_for_dispatch_key(full, "CompositeImplicitAutograd"):
            continue
        schema = torch._C._get_schema(f"aten::{name}", overload)
        takes = any("Tensor" in str(item.type) for item in schema.arguments)
        gives = any("Tensor" in str(item.type) for item in schema.returns)
        out = any(item.is_out for item in schema.arguments)
        if takes and gives and not out and not known(f"aten.{name}.default"):
            missing.append(name)
    assert sorted(set(missing)) == []


@pytest.mark.parametrize(
    ("target", "family"),
    [
        ("aten.mm.default", "matmul"),
        ("aten.add_.Tensor", "pointwise"),
        ("aten._softmax.default", "softmax"),
        ("aten.bernoulli_.float", "random"),
        ("aten.convolution_backward.default", "convolution"),
        ("aten._scaled_dot_product_flash_attention_for_cpu_backward.default", "attention"),
        ("mesh.all_reduce", "collective"),
        ("mesh.shard", "copy"),
        ("mesh.random", "random"),
        ("mesh.sum_of_squares", "reduction"),
        ("mesh.local_index", "pointwise"),
    ],
)
def test_family(target: str, family: str) -> None:
    assert family_of(target) == family


@pytest.mark.parametrize(
    "target", ["mesh.surely_not", "aten.surely_not.default", "aten.surely_not_copy.default",
               "nonsense", ""]
)  # fmt: skip
def test_unknown_ops_are_named(target: str) -> None:
    with pytest.raises(RuleError) as caught:
        family_of(target)
    assert target in caught.value.message
    assert caught.value.remedy


def test_ops_of_others_are_known_to_be_custom() -> None:
    assert family_of("mylib.op.default") == "custom"


def test_every_op_with_a_rule_has_a_family() -> None:
    assert [target for target in targets() if not known(target)] == []


def test_every_op_of_our_own_has_a_family():
    from meshwright.cluster.mesh import Mesh
    from meshwright.runtime.collectives import SingleTransport
    from meshwright.runtime.comm import Communicator
    from meshwright.runtime.local_ops import RandomKey, local_ops

    ours = local_ops(Communicator(Mesh(()), 0, SingleTransport()), RandomKey())
    for target in ours:
        family_of(target)
    with pytest.raises(RuleError, match="unheard"):
        family_of("mesh.unheard_of")

"""Matrix products."""

from __future__ import annotations

from meshwright.rules.build import einsum
from meshwright.rules.registry import Call, rule
from meshwright.rules.types import OpRule


@rule("aten.mm.default")
def mm(call: Call) -> OpRule:
    return einsum("ik,kj->ij", call.shapes, call.results)


@rule("aten.bmm.default")
def bmm(call: Call) -> OpRule:
    return einsum("bik,bkj->bij", call.shapes, call.results)


@rule("aten.mv.default")
def mv(call: Call) -> OpRule:
    return einsum("ik,k->i", call.shapes, call.results)


@rule("aten.dot.default", "aten.vdot.default")
def dot(call: Call) -> OpRule:
    return einsum("k,k->", call.shapes, call.results)


@rule("aten.addmm.default")
def addmm(call: Call) -> OpRule:
    """bias + a @ b. With `k` cut the bias must enter once: see the lowering `bias_once`."""
    bias = {2: "ij", 1: "j", 0: ""}[len(call.shapes[0])]
    return einsum(f"{bias},ik,kj->ij", call.shapes, call.results, special={"k": "bias_once"})


@rule("aten.baddbmm.default")
def baddbmm(call: Call) -> OpRule:
    bias = {3: "bij", 2: "ij", 1: "j"}[len(call.shapes[0])]
    return einsum(f"{bias},bik,bkj->bij", call.shapes, call.results, special={"k": "bias_once"})


@rule("aten.addmv.default")
def addmv(call: Call) -> OpRule:
    return einsum("i,ik,k->i", call.shapes, call.results, special={"k": "bias_once"})


@rule("aten.addr.default")
def addr(call: Call) -> OpRule:
    bias = "ij"[2 - len(call.shapes[0]) :]
    return einsum(f"{bias},i,j->ij", call.shapes, call.results)


@rule("aten.addbmm.default")
def addbmm(call: Call) -> OpRule:
    """bias [i, j] + the sum over b of a [b, i, k] @ b [b, k, j]."""
    bias = "ij"[2 - len(call.shapes[0]) :]
    special = dict.fromkeys("bk", "bias_once")
    return einsum(f"{bias},bik,bkj->ij", call.shapes, call.results, special=special)

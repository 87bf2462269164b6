"""Losses: batch and classes can both be cut, without gathering the logits."""

from __future__ import annotations

from meshwright.rules.build import einsum, letters
from meshwright.rules.registry import Call, rule
from meshwright.rules.types import OpRule

NONE, MEAN, SUM = 0, 1, 2  # PyTorch's codes of a loss's reduction


def _classes(rank: int) -> tuple[str, str]:
    """Letters of the scores ([C], [N, C] or [N, C, H, W]) and of the targets."""
    if rank == 1:
        return "c", ""
    spatial = letters(rank - 2, "p")
    return f"nc{spatial}", f"n{spatial}"


@rule("aten.nll_loss_forward.default", "aten.nll_loss2d_forward.default")
def nll_loss(call: Call) -> OpRule:
    """(log-probabilities, target, weight?, reduction, ignore_index) -> (loss, total_weight)."""
    scores, targets = _classes(len(call.shapes[0]))
    pointwise = call.integer(3, "reduction") == NONE
    weight = ["c"] if len(call.shapes) > 2 else []
    made = einsum(
        ",".join([scores, targets, *weight]) + "->" + (targets if pointwise else "") + ",",
        call.shapes,
        call.results,
        special={**dict.fromkeys(scores, "nll_loss_rows"), "c": "nll_loss"},
    )
    # The lowering reduces on its own: nothing is left pending.
    unreduced = frozenset((r, f) for r in (0, 1) for f in range(len(made.factors)))
    return OpRule(made.factors, made.operands, made.results, unreduced=unreduced)


@rule("aten.nll_loss_backward.default", "aten.nll_loss2d_backward.default")
def nll_loss_backward(call: Call) -> OpRule:
    """(grad, log-probabilities, target, weight?, reduction, ignore_index, total_weight).

    `total_weight` is that of the global batch, so that batch parts need nothing else.
    """
    scores, targets = _classes(len(call.shapes[1]))
    gradient = targets if call.integer(4, "reduction") == NONE else ""
    weight = ["c"] if call.has(3, "weight") else []
    return einsum(
        ",".join([gradient, scores, targets, *weight, ""]) + f"->{scores}",
        call.shapes,
        call.results,
        special={"c": "nll_loss_backward"},
    )


# Where the reduction stands among the arguments of losses of two tensors of one shape
# (with optional weights that broadcast), and of their gradients.
REDUCTION_POSITION = {
    "aten.mse_loss.default": 2,
    "aten.smooth_l1_loss.default": 2,
    "aten.huber_loss.default": 2,
    "aten.soft_margin_loss.default": 2,
    "aten.binary_cross_entropy.default": 3,
    "aten.binary_cross_entropy_with_logits.default": 4,
    "aten.mse_loss_backward.default": 3,
    "aten.smooth_l1_loss_backward.default": 3,
    "aten.huber_loss_backward.default": 3,
    "aten.soft_margin_loss_backward.default": 3,
    "aten.binary_cross_entropy_backward.default": 4,
    "aten.multi_margin_loss.default": 5,
    "aten.multi_margin_loss_backward.default": 6,
    "aten.multilabel_margin_loss_forward.default": 2,
    "aten.multilabel_margin_loss_backward.default": 3,
}
_MARGINS = tuple(name for name in REDUCTION_POSITION if "margin_loss" in name
                 and "soft" not in name)  # fmt: skip


@rule(*(name for name in REDUCTION_POSITION if "backward" not in name and name not in _MARGINS))
def elementwise_loss(call: Call) -> OpRule:
    """(input, target, weights?, reduction, …): a mean over a cut dim needs the global count."""
    names = letters(len(call.shapes[0]))
    reduction = call.arg(REDUCTION_POSITION[call.op.target], "reduction", MEAN)
    operands = [names[len(names) - len(shape) :] for shape in call.shapes]
    return einsum(
        ",".join(operands) + "->" + (names if reduction == NONE else ""),
        call.shapes,
        call.results,
        special=dict.fromkeys(names, "global_mean") if reduction == MEAN else None,
    )


@rule(*(name for name in REDUCTION_POSITION if "backward" in name and name not in _MARGINS))
def elementwise_loss_backward(call: Call) -> OpRule:
    """(grad, input, target, weight?, reduction, …): a mean's gradient divides by that count."""
    names = letters(len(call.shapes[1]))
    reduction = call.arg(REDUCTION_POSITION[call.op.target], "reduction", MEAN)
    operands = [names[len(names) - len(shape) :] for shape in call.shapes]
    return einsum(
        ",".join(operands) + f"->{names}",
        call.shapes,
        call.results,
        special=dict.fromkeys(names, "global_mean_backward") if reduction == MEAN else None,
    )


@rule(*_MARGINS)
def margin_loss(call: Call) -> OpRule:
    """Losses in which the classes of one example meet: the batch can be cut, the classes not.

    Operands in order: grad (of a backward), scores, target, and what is as long as the classes.
    """
    backward = "backward" in call.op.target
    scores = call.shapes[1 if backward else 0]
    reduction = call.arg(REDUCTION_POSITION[call.op.target], "reduction", MEAN)
    batch = "n" if len(scores) == 2 else ""
    each = batch if reduction == NONE else ""
    rows = f"{batch}."
    labels = rows if "multilabel" in call.op.target else batch
    operands = [*([each] if backward else []), rows, labels]
    if len(call.shapes) > len(operands):
        operands.append(rows if "multilabel" in call.op.target else ".")
    results = [rows] if backward else [each, rows][: len(call.results)]
    return einsum(
        ",".join(operands) + "->" + ",".join(results),
        call.shapes,
        call.results,
        special={"n": "margin_loss"},
    )

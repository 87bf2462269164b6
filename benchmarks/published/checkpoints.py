"""What is computed again within a block, written into the model with PyTorch's own means.

Plans name no recomputation and recomputation of whole blocks or of attention's core. What a
policy decides op by op is part of the model that is captured instead, as it is in torchtitan:
results of every second matrix product and of fused attention are kept, everything else of a
block is computed again (`_apply_ac_to_transformer_block` in torchtitan's parallelize_llama.py;
docs.pytorch.org, torch.utils.checkpoint).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

_PRODUCT = torch.ops.aten.mm.default
_ATTENTION = (
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
)


def op_by_op(block: nn.Module, *inputs: Any) -> Tensor:
    """`block(*inputs)`, computed again in the backward but for what the policy keeps."""
    out: Tensor = checkpoint(
        block, *inputs, use_reentrant=False, context_fn=_contexts, preserve_rng_state=False
    )
    return out


def as_one_kernel(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """`function(*inputs)`, pointwise but for reductions of rows, as one fused kernel has it: its
    inputs are kept for the backward, and nothing between them and its result."""
    out: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return out


def _contexts() -> Any:
    products: Counter[bool] = Counter()

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        again = context.is_recompute
        if op == _PRODUCT:
            products[again] += 1
        keep = products[again] % 2 == 1 if op == _PRODUCT else op in _ATTENTION
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)  # type: ignore[no-untyped-call]

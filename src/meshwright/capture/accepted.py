"""Modules that can't be captured for what they are, told before anything runs."""

from __future__ import annotations

from torch import nn
from torch.jit import ScriptModule

from meshwright.errors import CaptureError
from meshwright.torch_private import has_accumulation_hooks


def check_module(module: nn.Module) -> None:
    """Raises CaptureError, naming the submodule, for one that hides its parameters or its ops."""
    for name, owner in module.named_modules():
        where = name or "The top module"
        kind = type(owner)
        if isinstance(owner, ScriptModule):
            raise CaptureError(
                f"{where} is a TorchScript module, whose parameters can't be replaced.",
                "Pass the module as it was before torch.jit.script or torch.jit.trace.",
            )
        if kind.__module__.startswith(("torch.distributed.", "torch.nn.parallel.distributed")):
            raise CaptureError(
                f"{where} is wrapped in {kind.__name__}, which distributes it already.",
                "Pass the module that it wraps: how it is distributed is what the plan decides.",
            )
        for key, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is None:
                continue
            path = f"{name}.{key}" if name else key
            if hasattr(tensor, "__tensor_flatten__"):
                raise CaptureError(
                    f"{path} is a {type(tensor).__name__}, not a plain tensor.",
                    "Pass the module before it is sharded or quantised: the plan decides how "
                    "tensors are stored.",
                )
            if has_accumulation_hooks(tensor):
                raise CaptureError(
                    f"{path} has a hook that runs after its gradient is accumulated.",
                    "Remove it (register_post_accumulate_grad_hook): a plan steps the optimizer "
                    "itself. Hooks that change a gradient (register_hook) are captured.",
                )

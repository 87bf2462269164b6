"""What the executor of a plan really does at the same time, merges and fuses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Executor:
    """How a plan is run; the simulator lets things overlap only where this says so.

    overlap_gradients: gradients are reduced, bucket by bucket, beside the backward
    of the last microbatch. overlap_gathers: parameters of the next block are
    gathered beside the compute of this one, and those gathered once a step beside
    the first forward. overlap_pipeline: activations travel between stages beside
    compute. overlap_tensor: collectives of the other axes run beside compute that
    does not need their result. bucket_bytes: collectives of gradients and gathers
    of parameters next to each other are merged up to so many bytes; 0 merges none.
    fused_optimizer: one pass over all parameters in place of op by op.
    compiled: chains of pointwise ops are one kernel each. cached_allocator: freed
    memory stays with the process, in pieces. async_host: the host runs ahead of
    the device, so that kernels wait for no launch but their own.
    step_overhead_s: time of the host between steps, on top of all that is counted.
    """

    overlap_gradients: bool = False
    overlap_gathers: bool = False
    overlap_pipeline: bool = False
    overlap_tensor: bool = False
    bucket_bytes: int = 0
    fused_optimizer: bool = False
    compiled: bool = False
    cached_allocator: bool = False
    async_host: bool = False
    step_overhead_s: float = 0.0


OWN = Executor()
"""What Meshwright's own runtime does: one thing after another, op by op."""

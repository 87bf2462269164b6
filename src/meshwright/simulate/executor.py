"""What the executor of a plan really does at the same time, merges and fuses."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Executor:
    """How a plan is run; the simulator lets things overlap only where this says so.

    overlap_gradients: gradients are reduced beside the backward: those of once a step
    beside the last microbatch's. overlap_gathers: parameters of the next block are
    gathered beside the compute of this one, and those gathered once a step beside the
    first forward. asks_ahead: each is asked for where the program has it (`layout.ahead`);
    else when the one before it has arrived, from turn to turn. overlap_pipeline:
    activations travel between stages beside compute. overlap_tensor: collectives of the
    backward run beside the ops of the same block that make weight gradients, as far as the
    data's flow allows.
    bucket_bytes: neighbouring collectives of gradients are merged up to so many bytes
    (those of each microbatch, and gathers of parameters, block by block); 0 merges none.
    gradient_buffer: gradients have one buffer from the start of the step; ops add into
    it, and it is reduced in place. adds_gradients: what a microbatch makes is a tensor of
    its own, added to the buffer after. gradient_dtype: of added-up and reduced gradients,
    the parameter's where it is not given. master_weights: the optimizer keeps a float32
    copy of parameters of 16 bits, and float32 states; master_gradients: gradients of 16
    bits have a float32 copy in the optimizer, or stay beside float32 sums. keeps_sent:
    what a stage sends on stays in its memory until the microbatch comes back.
    sends_parts: of what stages send each other, each device of the tensor axis sends its
    part alone, and those that receive gather the parts; for values that they all hold whole.
    whole_owners: with ZeRO 1 and 2 a parameter's optimizer state lies whole on one device,
    so that gradients are all-reduced and parameters broadcast one by one by their owners.
    gathers_in_place: parameters that are gathered once a step lie in one buffer, of which what
    a device stores is a part. regathers: of an activation that is gathered over the tensor axis
    the backward gets this device's part, and gathers it again beside the product before.
    fused_optimizer: one pass over all parameters in place of op by op.
    compiled: chains of pointwise ops are one kernel each. cached_allocator: freed memory
    stays with the process, and pieces of it that fit nothing stay unused; always so
    on accelerators.
    step_overhead_s: time of the host between steps, on top of all that is counted.
    """

    overlap_gradients: bool = False
    overlap_gathers: bool = False
    overlap_pipeline: bool = False
    overlap_tensor: bool = False
    asks_ahead: bool = False
    bucket_bytes: int = 0
    gradient_buffer: bool = False
    adds_gradients: bool = False
    gradient_dtype: str | None = None
    master_weights: bool = False
    master_gradients: bool = False
    keeps_sent: bool = False
    sends_parts: bool = False
    whole_owners: bool = False
    gathers_in_place: bool = False
    regathers: bool = False
    fused_optimizer: bool = False
    compiled: bool = False
    cached_allocator: bool = False
    step_overhead_s: float = 0.0


OWN = Executor()
"""What Meshwright's own runtime does on CPUs: one thing after another, op by op."""

OWN_ON_ACCELERATORS = Executor(overlap_gradients=True, overlap_gathers=True, asks_ahead=True)
"""The same on accelerators, which gather parameters and reduce gradients beside compute; see
`layout.ahead` and `layout.overlap`."""


def own(on_cpu: bool, uniform: bool, stages: int = 1) -> Executor:
    """uniform: as in `LoweredProgram`; where devices differ, collectives keep their place.

    Where the model is cut into stages, gathers keep theirs: the block that one would be asked
    for in may lie on another stage.
    """
    if on_cpu or not uniform:
        return OWN
    if stages > 1:
        return replace(OWN_ON_ACCELERATORS, overlap_gathers=False, asks_ahead=False)
    return OWN_ON_ACCELERATORS

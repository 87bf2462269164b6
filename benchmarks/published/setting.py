"""How the framework of a row runs it, as the simulator takes it."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.published.settle import EIGHT_BIT, PURE, Settled

from meshwright.cluster.types import Cluster
from meshwright.cost.hardware import Kernels
from meshwright.simulate.executor import Executor

OPTIMIZER = "adamw"  # of all of these sources, in one of its variants with two states

_FASTER_KERNELS = ("hopper", "blackwell")


def executor_for(settled: Settled) -> Executor:
    framework = settled.framework
    mixed = settled.precision not in PURE
    in_float32 = mixed and settled.dims.dtype in framework.fp32_gradients
    return replace(
        framework.executor,
        compiled=settled.compiled,
        # Beside sequence parallelism a device holds its part of them alone.
        sends_parts=framework.executor.sends_parts and not settled.sequence,
        master_weights=mixed,
        master_gradients=framework.executor.master_gradients and mixed,
        gradient_dtype="float32" if in_float32 else None,
    )


def kernels_for(settled: Settled, cluster: Cluster) -> Kernels:
    framework = settled.framework
    new = cluster.groups[0].profile.architecture in _FASTER_KERNELS
    return Kernels(
        attention=framework.attention_hopper if new else framework.attention,
        linear_dtype="float8" if settled.precision in EIGHT_BIT else None,
    )


# CUDA's context in a process, as the measurements' README has it.
_CONTEXT_BYTES = 1.5e9
# Buffers of one NCCL communicator: 4 MiB (NCCL_BUFFSIZE) for each of 24 channels and each of
# four peers, one before it in the ring and three in the tree.
_COMMUNICATOR_BYTES = 24 * 4 * 4 * 2**20


def process_bytes(settled: Settled) -> float:
    """What a figure counts beside PyTorch's own memory: nvidia-smi shows the whole process.

    Communicators: one for all devices, one for each axis, and with a pipeline those of a
    model's replica and of the embedding's two stages.
    """
    if "nvidia-smi" not in settled.row.notes.lower():
        return 0.0
    axes = sum(size > 1 for size in (settled.dp, settled.tp, settled.cp, settled.pp))
    communicators = 1 + axes + (2 if settled.pp > 1 else 0)
    return _CONTEXT_BYTES + communicators * _COMMUNICATOR_BYTES

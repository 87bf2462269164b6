"""From a row's degrees to a strategy as a user writes it, and to the cuts of its pipeline."""

from __future__ import annotations

from benchmarks.published.models import Dims, block_name
from benchmarks.published.settle import Settled

from meshwright.plan.types import Pipeline


def strategy_text(settled: Settled) -> str:
    """As in `stage=12,data=8,tensor=4,zero=1,recompute=full`; axes of one device are left out."""
    sizes = {
        "stage": settled.pp,
        "replica": settled.dp // settled.shards,
        "data": settled.shards,
        "context": settled.cp,
        "tensor": settled.tp,
    }
    parts = [f"{name}={size}" for name, size in sizes.items() if size > 1] or ["data=1"]
    if settled.sequence:
        parts.append("sequence")
    if settled.zero:
        parts.append(f"zero={settled.zero}")
    if settled.pp > 1 and settled.vpp > 1:
        parts += [f"virtual={settled.vpp}", "schedule=interleaved"]
    if settled.recompute != "none":
        parts.append(f"recompute={settled.recompute}")
    if settled.microbatches > 1:
        parts.append(f"microbatches={settled.microbatches}")
    return ",".join(parts)


def pipeline_of(settled: Settled) -> Pipeline | None:
    """The stages as Megatron and DeepSpeed cut them; None without a pipeline."""
    if settled.pp == 1:
        return None
    sizes = blocks_of_pieces(settled.dims.layers, settled.pp * settled.vpp)
    starts = [sum(sizes[:piece]) for piece in range(1, len(sizes))]
    return Pipeline(
        stages=settled.pp,
        virtual=settled.vpp,
        schedule="interleaved" if settled.vpp > 1 else "1f1b",
        cuts=tuple(_cut(settled.dims, start) for start in starts),
    )


def blocks_of_pieces(layers: int, pieces: int) -> list[int]:
    """Blocks of each piece: equal where that goes; else with the embedding and the head counted
    as blocks, where that goes; else with one more in each of the first pieces."""
    if layers % pieces == 0:
        return [layers // pieces] * pieces
    if (layers + 2) % pieces == 0:
        each = (layers + 2) // pieces
        return [each - 1, *[each] * (pieces - 2), each - 1]
    each, more = divmod(layers, pieces)
    return [each + 1] * more + [each] * (pieces - more)


def _cut(dims: Dims, start: int) -> str:
    """The block at which a piece begins; a piece without blocks begins with what follows them."""
    return block_name(dims, start) if start < dims.layers else "norm"

"""What a row leaves empty, settled by documented conventions, or named as open.

An empty cell is filled in one of two ways. A convention of the file or of the row's framework
says what it means, and the row counts as fully specified. Or the framework has a usual value
from which a run may differ: the row is predicted all the same, with the field listed in
`assumed`. A row that leaves open more than that is not predicted, with the reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeVar, cast

from benchmarks.published.frameworks import Framework, framework_of
from benchmarks.published.models import Dims
from benchmarks.published.rows import Row

from meshwright.plan.types import Recompute

DTYPES = {
    "bf16": "bfloat16", "bf16-pure": "bfloat16", "bf16-true": "bfloat16", "mixed16": "bfloat16",
    "fp16": "float16", "fp8": "bfloat16", "bf16+fp8linear": "bfloat16",
    "bf16+fp8 tensorwise": "bfloat16", "bfloat16": "bfloat16", "bf16-mixed": "bfloat16",
    "float16": "float16", "fp16-mixed": "float16", "16-mixed": "float16",
    "fp32": "float32", "float32": "float32",
}  # fmt: skip
EIGHT_BIT = ("fp8", "bf16+fp8linear", "bf16+fp8 tensorwise")
PURE = ("bf16-pure", "bf16-true")
_LLAMA_MULTIPLE = 256  # of a Llama's inner width, 8/3 of the hidden size (Touvron et al. 2023)
# `zero1=8`, as InternLM's configurations have it (-1 is all), or in words.
_SHARDS = re.compile(r"\bzero\d=(\d+)|\bsharded over (\d+) (?:GPU|device|rank)", re.IGNORECASE)
_ADAPTERS = re.compile(r"\b(q?lora|dora|adapter)\b", re.IGNORECASE)


class Unpredictable(Exception):
    """Why a row is not predicted."""


@dataclass(frozen=True)
class Settled:
    """A row with nothing left open. `zero` is a ZeRO stage, `shards` over how many of the `dp`
    devices it divides: all of them, unless the row says otherwise."""

    row: Row
    framework: Framework
    dims: Dims
    precision: str
    n_gpus: int
    gpus_per_node: int | None
    dp: int
    shards: int
    tp: int
    cp: int
    pp: int
    vpp: int
    sequence: bool
    zero: int
    micro_batch: int
    microbatches: int
    recompute: Recompute
    compiled: bool
    assumed: tuple[str, ...]

    @property
    def global_batch(self) -> int:
        return self.dp * self.micro_batch * self.microbatches

    @property
    def tokens(self) -> int:
        return self.global_batch * self.dims.seq_len


def settle(row: Row) -> Settled:
    """Raises Unpredictable, with the reason."""
    _refuse(row)
    framework = framework_of(row)
    filler = _Filler(framework)
    n_gpus, dp, tp, cp, pp = _degrees(row, filler)
    if row.precision is None and framework.precision is None:
        precision = filler.guess("precision", None, "fp16" if "V100" in row.gpu else "bf16")
    else:
        precision = filler.take("precision", row.precision, framework.precision).lower()
    if precision not in DTYPES:
        raise Unpredictable(f"precision {precision} has no counterpart among the captured dtypes")
    if row.gpus_per_node is None and n_gpus > 1:
        filler.assumed.append("gpus_per_node")
    named = filler.guess(
        "activation_recompute", row.activation_recompute, framework.recompute or "none"
    )
    # The policy of `op` is in the model, nothing of it is left to the plan.
    recompute: Recompute = "none" if named == "op" else cast(Recompute, named)
    micro_batch = row.micro_batch
    if micro_batch is None and row.global_batch == dp:
        micro_batch = 1  # nothing else divides it so
    if micro_batch is None:
        raise Unpredictable("micro_batch is not stated")
    if row.global_batch is not None:
        if row.global_batch % (dp * micro_batch):
            raise Unpredictable(
                f"global_batch {row.global_batch} is no multiple of dp {dp} * micro_batch "
                f"{micro_batch}"
            )
        microbatches = row.global_batch // (dp * micro_batch)
    elif pp == 1:
        microbatches = 1
        if framework.name != "torchtitan":
            filler.assumed.append("global_batch=dp*micro_batch")
    else:
        raise Unpredictable("global_batch is not stated, and so not the number of microbatches")
    sequence = tp > 1 and filler.take("sp", row.sp, framework.sequence)
    zero = filler.take("zero_or_fsdp", row.zero_or_fsdp, framework.sharding) if dp > 1 else 0
    compiled = framework.executor.compiled if row.compile is None else row.compile
    return Settled(
        row=row,
        framework=framework,
        dims=_dims(row, framework, tp, precision, compiled, filler),
        precision=precision,
        n_gpus=n_gpus,
        gpus_per_node=row.gpus_per_node,
        dp=dp, shards=_shards(row, dp) if zero else dp, tp=tp, cp=cp, pp=pp,
        vpp=row.vpp or 1,
        sequence=sequence,
        zero=zero,
        micro_batch=micro_batch,
        microbatches=microbatches,
        recompute=recompute,
        compiled=compiled,
        assumed=tuple(filler.assumed),
    )  # fmt: skip


def _shards(row: Row, dp: int) -> int:
    """Over how many devices the notes have parameters or their optimizer's states divided."""
    found = _SHARDS.search(row.notes)
    shards = int(found[1] or found[2]) if found else dp
    if shards == 0 or dp % shards:
        raise Unpredictable(f"notes: sharded over {shards} devices, no divisor of dp {dp}")
    return shards


_T = TypeVar("_T")


class _Filler:
    """Fills empty cells, and keeps a list of those that were filled by assumption."""

    def __init__(self, framework: Framework) -> None:
        self.framework = framework
        self.assumed: list[str] = []

    def take(self, name: str, given: _T | None, usual: _T | None) -> _T:
        """What the framework documents, an assumption where runs differ from it."""
        if given is not None:
            return given
        if usual is None:
            raise Unpredictable(f"{name} is not stated")
        if name in self.framework.assumes:
            self.assumed.append(f"{name}={usual}")
        return usual

    def guess(self, name: str, given: _T | None, usual: _T) -> _T:
        if given is None:
            self.assumed.append(f"{name}={usual}")
            return usual
        return given


def _refuse(row: Row) -> None:
    """What the file has no columns for, or the simulator no part."""
    if row.arch == "moe":
        raise Unpredictable("arch moe: the file has no columns for experts and how many are taken")
    if row.arch not in ("gpt", "llama"):
        raise Unpredictable(f"arch {row.arch or 'not stated'} is none of gpt, llama")
    if _ADAPTERS.search(row.model):
        raise Unpredictable(
            "adapters are trained in place of the model; their sizes are not stated"
        )
    if row.offload not in (None, "none"):
        raise Unpredictable(f"offload: {row.offload}; how it is overlapped is not stated")
    if row.ep not in (None, 1):
        raise Unpredictable(f"ep {row.ep} beside arch {row.arch}, which has no experts")


def _degrees(row: Row, filler: _Filler) -> tuple[int, int, int, int, int]:
    """n_gpus, dp, tp, cp, pp.

    One that is empty is what the others leave of n_gpus. Where more are: `dp` is what the
    others leave, context parallelism is nobody's default, and a framework that cuts nothing
    but the batch has none of the others.
    """
    if row.n_gpus is None:
        raise Unpredictable("n_gpus is not stated")
    sizes = {"dp": row.dp, "tp": row.tp, "cp": row.cp, "pp": row.pp}
    left = row.n_gpus
    for size in sizes.values():
        left //= size or 1
    missing = [name for name, size in sizes.items() if size is None]
    if left == 1:
        sizes |= dict.fromkeys(missing, 1)
    elif "dp" in missing:
        for name in missing[1:]:
            if name == "cp":
                sizes[name] = 1
            elif filler.framework.cuts_batch_alone:
                sizes[name] = filler.guess(name, None, 1)
        sizes["dp"] = left
    elif len(missing) == 1:
        sizes[missing[0]] = left
    open_ = [name for name, size in sizes.items() if size is None]
    if open_:
        raise Unpredictable(f"{', '.join(open_)} not stated")
    dp, tp, cp, pp = (size or 1 for size in sizes.values())
    return row.n_gpus, dp, tp, cp, pp


def _dims(
    row: Row, framework: Framework, tp: int, precision: str, compiled: bool, filler: _Filler
) -> Dims:
    if row.layers is None or row.hidden is None or row.heads is None:
        names = [name for name in ("layers", "hidden", "heads") if getattr(row, name) is None]
        raise Unpredictable(f"{', '.join(names)} not stated")
    if row.hidden % row.heads:
        raise Unpredictable(
            f"hidden {row.hidden} is no multiple of {row.heads} heads, and the file has no column "
            "for the width of a head"
        )
    ffn = row.ffn
    if ffn is None:
        ffn = 4 * row.hidden if row.arch == "gpt" else _ceil(8 * row.hidden // 3, _LLAMA_MULTIPLE)
    vocab = row.vocab or framework.vocab
    if vocab is None:
        vocab = filler.guess("vocab", None, 50257 if row.arch == "gpt" else 32000)
    if framework.vocab_multiple > 1:
        vocab = _ceil(vocab, framework.vocab_multiple * tp)
    flash = row.flash_attention
    if flash is None and not framework.fused_attention and row.arch == "llama":
        flash = filler.guess("flash_attention", None, True)  # published after FlashAttention
    elif flash is None:
        flash = framework.fused_attention
    return Dims(
        arch=row.arch,
        layers=row.layers,
        hidden=row.hidden,
        heads=row.heads,
        kv_heads=row.kv_heads or row.heads,
        ffn=ffn,
        vocab=vocab,
        seq_len=filler.take("seq_len", row.seq_len, framework.seq_len),
        bias=row.arch == "gpt",
        tied=framework.tied and row.arch == "gpt",
        fused_attention=flash,
        dtype=DTYPES[precision],
        dropout=framework.dropout if row.arch == "gpt" else 0.0,
        # With whole blocks computed again, nothing else of them is kept anyway.
        fused=row.arch == "llama" and compiled and row.activation_recompute not in ("full", "op"),
        op_by_op=row.activation_recompute == "op",
    )


def _ceil(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def measured_step_s(row: Row, settled: Settled) -> tuple[float, str] | None:
    """The measured step time and what it comes from; None where only a rate of FLOPs is given,
    whose definition differs from source to source."""
    if row.step_time_s is not None:
        return row.step_time_s, "step_time_s"
    if row.tokens_per_s_per_gpu is not None:
        return settled.tokens / (row.tokens_per_s_per_gpu * settled.n_gpus), "tokens_per_s_per_gpu"
    if row.derived_step_time_s is not None:
        return row.derived_step_time_s, "notes"
    return None

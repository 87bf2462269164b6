"""What each training framework is documented to do: how it overlaps, fuses, stores and defaults.

Facts from the frameworks' own documentation and code, never fitted. A row's framework follows
from the name of its source; a source that names none is taken as the plainest of its kind.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from benchmarks.published.rows import Row

from meshwright.cost.hardware import AttentionKernel
from meshwright.simulate.executor import Executor

_UNIT = 2**31  # larger than the parameters of any one block: what FSDP gathers at once


@dataclass(frozen=True)
class Framework:
    """Defaults are for what a row leaves empty; those in `assumes` can differ from run to run.

    sharding: ZeRO stage. sequence: sequence parallelism beside tensor parallelism. vocab: of its
    usual tokenizer. vocab_multiple: what the vocabulary is padded to a multiple of, for each
    tensor part. fp32_gradients: dtypes of parameters whose gradients are summed and reduced in
    float32. dropout: of embeddings, of attention's weights and before residuals, in `gpt`.
    attention, attention_hopper: the generation of its fused kernel, and that on Hopper and
    later. cuts_batch_alone: no tensor or pipeline parallelism unless a row says so.
    """

    name: str
    source: str
    executor: Executor
    precision: str | None = None
    recompute: str | None = None
    sharding: int | None = None
    sequence: bool = False
    seq_len: int | None = None
    vocab: int | None = None
    vocab_multiple: int = 1
    fused_attention: bool = True
    tied: bool = True
    dropout: float = 0.0
    fp32_gradients: tuple[str, ...] = ("bfloat16",)
    attention: AttentionKernel = "flash2"
    attention_hopper: AttentionKernel = "flash2"
    assumes: tuple[str, ...] = ()
    cuts_batch_alone: bool = False


_FUSED = Executor(
    gradient_buffer=True, adds_gradients=True, master_gradients=True, keeps_sent=True,
    sends_parts=True, gathers_in_place=True, regathers=True, fused_optimizer=True, compiled=True,
    cached_allocator=True,
)  # fmt: skip

MEGATRON_DEEPSPEED = Framework(
    name="Megatron-DeepSpeed",
    source="Megatron-LM's fused kernels (bias with GELU, scaling with mask and softmax, layer "
    "norm, Adam; Narayanan et al. 2021, 4.2) under DeepSpeed's pipeline engine, which sends and "
    "receives between computing, keeps what it sent until the microbatch comes back "
    "(deepspeed/runtime/pipe/engine.py, pipe_buffers) and reduces gradients after the last "
    "microbatch (deepspeed.ai/tutorials/pipeline); gradients have a float32 copy beside the "
    "optimizer's master weights (deepspeed/runtime/zero/stage_1_and_2.py). fp16 and "
    "no ZeRO unless told otherwise, GPT-2's "
    "vocabulary padded to a multiple of 128 for each tensor part (megatron/arguments.py). Its "
    "bf16 optimizer sums and reduces gradients in float32 (deepspeed/runtime/bf16_optimizer.py).",
    executor=_FUSED,
    precision="fp16",
    sharding=0,
    vocab=50257,
    vocab_multiple=128,
    fused_attention=False,
    dropout=0.1,
)

MEGATRON_LM = replace(
    MEGATRON_DEEPSPEED,
    name="Megatron-LM",
    source="Megatron-LM before Megatron-Core (Shoeybi et al. 2019; Narayanan et al. 2021): fused "
    "kernels as above, 1F1B or interleaved, gradients in one buffer and reduced after the last "
    "microbatch.",
)

MEGATRON_CORE = Framework(
    name="Megatron-Core",
    source="docs.nvidia.com/megatron-core: --overlap-grad-reduce, --overlap-param-gather, "
    "--use-distributed-optimizer, --tp-comm-overlap and sequence parallelism as in NVIDIA's own "
    "recipes; Transformer Engine's fused attention; gradients in a float32 buffer; embedding and "
    "head untied in the recipes of Llama and Nemotron.",
    executor=Executor(
        overlap_gradients=True, overlap_gathers=True, overlap_pipeline=True, overlap_tensor=True,
        gathers_in_place=True, regathers=True,
        bucket_bytes=160 * 2**20, gradient_buffer=True, fused_optimizer=True, compiled=True,
        cached_allocator=True,
    ),
    recompute="none",
    sharding=1,
    sequence=True,
    vocab_multiple=128,
    tied=False,
    attention_hopper="flash3",
    assumes=("activation_recompute", "zero_or_fsdp", "sp"),
)  # fmt: skip

_FSDP = Executor(
    overlap_gradients=True, overlap_gathers=True, bucket_bytes=_UNIT, gradient_buffer=True,
    fused_optimizer=True, cached_allocator=True,
)  # fmt: skip

LLM_FOUNDRY = Framework(
    name="llm-foundry",
    source="Composer on PyTorch FSDP, a block a unit, the next gathered beside this one's compute "
    "(mosaicml/llm-foundry scripts/train/yamls/pretrain; docs.mosaicml.com FSDP): bf16 autocast; "
    "DEFAULT keeps float32 shards and reduces in float32, PURE keeps and reduces bf16. MPT has "
    "biases, learned positions, tied embeddings; attn_impl: triton (FlashAttention 1).",
    executor=_FSDP,
    sharding=3,
    attention="flash1",
    attention_hopper="flash1",
    cuts_batch_alone=True,
)

TORCHTITAN = Framework(
    name="torchtitan",
    source="pytorch/torchtitan docs and train_configs: FSDP2 a block a unit, bf16 parameters and "
    "float32 reduction, F.scaled_dot_product_attention, foreach or fused AdamW; one microbatch a "
    "step without a pipeline; sequence parallelism with every tensor axis.",
    executor=_FSDP,
    sharding=3,
    sequence=True,
    seq_len=8192,
    tied=False,
    assumes=("seq_len",),
)

INTERNLM = Framework(
    name="InternLM",
    source="InternLM/InternLM configs/7B_sft.py and doc/en/train_performance.md: hybrid ZeRO-1, "
    "gradients reduced and parameters gathered beside compute in buckets of 512 MB "
    "(overlap_sync_grad, overlap_sync_param), flash-attn 1.0.5 with its fused RMS norm and rotary "
    "kernels (doc/en/install.md).",
    executor=Executor(
        overlap_gradients=True, overlap_gathers=True, bucket_bytes=512 * 2**20,
        gradient_buffer=True, adds_gradients=True, whole_owners=True, gathers_in_place=True,
        fused_optimizer=True, compiled=True, cached_allocator=True,
    ),
    sharding=1,
    tied=False,
    fp32_gradients=(),
    attention="flash1",
    cuts_batch_alone=True,
)  # fmt: skip

PLAIN_FSDP = Framework(
    name="FSDP",
    source="docs.pytorch.org FSDP: a block a unit, forward and backward prefetch.",
    executor=_FSDP,
    sharding=3,
    assumes=("activation_recompute",),
    cuts_batch_alone=True,
)

PLAIN = Framework(
    name="PyTorch",
    source="docs.pytorch.org DistributedDataParallel: gradients reduced in buckets of 25 MB "
    "beside the backward.",
    executor=Executor(
        overlap_gradients=True, bucket_bytes=25 * 2**20, gradient_buffer=True, adds_gradients=True,
        cached_allocator=True,
    ),
    sharding=0,
    assumes=("zero_or_fsdp", "activation_recompute"),
    cuts_batch_alone=True,
)  # fmt: skip

DEEPSPEED = replace(
    PLAIN,
    name="DeepSpeed",
    source="deepspeed.ai/docs/config-json: ZeRO with overlap_comm (its default for stage 3), "
    "buckets of 500 million elements, the next parameters fetched ahead, fused Adam; "
    "gradients have a float32 copy as in Megatron-DeepSpeed.",
    executor=replace(
        PLAIN.executor, overlap_gathers=True, gathers_in_place=True, bucket_bytes=10**9,
        master_gradients=True, fused_optimizer=True,
    ),
)  # fmt: skip

XLA = replace(
    PLAIN_FSDP,
    name="JAX",
    source="openxla.org/xla: the step is compiled as a whole, pointwise chains fused, "
    "collectives hidden behind compute by the latency-hiding scheduler.",
    executor=replace(_FSDP, compiled=True, overlap_tensor=True),
    assumes=("activation_recompute", "zero_or_fsdp"),
)

# Of sources that name no framework but cut tensors, sequences or layers: those that do are
# Megatron's heirs, with its kernels and schedules.
TENSOR_AND_PIPELINE = replace(
    MEGATRON_LM, name="tensor and pipeline parallel", assumes=("zero_or_fsdp", "sp")
)
TENSOR_AND_PIPELINE_NEW = replace(
    MEGATRON_CORE,
    name="tensor and pipeline parallel, Hopper on",
)

_BY_NAME: tuple[tuple[str, Framework], ...] = (
    # The more telling names first: NVIDIA/Megatron-LM holds several frameworks.
    (r"llm-?foundry|mosaicml|\bmpt\b", LLM_FOUNDRY),
    (r"torchtitan", TORCHTITAN),
    (r"internlm|internevo", INTERNLM),
    (r"megatron[- .]deepspeed|bigscience|\bbloom\b|vtrain|neox|\bmt-nlg\b|turing-nlg",
     MEGATRON_DEEPSPEED),
    (r"megatron-?bridge|\bnemo\b|nemotron|mcore|megatron[- ]core|megatron-lm examples/llama",
     MEGATRON_CORE),
    (r"megatron", MEGATRON_LM),
    (r"deepspeed", DEEPSPEED),
    (r"maxtext|\bjax\b|axlearn|levanter|easylm|\bpax(ml)?\b|\balpa\b", XLA),
)  # fmt: skip
_OLD = re.compile(r"V100|A100|A800|A40|A6000|P100|T4\b", re.IGNORECASE)


def framework_of(row: Row) -> Framework:
    """By the name of the source, else by what its notes name, else by how the model is cut."""
    cut = max(row.tp or 1, row.pp or 1) > 1
    old = bool(_OLD.search(row.gpu))
    for where in (f"{row.source} {row.url_or_repo_path}", row.notes):
        for names, framework in _BY_NAME:
            if re.search(names, where, re.IGNORECASE):
                # Of DeepSpeed alone the pipeline is that of Megatron-DeepSpeed. Hopper and
                # Megatron-Core, into which Megatron-LM moved, came in one year.
                if framework is DEEPSPEED and cut:
                    return MEGATRON_DEEPSPEED
                if framework is MEGATRON_LM and not old:
                    return MEGATRON_CORE
                return framework
    if row.zero_or_fsdp == 3 and (row.pp or 1) == 1:
        return PLAIN_FSDP
    if cut or (row.cp or 1) > 1:
        return TENSOR_AND_PIPELINE if old else TENSOR_AND_PIPELINE_NEW
    return PLAIN

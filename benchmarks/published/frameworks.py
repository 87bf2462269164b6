"""What each training framework is documented to do: how it overlaps, fuses, stores and defaults.

Facts from the frameworks' own documentation and code, never fitted. A row's framework follows
from the name of its source; a source that names none is taken as the plainest of its kind.
"""

from __future__ import annotations

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
    later.
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


_FUSED = Executor(
    gradient_buffer=True, adds_gradients=True, master_gradients=True, keeps_sent=True,
    sends_parts=True, fused_optimizer=True, compiled=True, cached_allocator=True,
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
        gradient_buffer=True, adds_gradients=True, whole_owners=True, fused_optimizer=True,
        compiled=True, cached_allocator=True,
    ),
    sharding=1,
    tied=False,
    fp32_gradients=(),
    attention="flash1",
)  # fmt: skip

PLAIN_FSDP = Framework(
    name="FSDP",
    source="docs.pytorch.org FSDP: a block a unit, forward and backward prefetch.",
    executor=_FSDP,
    sharding=3,
    assumes=("activation_recompute",),
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
)  # fmt: skip

_BY_NAME = (
    # The more telling names first: NVIDIA/Megatron-LM holds several frameworks.
    ("llm-foundry", LLM_FOUNDRY),
    ("torchtitan", TORCHTITAN),
    ("internlm", INTERNLM),
    ("deepspeed", MEGATRON_DEEPSPEED),
    ("bigscience", MEGATRON_DEEPSPEED),
    ("vtrain", MEGATRON_DEEPSPEED),
    ("megatron-bridge", MEGATRON_CORE),
    ("nemo", MEGATRON_CORE),
    ("nemotron", MEGATRON_CORE),
    ("mcore", MEGATRON_CORE),
    ("megatron-core", MEGATRON_CORE),
    ("megatron-lm examples/llama", MEGATRON_CORE),
    ("megatron", MEGATRON_LM),
)


def framework_of(row: Row) -> Framework:
    """By the name of the source; by how parameters are stored where that says nothing."""
    where = f"{row.source} {row.url_or_repo_path}".lower()
    for name, framework in _BY_NAME:
        if name in where:
            return framework
    return PLAIN_FSDP if row.zero_or_fsdp == 3 else PLAIN

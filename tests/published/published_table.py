"""A made-up row that makes sense, to be changed, and files of such rows."""

from __future__ import annotations

import csv
from pathlib import Path

from benchmarks.published.rows import COLUMNS

GOOD = dict.fromkeys(COLUMNS, "") | {
    "source": "A made-up Megatron-DeepSpeed sweep", "model": "GPT 1B", "layers": "24",
    "hidden": "2048", "heads": "16", "seq_len": "1024", "arch": "gpt", "gpu": "A100-SXM-80GB",
    "n_gpus": "16", "gpus_per_node": "8", "dp": "4", "tp": "2", "sp": "0", "cp": "1", "pp": "2",
    "vpp": "1", "ep": "1", "zero_or_fsdp": "1", "micro_batch": "2", "global_batch": "64",
    "activation_recompute": "full", "precision": "fp16", "offload": "none",
    "flash_attention": "0", "step_time_s": "1.5", "peak_mem_gib": "20",
    "notes": 'printed as "GB", see notes',
}  # fmt: skip


def write(path: Path, *rows: dict[str, str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path

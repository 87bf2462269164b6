"""From a file of rows to predictions: what is filled in, what is refused, and what comes out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.published.__main__ import main
from benchmarks.published.clusters import cluster_for, kind_of
from benchmarks.published.frameworks import LLM_FOUNDRY, MEGATRON_CORE, framework_of
from benchmarks.published.models import block_name, stands_for
from benchmarks.published.predict import predict
from benchmarks.published.rows import Row, parse_row
from benchmarks.published.settle import Settled, Unpredictable, measured_step_s, settle
from benchmarks.published.strategies import blocks_of_pieces, pipeline_of, strategy_text
from benchmarks.published.summary import PARTS, part_of, quantile, rank_correlation
from published_table import GOOD, write

ROOT = Path(__file__).parent.parent.parent

LLAMA = GOOD | {
    "source": "MosaicML llm-foundry, made up", "arch": "llama", "layers": "8", "heads": "16",
    "kv_heads": "4", "vocab": "32000", "gpu": "H100-SXM-80GB", "n_gpus": "8", "dp": "8", "tp": "1",
    "pp": "1", "zero_or_fsdp": "3", "micro_batch": "2", "global_batch": "32",
    "activation_recompute": "none", "precision": "bf16", "flash_attention": "1",
    "step_time_s": "", "tokens_per_s_per_gpu": "20000", "peak_mem_gib": "",
}  # fmt: skip
GPT_FSDP = LLAMA | {"arch": "gpt", "kv_heads": "", "vocab": "50368", "gpu": "A100-SXM-40GB"}
TENSOR = GOOD | {"pp": "1", "tp": "4", "dp": "4", "layers": "6"}
INTERLEAVED = GOOD | {"vpp": "3"}
ROWS = (GOOD, LLAMA, GPT_FSDP, TENSOR, INTERLEAVED, LLAMA | {"arch": "moe"})


def row(**cells: str) -> Row:
    return parse_row(2, GOOD | cells)


def settled(**cells: str) -> Settled:
    return settle(row(**cells))


def test_empty_cells_are_filled_by_the_frameworks_conventions() -> None:
    found = settled(zero_or_fsdp="", precision="", ffn="", vocab="", flash_attention="")
    assert (found.zero, found.precision, found.dims.ffn) == (0, "fp16", 4 * 2048)
    assert found.dims.vocab == 50432  # 50257, padded to a multiple of 128 * 2
    assert not found.dims.fused_attention
    assert found.assumed == ()


def test_what_may_differ_between_runs_is_named() -> None:
    found = settled(source="NVIDIA NeMo, made up", activation_recompute="", sp="", vocab="64000")
    assert found.framework is MEGATRON_CORE
    assert set(found.assumed) == {"activation_recompute=none", "sp=True"}


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"arch": "moe"}, "no columns for experts"),
        ({"arch": "unet"}, "none of gpt, llama"),
        ({"heads": ""}, "heads not stated"),
        ({"heads": "15"}, "no multiple of 15 heads"),
        ({"micro_batch": ""}, "micro_batch is not stated"),
        ({"precision": "nvfp4"}, "nvfp4"),
        ({"model": "Llama LoRA"}, "adapters"),
        ({"offload": "optimizer"}, "offload"),
        ({"global_batch": ""}, "number of microbatches"),
        ({"notes": "zero1=3 (optimizer sharded over 3 GPUs)"}, "no divisor of dp 4"),
        ({"n_gpus": ""}, "n_gpus is not stated"),
    ],
)
def test_what_is_left_open_is_the_reason_for_no_prediction(
    cells: dict[str, str], reason: str
) -> None:
    with pytest.raises(Unpredictable, match=reason):
        settled(**cells)


@pytest.mark.parametrize(
    "gpu", ["Gaudi 2", "GH200", "H100-NVL-94GB", "RTX A6000 Ada", "TPUv5e", ""]
)
def test_an_unknown_device_is_a_reason_and_no_guess(gpu: str) -> None:
    with pytest.raises(Unpredictable, match="no profile"):
        kind_of(gpu)


@pytest.mark.parametrize(
    ("gpu", "kind"),
    [
        ("A100", "a100-80g"), ("V100-SXM2-16GB", "v100-16g"), ("A100-PCIe-40GB", "a100-40g-pcie"),
        ("NVIDIA A100 40GB PCIe", "a100-40g-pcie"), ("A800-SXM-80GB", "a100-80g"),
        ("H800", "h100-sxm"), ("H100 PCIe 80GB", "h100-pcie"), ("H200-SXM", "h200"),
        ("GB200", "gb200"), ("TPU v4", "tpu-v4"),
    ],
)  # fmt: skip
def test_devices_are_told_by_their_text(gpu: str, kind: str) -> None:
    assert kind_of(gpu) == kind


def test_export_cards_have_slower_links_between_them() -> None:
    rates = {
        gpu: cluster_for(settled(gpu=gpu)).groups[0].levels[0].bytes_per_s
        for gpu in ("A100-SXM-80GB", "A800-SXM-80GB")
    }
    assert rates["A800-SXM-80GB"] < rates["A100-SXM-80GB"]


def test_networks_are_read_from_what_the_row_says() -> None:
    cards = cluster_for(settled(notes="Omni-Path 4x100Gb")).groups[0].levels[-1]
    assert (cards.bytes_per_s, cards.shared_by) == (12.5e9, 2)
    rate = cluster_for(settled(notes="800 Gb/s inter-node")).groups[0].levels[-1]
    assert (rate.bytes_per_s, rate.shared_by) == (12.5e9, 1)


def test_a_card_below_its_data_sheet_is_one() -> None:
    found = cluster_for(
        settled(gpu="H100-SXM-96GB-HBM2e (500W)", notes="96GB HBM2e 2.4TB/s at 500W")
    )
    profile = found.groups[0].profile
    assert (profile.power_w, profile.memory_bytes_per_s) == (500, 2.4e12)


def test_frameworks_are_told_by_the_source() -> None:
    assert framework_of(row(source="MosaicML llm-foundry README")) is LLM_FOUNDRY
    for source, cells, name in (
        ("someone's blog", {"zero_or_fsdp": "3", "pp": "1", "dp": "8"}, "FSDP"),
        ("someone's blog", {}, "tensor and pipeline parallel"),
        ("someone's blog", {"gpu": "H100"}, "tensor and pipeline parallel, Hopper on"),
        ("someone's blog", {"notes": "with Megatron-DeepSpeed"}, "Megatron-DeepSpeed"),
        ("someone's blog", {"tp": "1", "pp": "1", "dp": "16"}, "PyTorch"),
        ("DeepSpeed ZeRO blog", {"tp": "1", "pp": "1", "dp": "16"}, "DeepSpeed"),
        ("DeepSpeed 3D blog", {}, "Megatron-DeepSpeed"),
        ("Megatron-LM paper", {}, "Megatron-LM"),
        ("Megatron-LM README", {"gpu": "H100"}, "Megatron-Core"),
        ("megatron core", {}, "Megatron-Core"),
        ("MaxText", {}, "JAX"),
    ):
        assert framework_of(row(source=source, **cells)).name == name, (source, cells)


def test_empty_degrees_are_what_the_others_leave() -> None:
    assert settled(cp="").cp == 1
    assert settled(cp="", dp="2").cp == 2
    assert settled(cp="", dp="").dp == 4
    open_ = {"dp": "", "tp": "", "cp": "", "pp": "", "zero_or_fsdp": "3", "vocab": "32000"}
    batch_alone = settled(source="FSDP run", **open_)
    assert (batch_alone.dp, batch_alone.assumed) == (16, ("tp=1", "pp=1"))
    with pytest.raises(Unpredictable, match="tp, pp not stated"):
        settled(dp="", tp="", cp="", pp="")


def test_a_row_without_measurements_is_predicted() -> None:
    found = predict(row(step_time_s="", peak_mem_gib=""))
    assert found.step_error is None
    assert found.memory_error is None
    assert found.predicted_s > 0


def test_degrees_become_a_strategy() -> None:
    assert strategy_text(settled()) == (
        "stage=2,data=4,tensor=2,zero=1,recompute=full,microbatches=8"
    )
    assert "virtual=3,schedule=interleaved" in strategy_text(settled(vpp="3"))
    assert strategy_text(settled(n_gpus="1", dp="1", tp="1", pp="1")).startswith("data=1")


def test_shards_over_fewer_devices_make_replicas() -> None:
    text = strategy_text(settled(notes="zero1=2 (optimizer sharded over 2 GPUs)"))
    assert "replica=2,data=2,tensor=2,zero=1" in text
    assert "replica" not in strategy_text(settled(notes="zero1=-1 (sharded over all DP ranks)"))


def test_shards_lie_over_the_context_axis_too() -> None:
    """As many devices hold the parameters, however they divide batch and sequence."""
    alone = predict(parse_row(2, LLAMA)).simulation.memory
    both = predict(parse_row(2, LLAMA | {"dp": "4", "cp": "2"})).simulation.memory
    assert both["parameters"] == alone["parameters"]
    assert both["optimizer"] == alone["optimizer"]


def test_recomputation_op_by_op_lies_between_none_and_full() -> None:
    memory, seconds = {}, {}
    for how in ("none", "op", "full"):
        found = predict(parse_row(2, LLAMA | {"activation_recompute": how}))
        memory[how], seconds[how] = found.simulation.memory["activations"], found.predicted_s
    assert memory["full"] < memory["op"] < memory["none"]
    assert seconds["none"] < seconds["op"] < seconds["full"]


def test_gathered_parameters_hold_what_is_stored_of_them() -> None:
    """Megatron's and DeepSpeed's shards lie in the buffer of the whole."""
    memory = predict(parse_row(2, GOOD)).simulation.memory
    assert memory["parameters"] < 0.01 * memory["gathered"]  # what is too small to be cut


def test_fused_kernels_keep_their_inputs_alone() -> None:
    kept = {}
    for compiled in ("0", "1"):
        found = predict(parse_row(2, LLAMA | {"compile": compiled}))
        kept[compiled] = found.simulation.memory["activations"]
    assert kept["1"] < 0.8 * kept["0"]


@pytest.mark.parametrize(("layers", "pieces"), [(70, 12), (72, 12), (78, 12), (126, 128), (7, 3)])
def test_pieces_hold_all_blocks_evenly(layers: int, pieces: int) -> None:
    sizes = blocks_of_pieces(layers, pieces)
    assert (len(sizes), sum(sizes)) == (pieces, layers)
    assert max(sizes) - min(sizes) <= 1


def test_cuts_name_the_blocks_of_the_whole_model() -> None:
    dims = settled().dims
    pipeline = pipeline_of(settled())
    assert pipeline is not None
    assert pipeline.cuts == ("layers.1#11",)
    assert stands_for(dims) == {"layers.1": 22}
    assert block_name(dims, 23) == "layers.2"


def test_measured_times_prefer_what_the_source_printed() -> None:
    one = row(tokens_per_s_per_gpu="999", step_time_s="2")
    assert measured_step_s(one, settle(one)) == (2.0, "step_time_s")
    other = row(tokens_per_s_per_gpu="1024", step_time_s="")
    assert measured_step_s(other, settle(other)) == (
        64 * 1024 / (1024 * 16),
        "tokens_per_s_per_gpu",
    )
    rate = row(tflops_per_gpu="100", step_time_s="")
    assert measured_step_s(rate, settle(rate)) is None


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict:  # type: ignore[type-arg]
    path = write(tmp_path_factory.mktemp("published") / "rows.csv", *ROWS)
    done = run(path, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.published", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=250,
    )  # fmt: skip


def test_json_has_figures_overall_by_source_rows_and_skipped(result: dict) -> None:  # type: ignore[type-arg]
    assert set(result) == {
        "overall", "sources", "parts", "all_predicted", "rows", "skipped"
    }  # fmt: skip
    assert set(result["sources"]) == {GOOD["source"], LLAMA["source"]}
    for figures in (result["overall"], *result["sources"].values(), *result["parts"].values()):
        assert set(figures) == {"step_time", "memory"}
        for numbers in figures.values():
            assert set(numbers) == {"count", "median", "p90", "rank"}
    assert result["overall"]["step_time"]["count"] == len(result["rows"]) == len(ROWS) - 1
    assert result["overall"]["memory"]["count"] == 3
    assert [(item["line"], "experts" in item["reason"]) for item in result["skipped"]] == [
        (7, True)
    ]
    for row in result["rows"]:
        assert row["error"]["step_time"] == pytest.approx(
            row["predicted"]["step_time_s"] / row["measured"]["step_time_s"] - 1
        )
        assert row["part"] in PARTS


def test_predictions_obey_physics(result: dict) -> None:  # type: ignore[type-arg]
    """No faster than the peak rate allows, no smaller than the parameters; not absurdly more."""
    by_line = {row["line"]: row["predicted"] for row in result["rows"]}
    peaks = {"A100": 312e12, "H100": 989.4e12}
    for line, cells in enumerate(ROWS[:-1], 2):
        one = settle(parse_row(line, cells))
        dims, again = one.dims, 4 if one.recompute == "full" else 3
        wide = 2 if dims.arch == "gpt" else 3
        kv = 2 * dims.hidden * dims.kv_heads * dims.head_width
        block = 2 * dims.hidden**2 + kv + wide * dims.hidden * dims.ffn
        flops = 2 * again * block * dims.layers * one.tokens
        ideal = flops / one.n_gpus / peaks[cells["gpu"][:4]]
        assert ideal < by_line[line]["step_time_s"] < 12 * ideal
        sharded = one.tp * one.pp * (one.dp if one.zero == 3 else 1)
        parameters = 2 * block * dims.layers / sharded
        assert parameters / 2**30 < by_line[line]["peak_memory_gib"] < 80
    # Interleaving three pieces a stage leaves a smaller bubble.
    assert by_line[6]["bubble"] < by_line[2]["bubble"]


def test_more_work_takes_longer() -> None:
    times = {}
    for batch in (64, 128):
        times[batch] = predict(row(global_batch=str(batch))).predicted_s
    assert 1.5 < times[128] / times[64] < 2.0


def test_contradictions_are_named_and_the_rest_is_predicted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "some.csv", TENSOR, GOOD | {"dp": "3"})
    assert main([str(path), "--json"]) == 2
    out, err = capsys.readouterr()
    assert "line 3: n_gpus is 16; expected dp 3 * tp 2 * cp 1 * pp 2 = 12" in err
    found = json.loads(out)
    assert len(found["rows"]) == 1
    assert found["skipped"][0]["line"] == 3


def test_a_file_that_is_no_table_ends_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "none.csv")]) == 2
    out, err = capsys.readouterr()
    assert "none.csv can't be read" in err
    assert out == ""


def test_tables_for_people_fit_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([str(write(tmp_path / "one.csv", TENSOR))]) == 0
    out = capsys.readouterr().out
    assert "predicted beside measured" in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_ranks_and_quantiles() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 2], [1, 1, 3]) == pytest.approx(1)
    assert rank_correlation([1, 2], [1, 2]) is None
    assert quantile([1, 2, 3, 4, 5], 0.9) == pytest.approx(4.6)
    assert quantile([], 0.5) is None


def test_the_part_of_a_row_hangs_on_what_it_says_alone() -> None:
    parts = [part_of(row(step_time_s=str(1 + k / 10))) for k in range(40)]
    assert set(parts) == set(PARTS)
    assert parts == [part_of(row(step_time_s=str(1 + k / 10), notes="x")) for k in range(40)]

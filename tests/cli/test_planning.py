"""Commands that predict: plan, compare, simulate, explain."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import pytest
from command_line import COMMAND, GPT, MLP, Here, check_error

from meshwright import load_plan

BROKEN = str(Path(__file__).with_name("broken_models.py"))
FIGURES = {"step_time_s", "peak_memory_bytes", "tokens_per_s", "mfu", "collectives"}


def test_plan_as_json(here: Here) -> None:
    done = here("plan", *GPT, "--json", "--out", "made/plan.json")
    assert done.code == 0
    found = done.object
    assert found.keys() >= FIGURES | {
        "strategy", "mesh", "capture_s", "search_s", "lower_s", "alternatives", "gap",
    }  # fmt: skip
    assert found["gap"] >= 0
    assert math.prod(found["mesh"].values()) == 4
    assert found["alternatives"]
    for other in found["alternatives"]:
        assert other.keys() >= FIGURES | {"strategy", "mesh"}
    assert all(c.keys() == {"kind", "axis", "count", "bytes"} for c in found["collectives"])
    plan = load_plan("made/plan.json")
    assert plan.strategy == found["strategy"]
    assert plan.predicted.step_time_s == found["step_time_s"]


def test_plan_for_people_fits_80_columns(here: Here) -> None:
    done = here("plan", *GPT)
    assert done.code == 0
    assert "peak memory" in done.out
    assert "Candidates" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    assert "built-in profile" in done.err


def test_plan_for_a_cluster_elsewhere(here: Here) -> None:
    found = here("plan", *GPT, "--cluster", "1x8:h100-sxm", "--json").object
    assert found["cluster"] == "1x8:h100-sxm"


def test_nothing_fits(here: Here, tmp_path: Path) -> None:
    from meshwright.cluster.profile_file import builtin_profile, save_profile

    small = builtin_profile("h100-sxm").model_copy(update={"memory_bytes": 1_000_000})
    save_profile(small, "small.json")
    model = ("zoo:gpt", "-o", "layers=2", "-o", "width=128", "-o", "seq_len=32")
    done = here("plan", *model, "--global-batch", "8", "--cluster", "1x4:small.json")
    check_error(done, 3, "No plan fits", "The closest is")
    done = here("compare", *model, "--global-batch", "8", "--cluster", "1x4:small.json", "--json")
    assert done.code == 3


def test_only_json_on_standard_output(here: Here) -> None:
    done = here("plan", f"{BROKEN}:chatty", "--cluster", "local:2", "--json")
    assert done.code == 0
    assert done.object["strategy"]
    assert "printed by a model" in done.err
    assert "written past Python" in done.err


@pytest.mark.parametrize(
    ("factory", "code", "told"),
    [
        ("fails", 4, ("no luck today", "broken_models.py")),
        ("misfit", 4, ("batch (8, 12) float32",)),
        ("quits", 2, ("it called sys.exit(3)",)),
        ("missing", 2, ("has no missing",)),
    ],
)
def test_models_that_do_not_work(factory: str, code: int, told: tuple[str], here: Here) -> None:
    check_error(here("plan", f"{BROKEN}:{factory}"), code, *told)
    found = here("plan", f"{BROKEN}:{factory}", "--json")
    assert found.code == code
    assert found.object["error"]["kind"] == ("capture" if code == 4 else "model")


def test_a_batch_that_the_mesh_can_not_divide(here: Here) -> None:
    words = ("plan", "zoo:gpt", "-o", "layers=1", "-o", "width=32", "--global-batch", "6")
    check_error(here(*words, "--strategy", "data"), 2, "6 examples", "multiple of 4")


@pytest.mark.parametrize("strategy", ["tensor=3", "sideways", "zero=4"])
def test_strategies_that_make_no_sense(strategy: str, here: Here) -> None:
    check_error(here("plan", *GPT, "--strategy", strategy), 2, f"'{strategy}'")


def test_compare(here: Here) -> None:
    found = here("compare", *GPT, "--cluster", "local:4", "--json", "--html", "c.html").object
    rows = {row["strategy"]: row for row in found["strategies"]}
    assert rows.keys() >= {
        "auto", "data", "zero=1", "zero=2", "zero=3", "tensor", "data=2,tensor=2",
        "data=2,tensor=2,zero=1",
    }  # fmt: skip
    assert found["best"] in rows
    times = {name: row["step_time_s"] for name, row in rows.items() if row["fits"]}
    assert times[found["best"]] == min(times.values())
    assert rows["auto"]["chosen"]
    assert rows[found["best"]]["front"]
    for name, row in rows.items():
        beaten = any(
            other["step_time_s"] < row["step_time_s"]
            and other["peak_memory_bytes"] < row["peak_memory_bytes"]
            for other in rows.values()
        )
        assert not (row["front"] and beaten), name
    assert '<canvas id="front"' in Path("c.html").read_text()


def test_compare_for_people_fits_80_columns(here: Here) -> None:
    done = here("compare", *GPT, "--cluster", "local:4", "--forbid", "tensor")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80
    assert "none is better in both time and memory" in done.out
    assert "'forbid tensor' forbids" in " ".join(done.out.split())


def test_compare_says_why_a_strategy_is_left_out(here: Here) -> None:
    done = here("compare", *MLP, "--cluster", "local:3")
    assert done.code == 0
    assert "3 data-parallel devices can't" in " ".join(done.out.split())
    rows = {
        row["strategy"]: row
        for row in here("compare", *MLP, "--cluster", "local:3", "--json").object["strategies"]
    }
    assert not rows["data"]["fits"]
    assert "8 examples" in rows["data"]["reason"]


def test_simulate(here: Here, gpt_plan: Path) -> None:
    done = here("simulate", *GPT, "--plan", gpt_plan, "--trace", "trace.json", "--json")
    found = done.object
    assert sum(found["memory"].values()) == found["peak_memory_bytes"]
    assert found["step_time_s"] > 0
    assert found["peak_at"]
    trace = json.loads(Path("trace.json").read_text())
    assert any(event["ph"] == "X" for event in trace["traceEvents"])
    done = here("simulate", *GPT, "--strategy", "zero=1")
    assert done.code == 0
    assert "reached at" in done.out


def test_explain(here: Here, gpt_plan: Path) -> None:
    done = here("explain", gpt_plan)
    assert done.code == 0
    assert "Sharded over the mesh" in done.out
    found = here("explain", gpt_plan, "--json").object
    assert found["decisions"]
    assert sum(group["count"] for group in found["residencies"]) == 28


def test_explain_one_value(here: Here, gpt_plan: Path) -> None:
    found = here("explain", gpt_plan, "--value", "blocks.0.mlp.fc.weight", "--json").object
    assert found["cuts"] == [{"axis": "tensor", "dim": 0, "cut": "dim 0"}]
    assert found["residency"] == "always"
    found = here("explain", gpt_plan, "--value", "blocks.0.mlp.proj.weight", "--json").object
    assert [item["value"] for item in found["goes_with"]] == ["blocks.0.mlp.fc.weight"]
    done = here("explain", gpt_plan, "--value", "blocks.0.mlp.fc.weigt")
    check_error(done, 2, "Did you mean blocks.0.mlp.fc.weight")


def test_diff(here: Here, gpt_plan: Path) -> None:
    assert here("plan", *GPT, "--strategy", "zero=3", "--out", "other.json").code == 0
    found = here("plan", "--diff", gpt_plan, "other.json", "--json").object
    assert not found["same"]
    fields = {item["field"]: (item["a"], item["b"]) for item in found["differences"]}
    assert fields["strategy"] == ("data=2,tensor=2", "zero=3")
    assert fields["mesh.tensor"] == (2, None)
    assert "decisions.tensor.token_embedding.weight" in fields
    done = here("plan", "--diff", gpt_plan, "other.json")
    assert "and 27 more" in " ".join(done.out.split())
    assert max(map(len, done.out.splitlines())) <= 80
    assert here("plan", "--diff", gpt_plan, gpt_plan, "--json").object["same"]


def test_pytorchs_traceback_of_a_misfit_stays_out_of_a_fresh_process() -> None:
    # A process of its own, since PyTorch sets its loggers' levels when it is imported.
    words = (*COMMAND, "plan", f"{BROKEN}:misfit", "--cluster", "1x2:a100-80g")
    found = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 4
    assert "must have same reduction dim" in found.stderr
    assert "fake_tensor.py" not in found.stderr


def test_a_named_plan_says_how_far_it_is_above_the_bound(here: Here) -> None:
    found = here("plan", *MLP, "--strategy", "zero=1", "--json").object
    assert 0 < found["lower_bound_s"] < found["step_time_s"]
    assert found["gap"] == pytest.approx(found["step_time_s"] / found["lower_bound_s"] - 1)

"""Commands that start processes: train, verify, report; and what ends badly."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import COMMAND, GPT, MLP, Done, Here, check_error, outside

from meshwright.cli.processes import checkpoint_to_resume

pytestmark = pytest.mark.processes

TWO = ("--cluster", "local:2", "--no-calibrate")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A run of six steps that saved checkpoints after four and six."""
    folder = tmp_path_factory.mktemp("trained")
    done = outside(
        "train", *GPT, *TWO, "--steps", "6", "--save-every", "4", "--run", "run", "--json",
        cwd=folder,
    )  # fmt: skip
    return folder / "run", done


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_train(trained: tuple[Path, Done]) -> None:
    run, done = trained
    assert done.code == 0, done.err
    found = done.object
    assert found["collectives_equal"]
    assert found["collectives"]["planned"] == found["collectives"]["executed"]
    for figure in ("step_time_s", "peak_memory_bytes"):
        assert found[figure]["predicted"] > 0
        assert found[figure]["measured"] > 0
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5, 6]
    assert sorted(folder.name for folder in (run / "checkpoints").iterdir()) == ["4", "6"]
    for name in ("plan.json", "trace.json", "report.html", "summary.json", "logs/rank-1.log"):
        assert (run / name).is_file(), name
    assert "step 6: loss " in done.err
    assert "tokens/s" in done.err


def test_resume_goes_on_as_if_nothing_had_been(
    trained: tuple[Path, Done], here: Here, tmp_path: Path
) -> None:
    run, _ = trained
    done = here(
        "train", *GPT, *TWO, "--strategy", "tensor", "--steps", "2", "--run", tmp_path / "next",
        "--resume", run / "checkpoints" / "4",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "predicted" in done.out
    assert "executed" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    again = metrics(tmp_path / "next")
    assert [line["step"] for line in again] == [5, 6]
    for line, before in zip(again, metrics(run)[4:], strict=True):
        assert line["loss"] == pytest.approx(before["loss"], rel=1e-4)


def test_report(trained: tuple[Path, Done], here: Here, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(trained[0], run)
    whole = (run / "report.html").read_text()
    (run / "report.html").unlink()
    assert here("report", run, "--json").object == {
        "report": str(run / "report.html"),
        "missing": [],
    }
    assert (run / "report.html").read_text() == whole
    (run / "summary.json").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    done = here("report", run)
    assert done.code == 0
    assert "summary.json is missing or damaged" in done.err
    (run / "plan.json").unlink()
    check_error(here("report", run), 2, "holds no plan.json")


def test_verify(here: Here) -> None:
    done = here("verify", *GPT, *TWO, "--steps", "2", "--strategy", "tensor", "--json")
    assert done.code == 0, done.err
    found = done.object
    assert found["equal"] is True
    assert found["collectives_equal"] is True
    assert found["worst"].keys() == {"loss", "gradient", "parameter", "buffer"}
    assert found["worst"]["gradient"].keys() == {"name", "relative"}
    assert 0 <= found["worst"]["gradient"]["relative"] < 1e-4
    assert found["collectives"]["planned"] == found["collectives"]["executed"]
    assert found["peak_memory_bytes"].keys() == {"predicted", "measured"}
    assert found["step_time_s"].keys() == {"predicted", "measured", "interval"}
    assert found["step_time_s"]["interval"] is None  # no calibration, whose noise it is


@pytest.mark.parametrize("as_json", [False, True])
def test_verify_tells_a_difference(
    as_json: bool, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    worst = {kind: {"name": "", "relative": 0.0} for kind in ("loss", "parameter", "buffer")}
    worst["gradient"] = {"name": "embed.weight", "relative": 0.5}
    comparison = {"equal": False, "initial_equal": True, "losses": [], "worst": worst}

    def ran(name: str, payload: dict[str, Any], *rest: object) -> list[dict[str, Any]]:
        return [{"comparison": comparison, "step_time_s": 0.1, "peak_memory_bytes": 10,
                 "executed": payload["plan"]["predicted"]["collectives"]}]  # fmt: skip

    monkeypatch.setattr("meshwright.cli.verify.run_workers", ran)
    done = here("verify", *MLP, *TWO, *(["--json"] if as_json else []))
    assert done.code == 5
    assert "the gradient of 'embed.weight' is off by 5.0e-01" in done.err
    if as_json:
        assert done.object["equal"] is False
        assert done.object["worst"]["gradient"]["name"] == "embed.weight"


def test_a_first_run_calibrates_once(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    from meshwright.cluster.profile_file import builtin_profile
    from meshwright.runtime import calibrate

    asked = []

    def measured(processes: int, budget_s: float) -> Any:
        asked.append((processes, budget_s <= 30))
        return builtin_profile("cpu").model_copy(update={"processes": processes})

    monkeypatch.setattr(calibrate, "calibrate", measured)
    monkeypatch.setattr(
        "meshwright.cli.verify.run_workers", lambda *words: [{
            "comparison": {"equal": True, "initial_equal": True, "losses": [], "worst": {}},
            "step_time_s": 0.1, "peak_memory_bytes": 10, "executed": [],
        }],
    )  # fmt: skip
    done = here("verify", *MLP, "--cluster", "local:2")
    assert "Calibrating this machine with 2 processes, about half a minute" in done.err
    assert asked == [(2, True)]
    done = here("verify", *MLP, "--cluster", "local:2")
    assert "measured on this machine before" in done.err
    here("verify", *MLP, *TWO)
    assert len(asked) == 1
    assert "measured on this machine before" in here("plan", *MLP, "--cluster", "local:2").err
    # A cache that can't be used is no reason to fail.
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    done = here("verify", *MLP, "--cluster", "local:2", "--strategy", "data")
    assert done.code == 5  # no collectives were executed
    assert "can't be kept here" in done.err


def test_plans_that_do_not_belong_here(here: Here, gpt_plan: Path, tmp_path: Path) -> None:
    words = ("--plan", gpt_plan, "--no-calibrate", "--steps", "1")
    check_error(here("train", *GPT, "--cluster", "local:2", *words), 2, "for 4 devices")
    check_error(here("train", *MLP, *words), 2, "made for another model (gpt)")
    bigger = (*GPT[:-1], "16")
    check_error(here("train", *bigger, *words), 2, "--global-batch 8")
    text = gpt_plan.read_text()
    for name, content, told in (
        ("truncated", text[: len(text) // 2], "is not whole JSON"),
        ("newer", text.replace('"format_version": 1', '"format_version": 99'), "plan format 99"),
        ("other", "{}", "no format_version"),
    ):
        path = tmp_path / f"{name}.json"
        path.write_text(content)
        check_error(here("train", *GPT, "--plan", path), 2, told)
        check_error(here("explain", path), 2, told)
    check_error(here("verify", *GPT, "--plan", gpt_plan, "--strategy", "data"), 2, "--strategy")


def test_a_cluster_elsewhere_needs_torchrun(here: Here) -> None:
    done = here("train", *GPT, "--cluster", "2x8:h100-sxm")
    check_error(done, 2, "torchrun --nnodes 2 --nproc-per-node 8", "-m meshwright train zoo:gpt")


def workers_of(parent: int) -> dict[int, int]:
    """Process ids by rank of the workers that `parent` started."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = dict(
                item.partition("=")[::2]
                for item in (folder / "environ").read_bytes().decode().split("\0")
            )
        except (OSError, ValueError):
            continue
        if variables.get("MESHWRIGHT_PARENT") == str(parent):
            found[int(variables["RANK"])] = int(folder.name)
    return found


@pytest.fixture
def long_run(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A training that does not end by itself, past its first checkpoint."""
    process = subprocess.Popen(
        [*COMMAND, "train", *MLP, *TWO, "--steps", "1000000", "--save-every", "5", "--run", "run"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        start_new_session=True,
    )  # fmt: skip
    end = time.monotonic() + 90
    while not (tmp_path / "run" / "checkpoints" / "5" / "meta.json").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.1)
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def wait_until_gone(pids: list[int], within_s: float) -> None:
    end = time.monotonic() + within_s
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end, "workers are still running"
        time.sleep(0.1)


def test_a_process_that_dies_ends_the_run(long_run: subprocess.Popen[str], tmp_path: Path) -> None:
    workers = workers_of(long_run.pid)
    assert workers.keys() == {0, 1}
    os.kill(workers[1], signal.SIGKILL)
    out, err = long_run.communicate(timeout=30)
    check_error(Done(long_run.returncode, out, err), 5, "Rank 1 on host ", "ended by SIGKILL")
    assert "go on with --resume run/checkpoints/" in err
    wait_until_gone(list(workers.values()), 5)
    assert metrics(tmp_path / "run")
    # A checkpoint has its meta.json when it is whole.
    assert str(checkpoint_to_resume(Path("run"))) in err


def test_ctrl_c_leaves_no_process(long_run: subprocess.Popen[str]) -> None:
    workers = workers_of(long_run.pid)
    long_run.send_signal(signal.SIGINT)
    out, err = long_run.communicate(timeout=30)
    assert long_run.returncode == 130, err
    assert out == ""
    assert "Interrupted." in err
    assert "Traceback" not in err
    wait_until_gone(list(workers.values()), 5)


def torchrun(processes: int, *words: str | Path, cwd: Path) -> Done:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone",
         f"--nproc-per-node={processes}", "-m", "meshwright", *map(str, words)],
        cwd=cwd, capture_output=True, text=True, timeout=120, check=False,
        env=dict(os.environ) | {"GLOO_SOCKET_IFNAME": "lo"},
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


def test_train_under_torchrun(tmp_path: Path) -> None:
    done = torchrun(
        2, "train", *MLP, "--strategy", "zero=1", "--steps", "3", "--run-dir", "run", "--json",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.object["collectives_equal"]
    assert done.object["mesh"] == {"data": 2}
    assert len(metrics(tmp_path / "run")) == 3
    assert (tmp_path / "run" / "checkpoints" / "3" / "meta.json").is_file()
    assert (tmp_path / "run" / "report.html").is_file()


def test_torchrun_with_another_number_of_processes(tmp_path: Path, gpt_plan: Path) -> None:
    done = torchrun(2, "train", *GPT, "--plan", gpt_plan, "--steps", "1", cwd=tmp_path)
    assert done.code != 0
    assert done.err.count("local:4 has 4 devices, but torchrun started 2 processes") == 1


def test_doctor(here: Here) -> None:
    done = here("doctor", "--json")
    found = done.object
    failed = [c for c in found["checks"] if c["needed"] and not c["ok"]]
    assert not failed
    assert done.code == 0
    assert found["ok"]
    assert {"torch", "cores", "memory", "loopback", "processes over gloo"} <= {
        check["name"] for check in found["checks"]
    }


def test_calibrate(here: Here, tmp_path: Path) -> None:
    done = here("calibrate", "--cluster", "local:2", "--out", "profile.json", "--budget", "1")
    assert done.code == 0, done.err
    assert "GFLOP/s" in done.out
    assert "all_reduce" in done.out
    found = here("plan", *MLP, "--cluster", "local:2", "--profile", "profile.json", "--json")
    assert found.code == 0
    assert found.object["strategy"]

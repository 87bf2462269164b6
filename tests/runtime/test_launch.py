"""Local processes: results, errors, timeouts and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from launch_workers import collectives_agree_with_lockstep

from meshwright.errors import PlanError, RunError, UsageError
from meshwright.runtime.launch import launch

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from distributed import fork_processes

pytestmark = pytest.mark.processes
HERE = str(Path(__file__).parent)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until_gone(pids: list[int], within_s: float) -> None:
    end = time.monotonic() + within_s
    while any(map(alive, pids)):
        assert time.monotonic() < end, "workers are still running"
        time.sleep(0.1)


def test_results_come_back_by_rank(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    before = signal.getsignal(signal.SIGINT)
    results = launch(
        "launch_workers:add_ranks", {"a": [1]}, 2, tmp_path, {"EXTRA": "x"}, 60, seen.append
    )
    assert [r["sum"] for r in results] == [1, 1]
    assert [r["extra"] for r in results] == ["x", "x"]
    assert results[0]["payload"] == {"a": [1]}
    assert results[0]["threads"] == max(1, len(os.sched_getaffinity(0)) // 2)
    assert seen == [{"number": n, "rank": 0} for n in range(3)]
    assert "standard output of 1" in (tmp_path / "logs" / "rank-1.log").read_text()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("raise", "raised ZeroDivisionError: one over nothing"),
        ("signal", "was ended by SIGSEGV"),
        ("exit", "exited with code 7"),
    ],
)
def test_a_failing_rank_is_named(
    how: str, told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunError) as caught:
        launch("launch_workers:fail", {"how": how, "rank": 1}, 2, tmp_path, None, 60)
    assert "Rank 1 on host " in caught.value.message
    assert told in caught.value.message
    assert "    about to fail" in caught.value.message
    assert str(tmp_path / "logs" / "rank-1.log") in caught.value.remedy
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""


def test_a_workers_own_error_is_raised_again(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        launch("launch_workers:fail", {"how": "meshwright", "rank": 0}, 2, tmp_path, None, 60)
    assert caught.value.message == "The plan is wrong."
    assert caught.value.remedy == "Make another."
    assert caught.value.kind == "plan"


def test_timeout(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="had not finished after 3 s"):
        launch("launch_workers:sleep", {}, 2, tmp_path, None, 3)


def test_unknown_worker(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no attribute 'missing'"):
        launch("launch_workers:missing", {}, 1, tmp_path, None, 30)
    with pytest.raises(UsageError, match="0 processes"):
        launch("launch_workers:sleep", {}, 0, tmp_path)


def test_a_broken_progress_callback_is_raised(tmp_path: Path) -> None:
    def broken(record: dict[str, Any]) -> None:
        raise LookupError("no display")

    with pytest.raises(LookupError, match="no display"):
        launch("launch_workers:add_ranks", {}, 1, tmp_path, None, 60, broken)


# Ctrl-C of a whole training is in `tests/cli`.
@pytest.mark.parametrize(
    "name", [pytest.param("SIGINT", marks=pytest.mark.all), "SIGTERM", "SIGKILL"]
)
def test_no_orphans(name: str, tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from meshwright.runtime.launch import launch;"
        f"sys.path.insert(0, {HERE!r});"
        f"launch('launch_workers:sleep', dict(pid_dir={str(tmp_path)!r}), 2,"
        f" pathlib.Path({str(tmp_path)!r}))"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    end = time.monotonic() + 60
    while not all((tmp_path / str(r)).exists() and (tmp_path / str(r)).read_text() for r in (0, 1)):
        assert time.monotonic() < end
        assert parent.poll() is None
        time.sleep(0.1)
    pids = [int((tmp_path / str(rank)).read_text()) for rank in (0, 1)]
    parent.send_signal(getattr(signal, name))
    _, err = parent.communicate(timeout=30)
    wait_until_gone(pids, within_s=10)
    assert parent.returncode != 0
    if name == "SIGINT":
        assert "KeyboardInterrupt" in err
    else:
        assert parent.returncode == -getattr(signal, name)


def test_two_launches_side_by_side(tmp_path: Path) -> None:
    results: dict[int, Any] = {}

    def one(number: int) -> None:
        run_dir = tmp_path / str(number)
        results[number] = launch("launch_workers:add_ranks", {}, 2, run_dir, None, 60)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [[r["sum"] for r in results[n]] for n in (0, 1)] == [[1, 1], [1, 1]]


def test_processes_agree_with_lockstep(tmp_path: Path) -> None:
    logs = fork_processes(collectives_agree_with_lockstep, 4, tmp_path)
    kinds = {(entry["kind"], entry["axis"]) for entry in logs[0]}
    assert kinds == {
        (kind, axis)
        for kind in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
        for axis in ("data", "tensor")
    }


@pytest.mark.all  # a training by the command line under torchrun runs every time
def test_torchrun(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {HERE!r})\n"
        "import launch_workers, torch.distributed as dist\n"
        "print('sum', launch_workers.add_ranks({})['sum'], dist.get_backend(), flush=True)\n"
        "dist.destroy_process_group()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.count("sum 1 gloo") == 2, done.stderr

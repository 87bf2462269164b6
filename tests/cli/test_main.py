"""The frame of the command line: help, usage errors, JSON, bugs, Ctrl-C."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import COMMAND, GPT, Here, check_error, outside

import meshwright
from meshwright.cli import failures, main

COMMANDS = [
    "demo",
    "plan",
    "train",
    "verify",
    "simulate",
    "explain",
    "compare",
    "calibrate",
    "report",
    "doctor",
]


def test_help_lists_the_commands(here: Here) -> None:
    done = here("--help")
    assert done.code == 0
    assert all(f" {name} " in done.out for name in COMMANDS)
    assert all(len(line) <= 80 for line in done.out.splitlines())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_json_and_debug(command: str, here: Here) -> None:
    done = here(command, "--help")
    assert done.code == 0
    assert "--json" in done.out
    assert "--debug" in done.out


def test_without_words_there_is_help(here: Here) -> None:
    done = here()
    assert done.code == 2
    assert "Usage: meshwright" in done.out + done.err
    assert "Error" not in done.err


def test_the_version(here: Here) -> None:
    assert here("--version").out == f"meshwright {meshwright.__version__}\n"


def test_the_command_line_itself_needs_no_pytorch(tmp_path: Path) -> None:
    code = (
        "import sys, types\n"
        # The package without its public names, which are the functions of the API.
        "package = types.ModuleType('meshwright')\n"
        f"package.__path__ = [{str(Path(meshwright.__file__).parent)!r}]\n"
        "sys.modules['meshwright'] = package\n"
        "from meshwright.cli.main import run\n"
        "for words in (['--help'], ['train', '--help'], ['plan'], ['explain', 'none.json']):\n"
        "    run(words)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    done = outside("--version", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("meshwright ")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("bogus",), "No such command 'bogus'"),
        (("train",), "Missing argument 'MODEL'"),
        (("plan",), "MODEL is missing"),
        (("plan", "zoo:gpt", "--bogus"), "No such option: --bogus"),
        (("train", "zoo:gpt", "--steps", "0"), "--steps"),
        (("train", "zoo:gpt", "--steps", "many"), "--steps"),
        (("plan", "zoo:gpt", "-o", "layers"), "The option 'layers' is not KEY=VALUE."),
        (("plan", "zoo:gpt", "-o", "layers=1", "-o", "layers=2"), "layers is given twice"),
        (("plan", "zoo:gpt", "--global-batch", "4", "-o", "global_batch=4"), "given twice"),
        (("plan", "zoo:gtp"), "no model 'gtp'"),
        (("plan", "zoo:gpt", "--optimizer", "magic"), "no optimizer named 'magic'"),
        (("plan", "zoo:gpt", "--cluster", "8"), "'8' is not HOSTSxDEVICES:KIND"),
        (("plan", "zoo:gpt", "--cluster", "local:100000"), "more than 16 each"),
        (("train", "zoo:gpt", "--resume", "nowhere"), "nowhere holds no complete checkpoint"),
        (("calibrate", "--cluster", "1x8:h100-sxm"), "is not this machine"),
        (("report", "nowhere"), "There is no run folder nowhere"),
        (("explain", "nowhere.json"), "can't be read"),
    ],
)
def test_bad_usage(words: tuple[str, ...], told: str, here: Here) -> None:
    check_error(here(*words), 2, told)
    object_ = here(*words, "--json").object
    assert set(object_) == {"error"}
    assert set(object_["error"]) == {"kind", "message", "remedy"}
    assert told in object_["error"]["message"]
    assert object_["error"]["remedy"]


def test_a_bug_is_said_to_be_one(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*words: object) -> None:
        raise LookupError("the\nwrong drawer")

    monkeypatch.setattr("meshwright.cli.prepare.prepare", broken)
    done = here("plan", *GPT)
    check_error(done, 1, "This is a bug in Meshwright: LookupError: the wrong drawer", "--debug")
    done = here("plan", *GPT, "--debug")
    assert done.code == 1
    assert "Traceback" in done.err
    assert here("plan", *GPT, "--json").object["error"]["kind"] == "bug"


def test_ctrl_c(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*words: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("meshwright.cli.prepare.prepare", interrupted)
    done = here("plan", *GPT)
    assert done.code == failures.INTERRUPTED == 130
    assert "Interrupted" in done.err
    assert here("plan", *GPT, "--json").object["error"]["kind"] == "interrupted"


def test_other_ranks_of_torchrun_leave_common_errors_to_the_first(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = here("train", *GPT, "--cluster", "local:4")
    assert (done.code, done.out, done.err) == (2, "", "")
    monkeypatch.setenv("RANK", "0")
    done = here("train", *GPT, "--cluster", "local:4")
    check_error(done, 2, "local:4 has 4 devices, but torchrun started 2 processes")


def test_a_reader_that_leaves_early(tmp_path: Path, gpt_plan: Path) -> None:
    command = [*COMMAND, "explain", str(gpt_plan)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(60) == 0
    assert err == ""


def test_every_command_is_registered() -> None:
    assert [command.__name__ for command in main._COMMANDS] == COMMANDS

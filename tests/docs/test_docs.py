"""The documentation says what is so: links, commands, snippets, paths and error texts."""

from __future__ import annotations

import ast
import functools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = sorted((*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"))

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for kind, text in _FENCE.findall(page.read_text()) if kind in languages]


def anchors(page: Path) -> set[str]:
    """Anchors of headings as GitHub makes them."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in _HEADING.findall(prose(page))
    }


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name(page)} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{name(page)} links to {link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_tables_are_whole(page: Path) -> None:
    columns = None
    for line in prose(page).splitlines():
        if not line.startswith("|"):
            columns = None
            continue
        cells = line.replace(r"\|", "").count("|") if "`" not in line else None
        if cells is None:
            cells = _SPAN.sub("", line).count("|")
        columns = columns or cells
        assert cells == columns, f"{name(page)}: {line}"


@functools.cache
def commands() -> dict[str, set[str]]:
    """The flags of each command."""
    from meshwright.cli.main import _application

    group = typer.main.get_command(_application())
    return {
        command: {
            word
            for item in made.params
            for word in (*item.opts, *item.secondary_opts)
            if word.startswith("-")
        }
        | {"--help", "-h"}
        for command, made in group.commands.items()  # type: ignore[attr-defined]
    }


def command_lines(page: Path) -> Iterator[list[str]]:
    """Words after `meshwright`, in console blocks and in `code spans`."""
    lines = [
        line.removeprefix("$ ")
        for block in blocks(page, "console")
        for line in block.splitlines()
        if line.startswith("$ ")
    ]
    lines += [span for span in _SPAN.findall(prose(page)) if span.startswith("meshwright ")]
    for line in lines:
        words = shlex.split(line, comments=True)
        if "meshwright" in words:
            yield words[words.index("meshwright") + 1 :]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_command_lines_name_commands_and_flags_that_exist(page: Path) -> None:
    for words in command_lines(page):
        first = words[0] if words else "--help"
        if first in ("--help", "--version", "-h", "COMMAND", "…"):
            continue
        assert first in commands(), f"{name(page)}: there is no command {first}"
        for word in words[1:]:
            if word.startswith("-"):
                assert word in commands()[first], f"{name(page)}: {first} takes no {word}"


def test_every_command_and_flag_is_in_the_reference() -> None:
    text = (DOCS / "reference" / "command-line.md").read_text()
    for command, flags in commands().items():
        assert f"meshwright {command}" in text
        for flag in flags:
            assert f"`{flag}" in text or f" `{flag}" in text, f"{command} {flag}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_snippets_compile(page: Path) -> None:
    for text in blocks(page, "python"):
        compile(text, name(page), "exec")


def test_the_first_snippet_of_the_quickstart_runs(run_dir: Path) -> None:
    file = run_dir / "first.py"
    file.write_text(blocks(DOCS / "quickstart.md", "python")[0])
    done = subprocess.run(
        [sys.executable, str(file)], cwd=run_dir, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "Collectives per device and step" in done.stdout


def test_the_task_of_the_quickstart_can_be_planned(run_dir: Path) -> None:
    from meshwright import plan
    from meshwright.zoo.reference import load_task

    file = run_dir / "quickstart_task.py"
    file.write_text(blocks(DOCS / "quickstart.md", "python")[1])
    made = plan(load_task(f"{file}:task", {"hidden": 32}), "local:2", "data=2,zero=1")
    assert made.mesh == {"data": 2}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths_of_the_repository_exist(page: Path) -> None:
    for span in _SPAN.findall(prose(page)):
        if re.fullmatch(r"(src|tests|docs|benchmarks)/[\w./-]+", span):
            assert (ROOT / span).exists(), f"{name(page)} names {span}"
        if "internals" in page.parts or "decisions" in page.parts:
            inside = ROOT / "src" / "meshwright" / span
            if re.fullmatch(r"(?!src|tests)[a-z_]+/[a-z_]+\.py", span):
                assert inside.exists(), f"{name(page)} names {span}"


def test_the_map_names_every_folder_and_every_file_it_names_exists() -> None:
    text = (DOCS / "internals" / "map.md").read_text()
    package = ROOT / "src" / "meshwright"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    for folder in folders:
        assert f"src/meshwright/{folder}/" in text, f"the map lacks {folder}"
    known = {path.name for path in package.rglob("*.py")}
    assert {span for span in _SPAN.findall(text) if re.fullmatch(r"[a-z_]+\.py", span)} <= known


def test_every_decision_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text()
    for note in (DOCS / "decisions").glob("*.md"):
        assert re.fullmatch(r"\d{4}-[\w-]+\.md", note.name)
        assert f"decisions/{note.name}" in index


def _text(node: ast.AST) -> str | None:
    """A string with `…` for what is put into it."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) or "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (_text(node.left) or "…") + (_text(node.right) or "…")
    return None


def test_headings_of_troubleshooting_are_texts_of_the_code() -> None:
    known = set()
    for file in (ROOT / "src" / "meshwright").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            text = _text(node)
            if text:
                known.add(re.sub(r"\s+", " ", text).strip())
    page = (DOCS / "troubleshooting.md").read_text()
    stale = [text for text in re.findall(r"^### `(.+)`$", page, re.MULTILINE) if text not in known]
    assert not stale, f"no error says: {stale}"

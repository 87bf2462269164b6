"""The report: one HTML file that needs no network and no other file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from meshwright.errors import UsageError
from meshwright.report.data import ReportData
from meshwright.report.view import view

__all__ = ["page", "render", "write_report"]


def write_report(path: str | Path, data: ReportData) -> None:
    """Write the page to `path`. Raises UsageError when nothing can be written there."""
    path = Path(path)
    page = render(data)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"The report could not be written to {path}: {error.strerror}.",
            "Give a path in a folder that you may write to.",
        ) from error


def render(data: ReportData) -> str:
    """The page as text; the same data always give the same text."""
    return page("report.html.j2", view(data))


def page(template: str, context: Mapping[str, Any]) -> str:
    """A template of `static` with the styles and scripts of all pages, everything escaped."""
    # A page of one file has no source map beside it for a debugger to ask for.
    library = _text("vendor/chart.umd.min.js").partition("//# sourceMappingURL")[0]
    scripts = [_text("static/report.js"), library]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_text(f"static/{template}")).render(
        **context,
        css=Markup(_text("static/report.css")),
        scripts=[Markup(script) for script in scripts],
        script_hashes=" ".join(f"'sha256-{_digest(script)}'" for script in scripts),
    )


def _text(name: str) -> str:
    return files("meshwright.report").joinpath(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    # The page's policy allows these scripts by hash, so that no text of a user
    # can run even if it got past the escaping.
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

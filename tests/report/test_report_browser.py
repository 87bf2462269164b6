import os
import re
import shutil
import subprocess

import pytest
from report_samples import sample

from meshwright.report.page import write_report

# Installing a browser may come first, once.
pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def installed() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


@pytest.fixture(scope="session")
def chromium() -> str:
    """A Chromium, from Debian's packages where this machine has none and allows it."""
    if found := installed():
        return found
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("there is no Chromium here, and installing one needs root and apt-get")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
        try:
            done = subprocess.run(
                ["apt-get", "-qq", *words], env=environment, capture_output=True, text=True,
                timeout=400, check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            pytest.skip(f"there is no Chromium here: apt-get {words[0]} took over 400 s")
    if found := installed():
        return found
    pytest.skip(f"there is no Chromium here, and apt-get can't install it: {done.stderr[-300:]}")


@pytest.fixture
def browse(chromium, tmp_path_factory):
    def run(*arguments: str) -> str:
        profile = tmp_path_factory.mktemp("profile")
        done = subprocess.run(
            [chromium, *QUIET, f"--user-data-dir={profile}", *arguments],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


def drawn(dom: str) -> int:
    found = re.search(r'<html[^>]* data-charts="(\d+)"', dom)
    return int(found[1]) if found else 0


def errors(dom: str) -> str:
    return re.search(r'<ul id="errors"[^>]*>(.*?)</ul>', dom, re.DOTALL)[1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "nasty", ["", "</script><script>alert(1)</script>\"'<img src=x onerror=alert(1)>"]
)
def test_both_charts_are_drawn_without_an_error(browse, tmp_path, nasty, scheme):
    page = tmp_path / "report.html"
    write_report(page, sample(nasty))
    dark = "0" if scheme == "dark" else "1"
    dom = browse("--dump-dom", f"--blink-settings=preferredColorScheme={dark}", page.as_uri())
    assert errors(dom) == ""
    assert drawn(dom) == 2


def test_a_report_without_curves_has_no_charts_and_no_error(browse, tmp_path):
    page = tmp_path / "report.html"
    bare = {"losses": (), "memory_curve": (), "measured_memory_curve": (), "measured": None}
    write_report(page, sample().model_copy(update=bare))
    dom = browse("--dump-dom", page.as_uri())
    assert 'data-charts="0"' in dom
    assert errors(dom) == ""


def test_what_goes_wrong_in_a_script_is_shown(browse, tmp_path):
    page = tmp_path / "report.html"
    write_report(page, sample())
    html = page.read_text(encoding="utf-8")
    page.write_text(html.replace('id="chart-data">{', 'id="chart-data">{,'), encoding="utf-8")
    dom = browse("--dump-dom", page.as_uri())
    assert "JSON" in errors(dom)
    assert drawn(dom) == 0


def test_a_script_that_is_not_ours_is_stopped(browse, tmp_path):
    page = tmp_path / "report.html"
    write_report(page, sample())
    html = page.read_text(encoding="utf-8")
    foreign = "<script>document.title = 'taken over'</script></body>"
    page.write_text(html.replace("</body>", foreign), encoding="utf-8")
    dom = browse("--dump-dom", page.as_uri())
    assert "<title>taken over" not in dom
    assert "stopped inline" in errors(dom)


def test_a_screenshot_is_not_blank(browse, tmp_path):
    page, picture = tmp_path / "report.html", tmp_path / "report.png"
    write_report(page, sample())
    browse(f"--screenshot={picture}", "--window-size=1280,2600", page.as_uri())
    assert picture.stat().st_size > 50_000

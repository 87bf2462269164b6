"""The front of time and memory, and the page that shows strategies side by side."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from meshwright.errors import UsageError
from meshwright.plan.types import Prediction
from meshwright.report.comparison import (
    Compared,
    Comparison,
    on_front,
    render_comparison,
    write_comparison,
)


def row(name: str, seconds: float, gib: int, fits: bool = True, chosen: str = "") -> Compared:
    said = Prediction(step_time_s=seconds, peak_memory_bytes=gib << 30)
    return Compared(strategy=name, fits=fits, predicted=said, chosen=chosen)


ROWS = (
    row("auto", 0.5, 50, chosen="data=4,<b>bold</b>"),
    row("quick", 0.5, 50),
    row("small", 2.0, 10),
    row("middle", 1.0, 20),
    row("beaten", 1.5, 20),
    row("slow and large", 3.0, 60),
    row("best but for its size", 0.1, 90, fits=False),
    Compared(strategy="nothing", fits=False, reason="</script><script>alert(1)</script>"),
)


def test_the_front_is_what_nothing_that_fits_beats() -> None:
    front = dict(zip((r.strategy for r in ROWS), on_front(ROWS), strict=True))
    assert {name for name, on in front.items() if on} == {"auto", "small", "middle"}


def test_a_single_strategy_is_the_front() -> None:
    assert on_front([row("one", 1.0, 1)]) == [True]
    assert on_front([]) == []


def page() -> str:
    return render_comparison(
        Comparison(title="<i>model</i>", memory_limit_bytes=80 << 30, rows=ROWS)
    )


def test_the_page_has_every_strategy_and_escapes_all_of_it() -> None:
    text = page()
    for item in ROWS:
        assert f'<th scope="row">{item.strategy}' in text
    assert "<b>bold</b>" not in text
    assert "<i>model</i>" not in text
    assert "alert(1)</script>" not in text
    assert "3 of them are beaten by none" in text
    assert text == page()


def test_the_chart_has_the_points() -> None:
    found = re.search(r'id="chart-data">(.*?)</script>', page(), re.DOTALL)
    assert found is not None
    chart = json.loads(found[1])["front"]
    assert [point["name"] for point in chart["front"]] == [
        "small", "middle", "auto: data=4,<b>bold</b>",
    ]  # fmt: skip
    assert [point["name"] for point in chart["unfit"]] == ["best but for its size"]
    assert len(chart["behind"]) == 3
    assert chart["limit"] == 80 << 30


def test_a_page_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    data = Comparison(title="a", memory_limit_bytes=1, rows=ROWS)
    with pytest.raises(UsageError, match="could not be written"):
        write_comparison(tmp_path / "file" / "page.html", data)

import json
import re
from html.parser import HTMLParser

import pytest
from report_samples import MiB, sample

from meshwright.errors import UsageError
from meshwright.report.charts import MOST_PARTS, chart_data
from meshwright.report.data import MemoryPoint
from meshwright.report.page import render, write_report
from meshwright.report.tables import candidates, collectives, parameters
from meshwright.report.view import key_numbers, loss_note, view

NASTY = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "<!--",
    "{{ 7 * 7 }}{% raw %}",
    "\u2028 & \\ '",
]


class Page(HTMLParser):
    """Tags as (name, attributes), scripts and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._in = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in == "script":
            self.scripts[-1] += data
        elif self._in != "style":
            self.text += data

    @property
    def data(self):
        return json.loads(self.scripts[0])


@pytest.mark.parametrize("nasty", NASTY)
def test_no_name_can_become_markup(nasty):
    plain, page = Page(render(sample())), Page(render(sample(nasty)))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert [set(attrs) for _, attrs in page.tags] == [set(attrs) for _, attrs in plain.tags]
    assert len(page.scripts) == 3
    assert page.scripts[1:] == plain.scripts[1:]
    assert nasty in page.text
    assert page.data["memory"]["predicted"][0]["label"] == f"op 0{nasty}"
    assert page.data["memory"]["parts"][0] == f"parameters{nasty}"


def test_the_page_refers_to_nothing_outside_itself():
    page = Page(render(sample()))
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:,")), (tag, name, target)
    css = render(sample()).partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in css
    assert "@import" not in css
    assert "sourceMappingURL" not in page.scripts[2]


def test_our_own_scripts_can_not_end_early():
    assert all(
        "</script" not in s.lower() and "<!--" not in s for s in Page(render(sample())).scripts
    )


def test_the_same_data_give_the_same_page(tmp_path):
    write_report(tmp_path / "new" / "report.html", sample())
    assert (tmp_path / "new" / "report.html").read_text(encoding="utf-8") == render(sample())


def test_a_place_that_can_not_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="could not be written"):
        write_report(tmp_path / "file" / "report.html", sample())


def test_predicted_stands_beside_measured():
    step, memory, tokens, computing, _ = key_numbers(sample())
    assert step[:5] == ("Step time", "412 ms", "431 ms", "+4.6 %", "good")
    assert memory[:5] == ("Peak memory per device", "160 MiB", "181 MiB", "+13 %", "fair")
    assert tokens[1:4] == ("4,971/s", "4,751/s", "−4.4 %")
    assert computing[2:5] == ("–", "–", "")


def test_a_plan_that_never_ran_shows_predictions_alone():
    data = sample().model_copy(
        update={"measured": None, "losses": (), "memory_curve": (), "measured_memory_curve": ()}
    )
    page = Page(render(data))
    assert "Nothing has been measured yet" in page.text
    assert "Executed" not in page.text
    assert not [tag for tag, _ in page.tags if tag == "canvas"]


def test_the_chosen_candidate_is_marked_once_and_what_does_not_fit_comes_last():
    rows = candidates(sample().plan)
    assert [row.strategy for row in rows] == ["data=2,tensor=2", "zero3", "data"]
    assert [row.chosen for row in rows] == [True, False, False]
    assert not rows[-1].fits


def test_a_plan_that_is_not_among_its_alternatives_joins_them():
    plan = sample().plan.model_copy(update={"alternatives": ()})
    (row,) = candidates(plan)
    assert row.chosen
    assert row.strategy == "auto"


def test_collectives_are_compared_by_kind_and_axis():
    same, differs = collectives(sample())
    assert same == ("all_reduce", "tensor", "24 · 18.0 MiB", "24 · 18.0 MiB", True)
    assert differs == ("all_gather", "data", "13 · 43.0 MiB", "14 · 44.0 MiB", False)


def test_parameters_of_a_repeated_block_share_a_row():
    plans = dict(sample().plan.parameters)
    (row,) = parameters(plans)
    assert (row.name, row.alike) == ("blocks.*.qkv.weight", 6)
    plans["blocks.3.qkv.weight"] = plans["blocks.3.qkv.weight"].model_copy(
        update={"residency": "step"}
    )
    assert [(r.name, r.alike) for r in parameters(plans)] == [
        ("blocks.*.qkv.weight", 5),
        ("blocks.3.qkv.weight", 1),
    ]


def test_losses_that_are_not_finite_leave_a_gap():
    data = sample().model_copy(update={"losses": ((0, 1.0), (1, float("nan")), (2, float("inf")))})
    page = Page(render(data))
    assert [point["y"] for point in page.data["losses"]] == [1.0, None, None]
    assert "not finite" in page.text


def test_the_distance_from_one_device_is_told():
    assert "than 3.0e-07 of" in loss_note(sample())


def test_small_parts_of_memory_are_folded_when_colours_run_out():
    parts = {f"part {index}": (index + 1) * MiB for index in range(12)}
    point = MemoryPoint(label="peak", bytes=sum(parts.values()), parts=parts)
    plan = sample().plan
    predicted = plan.predicted.model_copy(update={"memory": parts})
    data = sample().model_copy(
        update={
            "plan": plan.model_copy(update={"predicted": predicted}),
            "memory_curve": (point,),
            "measured_memory_curve": (),
        }
    )
    memory = chart_data(data)["memory"]
    assert len(memory["parts"]) == MOST_PARTS
    assert memory["parts"][-1] == "other"
    assert sum(memory["predicted"][0]["parts"]) == point.bytes
    assert not memory["timed"]
    assert len(view(data)["peak"]) == MOST_PARTS


def test_every_colour_that_the_charts_use_is_defined_for_light_and_dark():
    html = render(sample())
    css = html.partition("<style>")[2].partition("</style>")[0]
    for index in range(MOST_PARTS):
        assert len(re.findall(rf"--series-{index}:", css)) == 2

"""What was found beside DTensor, kept with explanations: a file, and the tables of a page.

`python tests/rules/dtensor_tables.py` asks everything anew and writes
`dtensor_differences.json` and the tables of `docs/internals/rules-and-dtensor.md`.
Explanations are written by hand in the JSON file and kept: texts under "explanations",
and the name of one as the "why" of each entry and family.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from rules.dtensor_comparison import LISTED, Table, found

HERE = Path(__file__).parent
FILE = HERE / "dtensor_differences.json"
PAGE = HERE.parents[1] / "docs" / "internals" / "rules-and-dtensor.md"


def kept() -> Table:
    """The file as it is."""
    made: Table = json.loads(FILE.read_text()) if FILE.exists() else {}
    return made


def without_explanations(table: Table) -> Table:
    """What `found` gives, of the file."""
    return {
        "ops": table["ops"],
        "families": {
            kind: {
                name: {what: count for what, count in row.items() if what != "why"}
                for name, row in rows.items()
            }
            for kind, rows in table["families"].items()
        },
        **{
            name: [{k: v for k, v in entry.items() if k != "why"} for entry in table[name]]
            for name in LISTED
        },
    }


def explained(table: Table, old: Table) -> Table:
    """`table` with the explanations that `old` has for the same things."""
    for kind, rows in table["families"].items():
        for name, row in rows.items():
            if kind not in ("same", "differs"):  # each that differs has its own
                row["why"] = old.get("families", {}).get(kind, {}).get(name, {}).get("why", "")
    for name in LISTED:
        known = {
            tuple(v for k, v in entry.items() if k != "why"): entry.get("why", "")
            for entry in old.get(name, [])
        }
        for entry in table[name]:
            entry["why"] = known.get(tuple(entry.values()), "")
    return {"pytorch": torch.__version__.partition("+")[0],
            "explanations": old.get("explanations", {}), **table}  # fmt: skip


def written(table: Table) -> str:
    """JSON with one line for each op, family and entry."""

    def rows(value: Any) -> str:
        if isinstance(value, list):
            lines = [json.dumps(item) for item in value]
            return "[\n  " + ",\n  ".join(lines) + "\n ]"
        if isinstance(value, dict):
            lines = [
                f"{json.dumps(k)}: {rows(v) if k in table['families'] else json.dumps(v)}"
                for k, v in value.items()
            ]
            return "{\n  " + ",\n  ".join(lines) + "\n }"
        return json.dumps(value)

    return "{\n " + ",\n ".join(f"{json.dumps(k)}: {rows(v)}" for k, v in table.items()) + "\n}\n"


def tables(table: Table) -> dict[str, str]:
    """The tables of the page, by name."""
    texts, families = table["explanations"], table["families"]
    total = [
        f"| {name} | {sum(row['cuts'] for row in rows.values())} "
        f"| {sum(name in kinds for kinds in table['ops'].values())} |"
        for name, rows in families.items()
    ]
    made = {"all": _table(("Outcome", "Cuts", "Ops"), total)}
    for kind in ("redistributes", "no strategy"):
        rows = families.get(kind, {})
        reasons = {row["why"] for row in rows.values()}
        lines = [f"| {_named(name)} | {row['cuts']} | {row['ops']} |" for name, row in rows.items()]
        if len(reasons) == 1:
            made[kind] = f"{texts.get(next(iter(reasons)), '')}\n\n" + _table(
                ("Family", "Cuts", "Ops"), lines
            )
        else:
            made[kind] = _table(
                ("Family", "Cuts", "Ops", "Why"),
                [
                    f"{line} {texts.get(row['why'], '')} |"
                    for line, row in zip(lines, rows.values(), strict=True)
                ],
            )
    for kind in LISTED:
        by_reason: dict[tuple[str, str], list[str]] = {}
        for entry in table[kind]:
            by_reason.setdefault((entry["why"], entry["numbers"]), []).append(entry["op"])
        made[kind] = _table(
            ("Ops", "Entries", "DTensor's numbers", "Why"),
            [
                f"| {_some(ops)} | {len(ops)} | {ran} | {texts.get(why, '')} |"
                for (why, ran), ops in sorted(by_reason.items())
            ],
        )
    return made


def _table(head: tuple[str, ...], lines: list[str]) -> str:
    return "\n".join((f"| {' | '.join(head)} |", "|" + "---|" * len(head), *lines))


def _named(name: str) -> str:
    return f"`rules/{name}`" if name.endswith(".py") else name


def _some(ops: Sequence[str]) -> str:
    names = list(dict.fromkeys(op.partition(".")[0] for op in ops))
    shown = ", ".join(f"`{name}`" for name in names[:6])
    return shown + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def filled(page: str, table: Table) -> str:
    """The page with its tables, each of which stands between two marks, made anew."""
    for name, text in tables(table).items():
        begin, end = f"<!-- table: {name} -->", "<!-- end -->"
        assert begin in page, f"{PAGE.name} has no mark {begin}"
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}"
    return page


if __name__ == "__main__":
    made = explained(found(), kept())
    FILE.write_text(written(made))
    if PAGE.exists():
        PAGE.write_text(filled(PAGE.read_text(), made))

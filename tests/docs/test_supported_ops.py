"""The page of supported ops names every family, and no op that has no rule."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from meshwright.rules import registry

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "reference" / "supported-ops.md").read_text()
# Names of PyTorch's functions that are captured as other ops, and of what has no function.
CAPTURED_AS_OTHERS = {"pad", "bilinear", "grid_sample", "affine_grid"}
REFUSED = {"poisson", "binomial"}


def families() -> set[str]:
    return {function.__module__.rpartition(".")[2] for function in registry._RULES.values()}


def test_every_family_of_rules_is_on_the_page() -> None:
    named = set(re.findall(r"^\| `(\w+)\.py`", PAGE, re.MULTILINE))
    assert families() <= named, families() - named
    for name in named:
        assert (ROOT / "src" / "meshwright" / "rules" / f"{name}.py").exists()


def test_ops_that_the_page_names_have_rules() -> None:
    known = {target.split(".")[1] for target in registry.targets()}
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    for row in rows:
        ops = re.findall(r"`(\w+)`", row.split("|")[2])
        for op in ops:
            if hasattr(torch.ops.aten, op) and op not in CAPTURED_AS_OTHERS:
                assert (
                    op in known
                    or any(name.startswith(f"{op}_") for name in known)
                    or any(name.strip("_").startswith(op) for name in known)
                ), f"{op} has no rule"


def test_what_the_page_says_is_refused_has_no_rule() -> None:
    known = {target.split(".")[1] for target in registry.targets()}
    assert not REFUSED & known
    for name in REFUSED:
        assert f"`{name}`" in PAGE

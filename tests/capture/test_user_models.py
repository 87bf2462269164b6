"""Models as people write them: captured, and equal to one device under data and tensor plans.

Each is small and odd in one way. `refused` ones get an error that says what to do.
"""

from __future__ import annotations

import warnings

import cases_autograd
import cases_python
import cases_state
import cases_tensors
import pytest
from usercase import Case

from meshwright.api import Model, verify
from meshwright.errors import CaptureError

CASES: dict[str, Case] = {
    **cases_python.CASES, **cases_state.CASES, **cases_tensors.CASES, **cases_autograd.CASES,
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.refused])
def test_equal_to_one_device(name: str) -> None:
    case = CASES[name]
    task = case.task()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = Model(task)
        for strategy in case.strategies:
            found = verify(
                task, "local:2", strategy, model=model, microbatches=case.microbatches,
                batches=case.batches() if case.batches else None,
            )  # fmt: skip
            assert found.equal, (strategy, found)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.refused])
def test_refused_with_advice(name: str) -> None:
    case = CASES[name]
    with pytest.raises(CaptureError, match=case.refused) as found:
        verify(case.task(), "local:2", case.strategies[0], steps=1)
    assert found.value.remedy

"""Every error that a user can meet, in one tree.

    MeshwrightError                 exit code
    ├── UsageError                  2   bad input: what was got, what was expected, what to do
    │   ├── ClusterError            2   a cluster text or file that makes no sense
    │   ├── ModelError              2   a model that can't be loaded, a batch that doesn't fit
    │   ├── StrategyError           2   a strategy that doesn't parse or can't be laid on this mesh
    │   └── PlanError               2   a plan file that is damaged, too new, or for something else
    ├── NoPlanFits                  3   nothing fits the memory given
    ├── CaptureError                4   the step could not be captured as a Program
    │   └── RuleError               4   an op has no sharding rule
    └── RunError                    5   a run that started and ended badly

`message` says what happened; `remedy` says what to do about it. Both are plain
sentences, since the command line prints them as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class MeshwrightError(Exception):
    """Root of all errors meant for a user; `kind` names it in JSON output."""

    kind = "error"
    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n{self.remedy}" if self.remedy else self.message


class UsageError(MeshwrightError, ValueError):
    kind = "usage"
    exit_code = 2


class ClusterError(UsageError):
    kind = "cluster"


class ModelError(UsageError):
    kind = "model"


class StrategyError(UsageError):
    kind = "strategy"


class PlanError(UsageError):
    kind = "plan"


class NoPlanFits(MeshwrightError):
    """closest: the candidate that comes closest, as evaluated. details: the same figures, and
    what would fit, for `--json`."""

    kind = "no-plan-fits"
    exit_code = 3

    def __init__(
        self,
        message: str,
        remedy: str = "",
        *,
        closest: object = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, remedy)
        self.closest = closest
        self.details = details or {}


class CaptureError(MeshwrightError):
    kind = "capture"
    exit_code = 4


class RuleError(CaptureError):
    kind = "rule"


class RunError(MeshwrightError):
    kind = "run"
    exit_code = 5

"""Meshwright: plans and runs parallel training of any `torch.nn.Module`.

    plan = meshwright.plan(task, cluster="local:4")
    job = meshwright.parallelize(task, optimizer=..., plan=plan)   # under torchrun
    metrics = job.step(batch)

What needs PyTorch is imported when it is first used, so that the command line
answers at once where it needs none.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from meshwright._version import __version__
from meshwright.errors import (
    CaptureError,
    ClusterError,
    MeshwrightError,
    ModelError,
    NoPlanFits,
    PlanError,
    RuleError,
    RunError,
    StrategyError,
    UsageError,
)

if TYPE_CHECKING:
    from meshwright.api import parallelize, plan, register_rule, verify
    from meshwright.as_is import opaque
    from meshwright.plan.file import load_plan, save_plan
    from meshwright.plan.types import Plan
    from meshwright.runtime.job import Job, Metrics
    from meshwright.task import Task

__all__ = [
    "CaptureError",
    "ClusterError",
    "Job",
    "MeshwrightError",
    "Metrics",
    "ModelError",
    "NoPlanFits",
    "Plan",
    "PlanError",
    "RuleError",
    "RunError",
    "StrategyError",
    "Task",
    "UsageError",
    "__version__",
    "load_plan",
    "opaque",
    "parallelize",
    "plan",
    "register_rule",
    "save_plan",
    "verify",
]

_HOMES = {
    "Job": "meshwright.runtime.job",
    "Metrics": "meshwright.runtime.job",
    "Plan": "meshwright.plan.types",
    "Task": "meshwright.task",
    "load_plan": "meshwright.plan.file",
    "opaque": "meshwright.as_is",
    "parallelize": "meshwright.api",
    "register_rule": "meshwright.api",
    "save_plan": "meshwright.plan.file",
    "verify": "meshwright.api",
}


class _Package(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'meshwright' has no attribute '{name}'")
        return getattr(import_module(_HOMES[name]), name)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *__all__})

    def _plan(self) -> Any:
        return import_module("meshwright.api").plan

    def _keep_plan(self, folder: ModuleType) -> None:
        """The import of the folder `meshwright.plan` must not hide the function of that name."""

    if not TYPE_CHECKING:
        plan = property(_plan, _keep_plan)


sys.modules[__name__].__class__ = _Package

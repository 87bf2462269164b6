"""Meshwright: plans and runs parallel training of any `torch.nn.Module`.

plan = meshwright.plan(task, cluster="local:4")
job = meshwright.parallelize(task, optimizer=..., plan=plan)   # under torchrun
metrics = job.step(batch)
"""

from meshwright._version import __version__
from meshwright.api import parallelize, plan
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
    "parallelize",
    "plan",
    "save_plan",
]

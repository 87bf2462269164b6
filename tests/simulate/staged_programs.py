"""Lowered programs of real models for the simulator's tests, made once each."""

from __future__ import annotations

from functools import cache

from meshwright.api import Model
from meshwright.cluster.parse import parse_cluster
from meshwright.cluster.types import Cluster
from meshwright.layout.assignment import assign
from meshwright.layout.lowered import LoweredProgram
from meshwright.lower.lower import lower
from meshwright.search.named import candidate
from meshwright.search.strategy import mesh_for, parse_strategy
from meshwright.task import Task
from meshwright.zoo.reference import load_task


@cache
def model(name: str, options: tuple[tuple[str, object], ...] = ()) -> Model:
    return Model(load_task(name, dict(options)))


@cache
def parsed(cluster: str) -> Cluster:
    return parse_cluster(cluster)


@cache
def lowered(
    name: str, strategy: str, cluster: str = "local:4", clip: bool = True, bucket_bytes: int = 0,
    **options: object,
) -> LoweredProgram:  # fmt: skip
    """One device's program of a microbatch; options as on the command line."""
    return of(model(name, tuple(options.items())), strategy, cluster, clip, bucket_bytes)


def of(
    made: Model, strategy: str, cluster: str, clip: bool = True, bucket_bytes: int = 0
) -> LoweredProgram:
    wanted = parse_strategy(strategy)
    analysis = made.microbatch(1)[1]
    mesh = mesh_for(wanted, parsed(cluster).size)
    chosen = candidate(
        analysis, mesh, zero=wanted.zero or 0, microbatches=1, sequence=wanted.sequence
    )
    assignment = assign(analysis, mesh, chosen.decisions, chosen.parameters, clip)
    return lower(analysis, assignment, mesh.coordinate(0), bucket_bytes)


__all__ = ["Task", "lowered", "model", "of", "parsed"]

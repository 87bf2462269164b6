"""Random programs under random layouts give the numbers of one device.

Every case is a model of random ops on shapes that seldom divide, and some
layouts: any dim of any value over any axis of a mesh, parameters stored
anywhere. All ranks run in one process. A failure is shrunk by hypothesis to a
short recipe, which it prints. MESHWRIGHT_FUZZ_SEED draws other cases.
"""

from __future__ import annotations

import os
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, note, seed, settings
from hypothesis import strategies as st
from programs import NAMES, grow, task

from meshwright.api import Model, plan, verify
from meshwright.plan.types import Decision, ParameterPlan, Plan
from meshwright.program.types import Program, Value

SEED = int(os.environ.get("MESHWRIGHT_FUZZ_SEED", "0"))
PARTS = 8  # each its own test, so that a failure does not hide the others
OFTEN = 2  # of the parts that run in `make test`
LAYOUTS = 5  # of each program
CASES = 2000

MESHES: tuple[tuple[tuple[str, int], ...], ...] = (
    (("a", 2),), (("a", 3),), (("a", 4),), (("a", 2), ("b", 2)), (("a", 3), ("b", 2)),
)  # fmt: skip
SHAPES = st.lists(st.integers(1, 7), min_size=2, max_size=4)
RECIPES = st.lists(
    st.tuples(st.integers(0, len(NAMES) - 1), st.integers(0, 1 << 20)), min_size=1, max_size=7
)
LAYOUT_SEEDS = st.lists(st.integers(0, 1 << 20), min_size=LAYOUTS, max_size=LAYOUTS)


def can_be_cut(program: Program) -> list[Value]:
    return [value for value in program.values.values() if any(s > 1 for s in value.shape)]


def drawn_plan(base: Plan, model: Model, chance: Random) -> Plan:
    """The plan of one device with decisions and residencies by chance."""
    program = model.microbatch(1)[0].program
    mesh = dict(chance.choice(MESHES))
    values = can_be_cut(program)
    decisions = []
    for _ in range(chance.randint(1, 4)):
        value = chance.choice(values)
        dim = chance.choice([k for k, size in enumerate(value.shape) if size > 1])
        size = value.shape[dim]
        outer = chance.choice([n for n in range(1, size) if size % n == 0])
        extents = [n for n in range(2, size // outer + 1) if size // outer % n == 0]
        decisions.append(
            Decision(
                axis=chance.choice(list(mesh)), value=value.name, dim=dim, outer=outer,
                extent=chance.choice(extents),
            )
        )  # fmt: skip
    parameters = {
        path: ParameterPlan(
            residency=chance.choice(["always", "step", "microbatch", "use"]),
            storage_axes=tuple(chance.sample(list(mesh), chance.randint(0, len(mesh)))),
        )
        for path in base.parameters
    }
    return base.model_copy(
        update={"mesh": mesh, "decisions": tuple(decisions), "parameters": parameters}
    )


def described(made: Plan) -> dict[str, Any]:
    return {
        "mesh": made.mesh,
        "decisions": [d.model_dump(exclude={"why"}) for d in made.decisions],
        "parameters": {k: (p.residency, p.storage_axes) for k, p in made.parameters.items()},
    }


def run_case(shape: list[int], recipe: list[tuple[int, int]], layouts: list[int]) -> int:
    """How many layouts of the program were compared: all, if any of its values can be cut."""
    steps = grow(shape, recipe)
    note(f"steps: {[(step.name, step.takes) for step in steps]}")
    made = task(shape, steps)
    model = Model(made)
    assume(can_be_cut(model.microbatch(1)[0].program))
    base = plan(made, "local:1", "data=1", model=model)
    for number in layouts:
        chosen = drawn_plan(base, model, Random(number))
        result = verify(made, plan=chosen, model=model, steps=1)
        assert result.equal, (described(chosen), result)
    return len(layouts)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "part", [k if k < OFTEN else pytest.param(k, marks=pytest.mark.all) for k in range(PARTS)]
)
def test_random_programs_under_random_layouts(part: int) -> None:
    print(f"seed {SEED}, part {part}")
    ran = 0

    @seed(SEED * PARTS + part)
    @settings(
        max_examples=CASES // LAYOUTS // PARTS, deadline=None, database=None, print_blob=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(shape=SHAPES, recipe=RECIPES, layouts=LAYOUT_SEEDS)
    def run(shape: list[int], recipe: list[tuple[int, int]], layouts: list[int]) -> None:
        nonlocal ran
        ran += run_case(shape, recipe, layouts)

    run()
    assert ran >= CASES // PARTS


def test_nearly_every_op_of_the_menu_is_met() -> None:
    chance = Random(SEED)
    met: set[str] = set()
    for _ in range(400):
        shape = [chance.randint(1, 7) for _ in range(chance.randint(2, 4))]
        recipe = [(chance.randrange(len(NAMES)), chance.randrange(1 << 20)) for _ in range(5)]
        met.update(step.name for step in grow(shape, recipe))
    assert met == set(NAMES)

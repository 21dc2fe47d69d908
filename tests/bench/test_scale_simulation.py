"""The arithmetic of `bench/scale_simulation.py`, where the result can be counted by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "scale_simulation.py"


@pytest.fixture(scope="module")
def simulation():
    spec = importlib.util.spec_from_file_location("scale_simulation", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_without_deaths(simulation):
    plan = simulation.Plan([5.0, 1.0, 5.0, 1.0], [1.0, 1.0], start=2.0)
    assert plan.ideal == 6.0
    static, pool = simulation.simulate(plan, "static"), simulation.simulate(plan, "pool")
    assert (static.makespan, static.ended) == (12.0, [12.0, 4.0])
    assert (pool.makespan, pool.ended) == (8.0, [8.0, 8.0])  # 5 + 1; 1 + 5
    assert static.lost == pool.lost == static.deaths == 0


def test_slow_worker(simulation):
    plan = simulation.Plan([4.0] * 6, [0.5, 1.0])
    assert plan.ideal == 16.0
    assert simulation.simulate(plan, "static").makespan == 24.0
    assert simulation.simulate(plan, "pool").makespan == 16.0


@pytest.mark.parametrize(
    ("keeps", "makespan", "lost"),
    # dies 3 s into the second shard, is back after 10 s, starts for 2 s
    [(True, 2 + 10 + 3 + 10 + 2 + (10 - (3 - 1)), 1), (False, 2 + 10 + 3 + 10 + 2 + 10, 3)],
)
def test_one_death(simulation, keeps, makespan, lost):
    plan = simulation.Plan([10.0, 10.0], [1.0], 2.0, [[15.0]], 10.0, keeps, lost=1.0)
    for way in ("static", "pool"):
        outcome = simulation.simulate(plan, way)
        assert (outcome.makespan, outcome.lost, outcome.deaths) == (makespan, lost, 1)


def test_others_take_the_shard_of_the_dead_in_the_pool_alone(simulation):
    plan = simulation.Plan([10.0, 10.0], [1.0, 1.0], 0.0, [[4.0], []], 100.0, patience=20.0)
    assert simulation.simulate(plan, "static").makespan == 4 + 100 + 6
    assert simulation.simulate(plan, "pool").makespan == 4 + 20 + 6  # the other one waits for it
    back = simulation.Plan([10.0, 10.0], [1.0, 1.0], 0.0, [[4.0], []], 5.0, patience=20.0)
    assert simulation.simulate(back, "pool").makespan == 4 + 5 + 6


def test_death_during_the_start_and_while_away(simulation):
    # dies at 1 s, is away until 6 s; the death at 3 s does not count; starts until 8 s
    plan = simulation.Plan([4.0], [1.0], 2.0, [[1.0, 3.0]], 5.0)
    outcome = simulation.simulate(plan, "static")
    assert (outcome.makespan, outcome.deaths, outcome.lost) == (12.0, 1, 0)


def test_array(simulation):
    plan = simulation.as_tasks(simulation.Plan([1.0] * 8, [1.0, 1.0], start=3.0), 4)
    assert list(plan.work) == [5.0] * 4
    assert simulation.simulate(plan, "pool").makespan == 10.0


def test_nothing_is_made_faster_than_the_ideal(simulation):
    rng = np.random.default_rng(0)
    deaths = simulation.deaths_of(rng, 8, 20.0, 10_000.0)
    assert all(own == sorted(own) for own in deaths)
    plan = simulation.Plan(rng.uniform(1, 9, 300).tolist(), [1.0] * 8, 1.0, deaths, 30.0, lost=0.5)
    static, pool = (simulation.simulate(plan, way) for way in ("static", "pool"))
    assert plan.ideal < pool.makespan < static.makespan
    assert 0 < pool.lost <= pool.deaths * 0.5 + 1e-9

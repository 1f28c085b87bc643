"""Which steps of a run are stochastic and trained; MixGRPO's places are of its own code (tests/rl/golden/grpo.json)."""

import json
from pathlib import Path

import pytest

from rl.flow.sde import SDEWindow, WindowKind, sde_window

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "grpo.json").read_text())


@pytest.mark.parametrize("kind", ["all", "random", "sliding", "fraction"])
def test_windows_are_a_function_of_seed_and_iteration(kind: WindowKind) -> None:
    """Inside the run without its last step, ascending, trained within stochastic."""
    for steps in (10, 16, 25):
        for iteration in range(40):
            got = sde_window(kind, steps, seed=3, iteration=iteration, size=3, every=5)
            assert got == sde_window(kind, steps, seed=3, iteration=iteration, size=3, every=5)
            assert list(got.stochastic) == sorted(set(got.stochastic)) and set(got.trained) <= set(got.stochastic)
            assert list(got.trained) == sorted(set(got.trained)) and got.stochastic[0] >= 0
            assert got.stochastic[-1] < steps - 1


def test_random_windows_lie_in_the_first_half_and_reach_all_of_it() -> None:
    starts = {sde_window("random", 10, seed=0, iteration=i, size=2).trained for i in range(100)}
    assert starts == {(k, k + 1) for k in range(4)}
    other = [sde_window("random", 10, seed=seed, iteration=0, size=2) for seed in range(20)]
    assert len(set(other)) > 1


def test_the_sliding_window_visits_every_step_and_rolls_back() -> None:
    """The 20 full places of MixGRPO's own state machine, then one more, then from the start."""
    places = [sde_window("sliding", 25, seed=0, iteration=25 * place, size=4, every=25) for place in range(23)]
    full = [steps for steps in GOLDEN["mix_grpo_windows"] if len(steps) == 4]
    assert len(full) == 20 and [list(place.trained) for place in places[:20]] == full
    assert places[20].trained == (20, 21, 22, 23) and places[21:] == places[:2]
    assert {k for place in places for k in place.trained} == set(range(24))
    assert sde_window("sliding", 25, seed=0, iteration=24, size=4, every=25) == places[0]


def test_fraction_trains_60_percent_of_all_steps_but_the_last() -> None:
    """DanceGRPO: 16 steps, 15 stochastic, 9 trained, another 9 in another iteration."""
    got = [sde_window("fraction", 16, seed=0, iteration=i, fraction=0.6) for i in range(30)]
    assert all(g.stochastic == tuple(range(15)) and len(g.trained) == 9 for g in got)
    assert {k for g in got for k in g.trained} == set(range(15)) and len(set(got)) > 20
    assert sde_window("all", 16, seed=0, iteration=0) == SDEWindow(tuple(range(15)), tuple(range(15)))

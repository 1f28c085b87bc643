"""How GRPO shares a batch's micro-batches out among its updates."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from rl.config.online import RunConfig
from rl.objectives.grpo import GRPOBatch, GRPOObjective
from rl.types import TrainGroup, TrajectoryRecord

Configure = Callable[..., RunConfig]
GROUPS, MEMBERS, SLOTS = 4, 4, 3
BASE = (
    "objective={type: grpo, order: samples}", "rollout.sampler.solver=sde", "data.crop=64", "rollout.micro_batch=1",
    f"train.groups_per_step={GROUPS}", "learner.updates_per_batch=2",
)  # fmt: skip


@pytest.fixture
def batch(make_group: Callable[..., TrainGroup]) -> Callable[..., list[TrainGroup]]:
    """Groups whose every state says which member and step it is: ordinal + member / 10 + state / 100."""

    def make(first: int = 0) -> list[TrainGroup]:
        groups = []
        for ordinal in range(first, first + GROUPS):
            group = make_group(ordinal, version=0)
            k, i = np.meshgrid(np.arange(SLOTS + 1), np.arange(MEMBERS), indexing="ij")
            states = np.tile((ordinal + i / 10 + k / 100)[..., None, None, None], (1, 1, 16, 2, 2)).astype(np.float32)
            taken = TrajectoryRecord((0, 1, 2), (0, 1, 2, 3), states, np.zeros((SLOTS, MEMBERS)), None)
            object.__setattr__(group.group, "trajectory", taken)
            groups.append(group)
        return groups

    return make


def updates(objective: GRPOObjective, groups: Sequence[TrainGroup]) -> list[list[tuple[int, int, int]]]:
    """(ordinal, member, step) of every micro-batch, update by update."""
    found = [named(micro) for micro in objective.micro_batches(groups, 0)]
    size = objective.run_config.micro_batches_per_update
    return [found[i : i + size] for i in range(0, len(found), size)]


def named(micro: GRPOBatch) -> tuple[int, int, int]:
    value = float(micro.x.flatten()[0])
    member = round((value - micro.ordinal - micro.k / 100) * 10)
    assert value == pytest.approx(micro.ordinal + member / 10 + micro.k / 100, abs=1e-5)
    assert float(micro.x_next.flatten()[0]) == pytest.approx(value + 0.01, abs=1e-5)
    assert micro.share == 1 / MEMBERS
    return micro.ordinal, member, micro.k


def test_each_update_sees_its_share_of_the_members_at_all_steps(
    run_config: Configure, build: Callable[..., GRPOObjective], batch: Callable[..., list[TrainGroup]]
) -> None:
    """Flow-GRPO: 16 samples, 2 updates of 8 samples at all 3 steps; every (member, step) once a batch."""
    found = updates(build(run_config(*BASE)), batch())
    assert [len(update) for update in found] == [24, 24]
    for update in found:
        steps = Counter((ordinal, member) for ordinal, member, _ in update)
        assert len(steps) == 8 and set(steps.values()) == {3}
    everything = [entry for update in found for entry in update]
    assert len(set(everything)) == len(everything) == GROUPS * MEMBERS * SLOTS
    assert len({ordinal for ordinal, _, _ in found[0]}) > 2, "samples of all groups are mixed"


def test_the_order_is_a_function_of_the_seed_and_the_ordinals(
    run_config: Configure, build: Callable[..., GRPOObjective], batch: Callable[..., list[TrainGroup]]
) -> None:
    """A resumed run trains a batch in the order in which it was begun; another batch and another seed have others."""
    objective = build(run_config(*BASE))
    order = updates(objective, batch())
    assert order == updates(build(run_config(*BASE), seed=5), batch())
    relative = [[(o - GROUPS, m, k) for o, m, k in update] for update in updates(objective, batch(first=GROUPS))]
    assert relative != order
    assert updates(build(run_config(*BASE, "seed=1")), batch()) != order
    steps = [k for ordinal, member, k in order[0]]
    assert [steps[i : i + 3] for i in range(0, 24, 3)] != [[0, 1, 2]] * 8, "steps are shuffled member by member"


def test_timesteps_give_every_update_every_member(
    run_config: Configure, build: Callable[..., GRPOObjective], batch: Callable[..., list[TrainGroup]]
) -> None:
    """3 updates of one step each, in the order of the steps."""
    config = run_config(*BASE, "objective.order=timesteps", "learner.updates_per_batch=3")
    found = updates(build(config), batch())
    for step, update in enumerate(found):
        assert update == [(ordinal, member, step) for ordinal in range(GROUPS) for member in range(MEMBERS)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("objective.order=timesteps",), "must divide the 3 slots of a group, so that every update sees every group"),
        (("learner.updates_per_batch=3",), "must divide the 16 micro-batches of members of a rank"),
        (("rollout.micro_batch=0", "learner.updates_per_batch=8"), "must divide the 4 micro-batches of members"),
    ],
)
def test_updates_that_cannot_have_equal_shares_are_refused(
    run_config: Configure, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run_config(*BASE, *overrides)

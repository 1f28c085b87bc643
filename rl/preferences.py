"""Preference pairs chosen by a group's advantages, for objectives that train on pairs. Pure numpy, outside any loss, so
that live groups and mined pools feed the same objective."""

import numpy as np

from rl.types import F16, F64, PreferencePairs, RolloutGroup, SRTask, TrainGroup, TrainItem


def best_and_worst(task: SRTask, group: RolloutGroup, advantages: F64) -> PreferencePairs:
    """One pair: the members with the largest and the smallest advantage `[G]`, the first among ties; weight 1. With
    advantages `[G, h, w]` they are chosen in every cell."""
    best, worst = (np.asarray(choose(axis=0))[None] for choose in (advantages.argmax, advantages.argmin))
    return PreferencePairs(task, group, best, worst, np.ones(1))


def train_item(task: SRTask, group: RolloutGroup, advantages: F64 | F16, *, pairs: bool) -> TrainItem:
    """What the learner trains on from a live group: its members with their advantages, or a pair of them."""
    advantages = np.asarray(advantages, dtype=np.float64)
    return best_and_worst(task, group, advantages) if pairs else TrainGroup(task, group, advantages)

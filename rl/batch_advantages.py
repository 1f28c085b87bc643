"""The advantages of one training batch, as the configuration asks for them."""

from collections.abc import Sequence

import numpy as np

from rl.advantages import AGGREGATIONS, AdvantageBatch, attribute_aware
from rl.attributes import attribute_shares
from rl.config.run import RunConfig
from rl.types import F64, SRTask


def batch_advantages(config: RunConfig, scores: F64, tasks: Sequence[SRTask]) -> AdvantageBatch:
    """From scores `[N, G, R]` of the whole batch, that is over all ranks, and the N tasks that they belong to."""
    weights = np.array([reward.weight for reward in config.rewards])
    scales = np.array([reward.scale for reward in config.rewards])
    how = config.advantage
    if how.aggregation != "attribute_aware":
        return AGGREGATIONS[how.aggregation](scores, weights, scales, how.std_floor, how.eps)
    rho_d = np.array([_detail_share(task, how.detail_share) for task in tasks])
    fidelity = np.array([reward.attribute == "fidelity" for reward in config.rewards])
    return attribute_aware(scores, rho_d, fidelity, weights, scales, how.std_floor, how.eps)


def _detail_share(task: SRTask, fixed: float | None) -> float:
    if fixed is not None:
        return fixed
    if task.hr is None:
        raise ValueError(f"task {task.ordinal} '{task.lr_id}' has no HR image to take a detailed share from")
    return attribute_shares(task.hr).detail

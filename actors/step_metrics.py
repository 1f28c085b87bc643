"""Everything that one finished step reports, under the keys of rl.metrics."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from actors.lanes import LaneClock, ScoredGroup
from actors.scoring import RewardPool
from actors.tagging import TaggerPool
from actors.weight_sync import PushReport
from rl.advantages import AdvantageBatch
from rl.config.run import RunConfig
from rl.metrics import Key, Value, batch_values
from rl.types import F64

if TYPE_CHECKING:
    from learner.learner import TrainReport


def step_values(
    config: RunConfig, groups: Sequence[ScoredGroup], batch: AdvantageBatch, r: F64 | None, report: "TrainReport",
    push: PushReport, clock: LaneClock, pools: Sequence[RewardPool], step_s: float, lag_s: float,
) -> dict[str, Value]:  # fmt: skip
    """Reads and resets the pools' clocks; `clock` is the lanes' since the last step."""
    scales = np.array([reward.scale for reward in config.rewards])
    names = [reward.name for reward in config.rewards]
    scores = np.stack([group.table.scores for group in groups])
    values = batch_values(names, scores, scales, batch, r)
    values.update(_learner(report))
    values.update(_push(push, lag_s))
    ages = [push.version - 1 - group.receipt.policy_version for group in groups]
    images = sum(group.receipt.images for group in groups)
    values[Key.POLICY_AGE_MEAN], values[Key.POLICY_AGE_MAX] = float(np.mean(ages)), float(max(ages))
    values[Key.TIME_STEP], values[Key.PERF_IMAGES] = step_s, images / step_s
    values[Key.TIME_SAMPLE], values[Key.TIME_SCORE] = clock.sample_s, clock.score_s
    values[Key.GROUP_DROPPED] = float(clock.dropped)
    values.update({Key.REWARD_FAILED.of(pool.name): float(clock.failed[pool]) for pool in pools})
    if config.data.tagger is not None:
        values[Key.TIME_TAG] = clock.tag_s
        values[Key.TAGGER_FAILED] = float(sum(n for pool, n in clock.failed.items() if isinstance(pool, TaggerPool)))
    values[Key.IDLE_ROLLOUT] = _idle(clock.sample_s, step_s * config.rollout.workers)
    values[Key.IDLE_LEARNER] = _idle(report.train_s, step_s)
    values.update(_rewards(pools, step_s))
    return values


def _learner(report: "TrainReport") -> dict[str, Value]:
    return {
        **{str(key): value for key, value in report.losses.items()},
        Key.OPTIM_GRAD_NORM: report.grad_norm,
        Key.OPTIM_LR: report.lr,
        Key.OPTIM_UPDATES: float(report.updates),
        Key.TIME_TRAIN: report.train_s,
    }


def _push(push: PushReport, lag_s: float) -> dict[str, Value]:
    return {
        Key.POLICY_VERSION: float(push.version),
        Key.PUBLISH_LAG: lag_s,
        Key.PUBLISH_GATHER: push.gather_s,
        Key.PUBLISH_PUT: push.put_s,
        Key.PUBLISH_LOAD: push.load_s,
        Key.PUBLISH_VERIFY: push.verify_s,
        Key.PUBLISH_TOTAL: push.total_s,
        Key.PUBLISH_BYTES: float(push.size_bytes),
    }


def _rewards(pools: Sequence[RewardPool], step_s: float) -> dict[str, Value]:
    answered = sum(pool.answered for pool in pools)
    waited = sum(pool.waited_s for pool in pools)
    busy = sum(pool.busy_s for pool in pools)
    replicas = sum(pool.config.replicas for pool in pools)
    for pool in pools:
        pool.answered, pool.waited_s, pool.busy_s = 0, 0.0, 0.0
    wait: dict[str, Value] = {Key.REWARD_QUEUE_WAIT: waited / answered} if answered else {}
    return {Key.IDLE_REWARD: _idle(busy, step_s * replicas), **wait}


def _idle(busy_s: float, available_s: float) -> float:
    """Work that began before the step counts to the step in which it ended, hence the clamp."""
    return min(1.0, max(0.0, 1.0 - busy_s / available_s))

"""An online run in one process and without Ray, so that lag is exact: the groups of step s are sampled with version
max(0, s - lag), by the real worker, rewards and learner."""

import time

from harness import tables

from learner.learner import Learner
from rewards.server import RewardServer
from rl.config.online import RunConfig
from rl.data.source import TaskSource
from rl.preferences import train_item
from rl.rollout import RolloutWorker
from rl.seeding import derive_seed, member_seeds
from rl.types import RolloutGroup, SRTask


class LaggedLoop:
    """Versions older than the newest are kept for sampling. The caller is the only rank."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.worker = RolloutWorker(config)
        self.learner = Learner(config)
        self.servers = [RewardServer(reward, cell_px=config.map_cell_px) for reward in config.rewards]
        self.source = TaskSource(config.data, config.seed)
        self.published = [self.learner.snapshot()]

    def step(self, s: int) -> float:
        """Sample with the version that lag allows, score, train; returns the learner's seconds."""
        config, count = self.config, self.config.train.groups_per_step
        self.worker.install(self.published[max(0, s - config.train.max_policy_lag)])
        tasks = [self.source.task(s * count + i) for i in range(count)]
        groups = [self.worker.rollout(t, member_seeds(config.seed, t.ordinal, config.group_size))[1] for t in tasks]
        scored = tables(self.servers, tasks, groups)
        advantages = config.advantage.of_tables(scored, config.rewards, tasks, config.map_cell_px).advantages
        started = time.perf_counter()
        pairs = config.objective.pairs
        self.learner.train(
            [train_item(t, g, a, pairs=pairs) for t, g, a in zip(tasks, groups, advantages, strict=True)]
        )
        self.published.append(self.learner.snapshot())
        return time.perf_counter() - started

    def held_out(self, samples: int) -> list[tuple[SRTask, RolloutGroup]]:
        """The EMA's samples of every held-out crop, with the same noise at every call."""
        section = self.config.eval
        assert section is not None
        self.worker.install(self.learner.ema_snapshot())
        found = []
        for task in TaskSource(section.data, 0).grid(section.crops):
            seeds = tuple(derive_seed("eval", task.lr_id, k) for k in range(samples))
            found.append((task, self.worker.rollout(task, seeds, training=False)[1]))
        return found

"""The same training without Ray or DeepSpeed: one process, one loop, the same functions of rl/ and rewards/.

The rival of benchmark 2 (overlap), and a quick way to try settings:

    uv run python tests/benchmarks/bare_loop.py configs/quickstart.yaml train.steps=10

Groups are always as new as the policy: for emulated lag see bench_anchor.py.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from harness import scores, tables

from learner.ema import Ema
from learner.engine import build_optimizer
from rewards.server import RewardServer
from rl.config.load import load_config
from rl.config.online import RunConfig
from rl.data.source import TaskSource
from rl.objectives import build_objective
from rl.policies import load_policy
from rl.policies.base import Policy
from rl.policies.lora import OLD, POLICY, Adapters, take_snapshot
from rl.preferences import train_item
from rl.rollout import RolloutWorker
from rl.seeding import derive_seed, member_seeds
from rl.spatial import scores_of
from rl.types import F64, RewardTable, RolloutGroup, SRTask, TrainItem

Adapter = dict[str, torch.Tensor]


@dataclass(frozen=True)
class StepTimes:
    """Seconds of one step."""

    sample_s: float
    score_s: float
    train_s: float
    images: int

    @property
    def images_per_s(self) -> float:
        return self.images / (self.sample_s + self.score_s + self.train_s)


class BareTrainer:
    """A rank's mathematics on plain AdamW: no shards, no history of versions, no checks."""

    def __init__(self, config: RunConfig, policy: Policy | None = None) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.policy = load_policy(config.policy) if policy is None else policy
        anchored = config.objective.anchor_needed is not None
        self.adapters = Adapters(self.policy, *((POLICY, OLD) if anchored else (POLICY,)))
        self.theta = self.adapters.parameters(POLICY)
        self.old = self.adapters.parameters(OLD) if anchored else {}
        for parameter in self.old.values():
            parameter.requires_grad_(False)
        self.published: Adapter = {name: p.detach().clone() for name, p in self.theta.items()}
        self.objective = build_objective(self.policy, self.adapters, config)
        self.optimizer = build_optimizer(list(self.theta.values()), config.learner.optimizer)
        self.ema = Ema(self.theta, config.learner.ema_decay)
        self.updates = 0

    def backward(self, items: Sequence[TrainItem]) -> None:
        """Add up the gradient of every micro-batch of a batch, without a step."""
        for batch in self.objective.micro_batches(items, 0):
            self.objective(batch).total.backward()

    def train(self, items: Sequence[TrainItem]) -> None:
        config = self.config
        for name, parameter in self.old.items():
            parameter.data = self.published[name]
        batches = self.objective.micro_batches(items, 0)
        share = config.parts_per_group / config.micro_batches_per_update
        for _ in range(config.learner.updates_per_batch):
            for _ in range(config.micro_batches_per_update):
                (self.objective(next(batches)).total * share).backward()
            torch.nn.utils.clip_grad_norm_(list(self.theta.values()), config.learner.optimizer.grad_clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.updates += 1
            self.ema.update(self.theta, self.updates)
        eta = self.objective.old_decay(self.updates)
        self.published = {name: torch.lerp(p.detach(), self.published[name], eta) for name, p in self.theta.items()}


class BareLoop(BareTrainer):
    """Sample, score and train on one thread of control."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.worker = RolloutWorker(config)
        self.worker.install(take_snapshot(self.published, 0))
        self.source = TaskSource(config.data, config.seed)
        self.servers = [RewardServer(reward, cell_px=config.map_cell_px) for reward in config.rewards]

    def rollout(self, task: SRTask) -> RolloutGroup:
        seeds = member_seeds(self.config.seed, task.ordinal, self.config.rollout.group_size)
        return self.worker.rollout(task, seeds)[1]

    def ordinals(self, index: int) -> range:
        count = self.config.train.groups_per_step
        return range(index * count, (index + 1) * count)

    def step(self, index: int) -> tuple[StepTimes, F64]:
        return self.step_on([self.source.task(ordinal) for ordinal in self.ordinals(index)])

    def step_on(self, tasks: Sequence[SRTask]) -> tuple[StepTimes, F64]:
        t0 = time.perf_counter()
        groups = [self.rollout(task) for task in tasks]
        t1 = time.perf_counter()
        scored = tables(self.servers, tasks, groups)
        t2 = time.perf_counter()
        self.train(self.items(tasks, groups, scored))
        self.worker.install(take_snapshot(self.published, self.updates))
        images = sum(len(group.images) for group in groups)
        return StepTimes(t1 - t0, t2 - t1, time.perf_counter() - t2, images), scores_of(scored)

    def items(
        self, tasks: Sequence[SRTask], groups: Sequence[RolloutGroup], scored: Sequence[RewardTable]
    ) -> list[TrainItem]:
        """What the learner would train of scored groups."""
        config = self.config
        batch = config.advantage.of_tables(scored, config.rewards, tasks, config.map_cell_px)
        pairs = config.objective.pairs
        return [train_item(t, g, a, pairs=pairs) for t, g, a in zip(tasks, groups, batch.advantages, strict=True)]

    def run(self) -> F64:
        """All steps; mean reward per step `[steps, R]`. The EMA is the result."""
        return np.array([self.step(index)[1].mean((0, 1)) for index in range(self.config.train.steps)])

    def evaluate(self) -> F64:
        """`[crops * samples, R]` scores of the EMA on the held-out grid."""
        held_out = self.config.eval
        if held_out is None:
            raise ValueError("evaluate: the recipe has no eval")
        self.worker.install(take_snapshot(self.ema.tensors, self.updates))
        tasks = TaskSource(held_out.data, 0).grid(held_out.crops)
        seeds = [tuple(derive_seed("eval", t.lr_id, k) for k in range(held_out.samples)) for t in tasks]
        groups = [self.worker.rollout(t, s, training=False)[1] for t, s in zip(tasks, seeds, strict=True)]
        table = scores(self.servers, tasks, groups)
        self.worker.install(take_snapshot(self.published, self.updates))
        return table.reshape(-1, table.shape[-1])


def main(argv: list[str]) -> None:
    config = load_config(Path(argv[0]), ["learner.ranks=1", *argv[1:]])
    loop = BareLoop(config)
    # the worker has set its own number for the whole process
    torch.set_num_threads(config.learner.threads)
    before = loop.evaluate() if config.eval else None
    for index in range(config.train.steps):
        times, table = loop.step(index)
        print(
            f"step {index + 1} rewards {table.mean((0, 1)).round(4).tolist()} group std "
            f"{table.std(1, ddof=1).mean(0).round(5).tolist()} | sample {times.sample_s:.2f} s, score "
            f"{times.score_s:.2f} s, train {times.train_s:.2f} s, {times.images_per_s:.1f} images/s",
            flush=True,
        )
        if before is not None and (index + 1) % 8 == 0:
            delta = loop.evaluate() - before
            error = delta.std(0, ddof=1) / np.sqrt(len(delta))
            print(f"  held-out change {delta.mean(0).round(5).tolist()} +- {error.round(5).tolist()}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""The same training without Ray or DeepSpeed: one process, one loop, the same functions of rl/ and rewards/.

The rival of benchmark 2 (overlap), and a quick way to try settings:

    uv run python tests/benchmarks/bare_loop.py configs/quickstart.yaml train.steps=10
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from learner.objectives import build_objective
from rl.batch_advantages import batch_advantages
from rl.sampling import draw

from learner.engine import build_optimizer
from rewards.server import RewardServer
from rl.config.load import load_config
from rl.config.run import RunConfig
from rl.data.source import TaskSource
from rl.objectives.nft import ema_decay
from rl.policies import load_policy
from rl.policies.base import member_noise, to_uint8
from rl.policies.lora import OLD, POLICY, adapter_parameters, add_adapters, using
from rl.seeding import derive_seed, member_seeds
from rl.types import F64, RolloutGroup, SRTask, TrainGroup


@dataclass(frozen=True)
class StepTimes:
    """Seconds of one step."""

    sample_s: float
    score_s: float
    train_s: float
    images: int


class BareLoop:
    """DiffusionNFT on one thread of control."""

    def __init__(self, config: RunConfig) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.policy = load_policy(config.policy)
        add_adapters(self.policy.backbone, config.policy.lora, (POLICY, OLD))
        self.theta = adapter_parameters(self.policy.backbone, POLICY)
        self.old = adapter_parameters(self.policy.backbone, OLD)
        for parameter in self.old.values():
            parameter.requires_grad_(False)
        self.ema = {name: p.detach().clone() for name, p in self.theta.items()}
        self.objective = build_objective(self.policy, config)
        self.optimizer = build_optimizer(list(self.theta.values()), config.learner.optimizer)
        self.source = TaskSource(config.data, config.seed)
        self.servers = [RewardServer(reward) for reward in config.rewards]
        self.updates = 0

    @torch.no_grad()
    def rollout(self, task: SRTask, seeds: tuple[int, ...], adapter: str = OLD) -> RolloutGroup:
        condition = self.policy.encode(task.lr, task.scale)
        noise = member_noise(seeds, self.policy.latent_shape(condition), self.policy.device)
        with using(self.policy.backbone, adapter):
            x0 = draw(self.policy, noise, [condition], self.config.rollout.sampler)
        images = to_uint8(self.policy.decode(x0)).numpy()
        return RolloutGroup(task.ordinal, task.lr_id, 0, "", seeds, x0.numpy(), images)

    def score(self, tasks: list[SRTask], groups: list[RolloutGroup]) -> F64:
        columns = [
            [server.score([task], [group])[0].scores for server in self.servers]
            for task, group in zip(tasks, groups, strict=True)
        ]
        return np.stack([np.stack(row, axis=1) for row in columns])

    def step(self, index: int) -> tuple[StepTimes, F64]:
        return self.step_on([self.source.task(ordinal) for ordinal in self.ordinals(index)])

    def ordinals(self, index: int) -> range:
        count = self.config.train.groups_per_step
        return range(index * count, (index + 1) * count)

    def step_on(self, tasks: list[SRTask]) -> tuple[StepTimes, F64]:
        config, size = self.config, self.config.rollout.group_size
        t0 = time.perf_counter()
        groups = [self.rollout(task, member_seeds(config.seed, task.ordinal, size)) for task in tasks]
        t1 = time.perf_counter()
        scores = self.score(tasks, groups)
        t2 = time.perf_counter()
        batch = batch_advantages(config, scores, tasks)
        self.train([TrainGroup(t, g, a) for t, g, a in zip(tasks, groups, batch.advantages, strict=True)])
        return StepTimes(t1 - t0, t2 - t1, time.perf_counter() - t2, len(tasks) * size), scores

    def train(self, groups: list[TrainGroup]) -> None:
        config = self.config
        batches = self.objective.micro_batches(groups, 0)
        for _ in range(config.learner.updates_per_batch):
            for _ in range(config.micro_batches_per_update):
                (self.objective(next(batches)).total / config.micro_batches_per_update).backward()
            torch.nn.utils.clip_grad_norm_(list(self.theta.values()), config.learner.optimizer.grad_clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.updates += 1
            with torch.no_grad():
                for name, p in self.theta.items():
                    self.ema[name].lerp_(p, 1 - ema_decay(config.learner.ema_decay, self.updates))
        eta = self.objective.old_decay(self.updates)
        with torch.no_grad():
            for name, p in self.theta.items():
                self.old[name].lerp_(p, 1 - eta)

    def evaluate(self) -> F64:
        """`[crops * samples, R]` scores of the EMA on the held-out grid."""
        kept = {name: p.detach().clone() for name, p in self.old.items()}
        with torch.no_grad():
            for name, p in self.old.items():
                p.copy_(self.ema[name])
        tasks = TaskSource(self.config.eval.data, 0).grid(self.config.eval.crops)
        seeds = [tuple(derive_seed("eval", t.lr_id, k) for k in range(self.config.eval.samples)) for t in tasks]
        groups = [self.rollout(t, s) for t, s in zip(tasks, seeds, strict=True)]
        scores = self.score(tasks, groups)
        with torch.no_grad():
            for name, p in self.old.items():
                p.copy_(kept[name])
        return scores.reshape(-1, scores.shape[-1])


def main(argv: list[str]) -> None:
    config = load_config(Path(argv[0]), ["learner.ranks=1", *argv[1:]])
    torch.set_num_threads(config.learner.threads)
    loop = BareLoop(config)
    before = loop.evaluate() if config.eval.data else None
    for index in range(config.train.steps):
        times, scores = loop.step(index)
        total = times.sample_s + times.score_s + times.train_s
        print(
            f"step {index + 1} rewards {scores.mean((0, 1)).round(4).tolist()} group std "
            f"{scores.std(1, ddof=1).mean(0).round(5).tolist()} | sample {times.sample_s:.2f} s, score "
            f"{times.score_s:.2f} s, train {times.train_s:.2f} s, {times.images / total:.1f} images/s",
            flush=True,
        )
        if before is not None and (index + 1) % 8 == 0:
            delta = loop.evaluate() - before
            error = delta.std(0, ddof=1) / np.sqrt(len(delta))
            print(f"  held-out change {delta.mean(0).round(5).tolist()} +- {error.round(5).tolist()}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

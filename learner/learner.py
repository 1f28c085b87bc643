"""The learner: one rank's view of the `policy` adapter, its behaviour history and its EMA.

    groups -> micro-batches -> loss -> DeepSpeed step  (updates_per_batch times)
           -> theta_old <- eta theta_old + (1 - eta) theta          = the next published version
           -> EMA for evaluation and export

Plain class: `actors/learner_worker.py` puts it into a Ray actor. Every rank holds the same adapters, so any rank can
publish; rank 0 does.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from learner import checkpoint
from learner.engine import build_engine
from learner.objectives import build_objective
from learner.objectives.base import Loss, MicroBatch
from rl.config.run import RunConfig
from rl.metrics import Key
from rl.objectives.nft import ema_decay
from rl.policies import load_policy
from rl.policies.lora import OLD, POLICY, adapter_parameters, add_adapters, take_snapshot
from rl.types import LoraSnapshot, TrainGroup

Adapter = dict[str, Tensor]


@dataclass(frozen=True)
class TrainReport:
    """What one batch did; loss terms are means over its micro-batches on this rank."""

    version: int
    updates: int
    losses: dict[Key, float]
    """`loss/total` and the objective's own terms."""
    grad_norm: float
    lr: float
    train_s: float


class Learner:
    """One rank. RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT must be set before construction."""

    def __init__(self, config: RunConfig) -> None:
        torch.set_num_threads(config.learner.threads)
        torch.manual_seed(config.seed)
        self.config = config
        self.policy = load_policy(config.policy)
        add_adapters(self.policy.backbone, config.policy.lora, (POLICY, OLD))
        self._theta = adapter_parameters(self.policy.backbone, POLICY)
        self._old = adapter_parameters(self.policy.backbone, OLD)
        for parameter in self._old.values():
            parameter.requires_grad_(False)
        self.objective = build_objective(self.policy, config)
        self.engine = build_engine(self.objective, list(self._theta.values()), config)
        self.version = 0
        self.updates = 0
        self.history: dict[int, Adapter] = {0: self._copy(self._old)}
        """Behaviour adapters of the newest max_policy_lag + 1 versions; their tensors are never written again."""
        self.ema: Adapter = self._copy(self._theta)
        self._grad_norm = 0.0

    @staticmethod
    def _copy(parameters: dict[str, torch.nn.Parameter]) -> Adapter:
        return {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def train(self, groups: list[TrainGroup]) -> TrainReport:
        """Train on this rank's groups, then make the next version."""
        started = time.perf_counter()
        self._refuse_stale(groups)
        batches = self.objective.micro_batches(groups, self.version)
        losses: list[dict[Key, float]] = []
        norms = []
        for _ in range(self.config.learner.updates_per_batch):
            self._warm_up()
            losses += self._accumulate(batches)
            norms.append(self._grad_norm)
            self.updates += 1
            self._update_ema()
        self._next_version()
        return TrainReport(
            version=self.version,
            updates=self.updates,
            losses=_means(losses),
            grad_norm=sum(norms) / len(norms),
            lr=self._lr(),
            train_s=time.perf_counter() - started,
        )

    def _accumulate(self, batches: Iterator[MicroBatch]) -> Iterator[dict[Key, float]]:
        """One optimiser step over the next micro-batches; yields their loss terms."""
        for _ in range(self.config.micro_batches_per_update):
            batch = next(batches)
            self._install_old(batch.policy_version)
            loss: Loss = self.engine(batch)
            self.engine.backward(loss.total)
            last = self.engine.is_gradient_accumulation_boundary()
            if last and self.config.learner.zero_stage == 0:
                self._grad_norm = self._norm_before_step()
            self.engine.step()
            if last and self.config.learner.zero_stage > 0:
                self._grad_norm = float(self.engine.get_global_grad_norm())
            yield {key: float(term) for key, term in {Key.LOSS_TOTAL: loss.total.detach(), **loss.terms}.items()}

    def _norm_before_step(self) -> float:
        """L2 norm before clipping; DeepSpeed keeps one only under ZeRO, where gradients are sharded."""
        gradients = [p.grad for p in self._theta.values() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0

    def _refuse_stale(self, groups: list[TrainGroup]) -> None:
        for group in groups:
            if group.group.policy_version not in self.history:
                raise ValueError(
                    f"group {group.task.ordinal} was sampled with version {group.group.policy_version}; the learner "
                    f"holds {sorted(self.history)} (max_policy_lag {self.config.train.max_policy_lag})"
                )

    def _install_old(self, version: int) -> None:
        for name, value in self.history[version].items():
            self._old[name].data = value

    def _warm_up(self) -> None:
        steps = self.config.learner.optimizer.warmup_steps
        factor = min(1.0, (self.updates + 1) / steps) if steps else 1.0
        for group in self.engine.optimizer.param_groups:
            group["lr"] = self.config.learner.optimizer.lr * factor

    def _lr(self) -> float:
        return float(self.engine.optimizer.param_groups[0]["lr"])

    @torch.no_grad()
    def _update_ema(self) -> None:
        decay = ema_decay(self.config.learner.ema_decay, self.updates)
        for name, parameter in self._theta.items():
            self.ema[name].lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def _next_version(self) -> None:
        eta = self.objective.old_decay(self.updates)
        newest = self.history[self.version]
        self.version += 1
        self.history[self.version] = {
            name: torch.lerp(parameter.detach(), newest[name], eta) for name, parameter in self._theta.items()
        }
        self.history.pop(self.version - self.config.train.max_policy_lag - 1, None)

    def snapshot(self) -> LoraSnapshot:
        """The newest behaviour adapter; its arrays alias tensors that are never written again."""
        return take_snapshot(self.history[self.version], self.version)

    def ema_snapshot(self) -> LoraSnapshot:
        """A copy of the EMA, what evaluation and export use."""
        return take_snapshot({name: value.clone() for name, value in self.ema.items()}, self.version)

    def save(self, folder: Path) -> None:
        """Write everything that training needs to go on; called on every rank."""
        checkpoint.save(self, folder)

    def load(self, folder: Path) -> None:
        """Continue from `save`; called on every rank."""
        checkpoint.load(self, folder)
        self._install_old(self.version)


def _means(losses: list[dict[Key, float]]) -> dict[Key, float]:
    """Mean of every term over the micro-batches that have it."""
    values = {key: [loss[key] for loss in losses if key in loss] for key in dict.fromkeys(k for x in losses for k in x)}
    return {key: sum(found) / len(found) for key, found in values.items()}

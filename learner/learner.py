"""The learner: one rank's view of the `policy` adapter, the published adapters and the EMA.

    items -> micro-batches -> loss -> DeepSpeed step  (updates_per_batch times)
          -> theta_old <- eta theta_old + (1 - eta) theta          = the next published version
          -> EMA for evaluation and export

A plain class; `actors/roles.py` wraps it in a Ray actor. Every rank holds the same adapters, so any rank can publish;
rank 0 does.
"""

import time
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from learner.ema import Ema
from learner.engine import build_engine
from learner.finite import FiniteGuard, NotFinite
from learner.generators import generator_states, restore_generators
from learner.moments import Moments, gather_moments, install_moments
from learner.report import TrainReport
from learner.state import Arrays, LearnerState, StateFiles, rng_file
from rl.config.training import TrainingSection
from rl.errors import InputError
from rl.metrics import Key
from rl.objectives import build_objective
from rl.objectives.base import Loss, MicroBatch
from rl.policies import load_policy
from rl.policies.lora import OLD, POLICY, Adapters, load_into, take_snapshot
from rl.types import LoraSnapshot, TrainItem

Adapter = dict[str, Tensor]


class Learner:
    """One rank. RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT must be set before construction."""

    def __init__(self, config: TrainingSection) -> None:
        torch.set_num_threads(config.learner.threads)
        torch.manual_seed(config.seed)
        self.config = config
        self.policy = load_policy(config.policy)
        anchored = config.objective.anchor_needed is not None
        self.adapters = Adapters(self.policy, *((POLICY, OLD) if anchored else (POLICY,)))
        self.theta = self.adapters.parameters(POLICY)
        self._old = self.adapters.parameters(OLD) if anchored else {}
        for parameter in self._old.values():
            parameter.requires_grad_(False)
        self.objective = build_objective(self.policy, self.adapters, config)
        self.engine = build_engine(self.objective, list(self.theta.values()), config)
        self.version = 0
        self.updates = 0
        self.history: dict[int, Adapter] = {0: {name: value.detach().clone() for name, value in self.theta.items()}}
        """The published adapters still in use; their tensors are never modified again."""
        self.ema = Ema(self.theta, config.learner.ema_decay)
        self._finite = FiniteGuard(self.theta.values())
        self._grad_norm = 0.0

    def train(self, items: Sequence[TrainItem]) -> TrainReport:
        """Train on this rank's share of a batch, then create the next version."""
        started = time.perf_counter()
        self._refuse_stale(items)
        batches = self.objective.micro_batches(items, self.version)
        losses: list[Loss] = []
        norms = []
        for _ in range(self.config.learner.updates_per_batch):
            self._warm_up()
            losses += self._accumulate(batches)
            norms.append(self._grad_norm)
            self.updates += 1
            self.ema.update(self.theta, self.updates)
        if next(batches, None) is not None:
            raise ValueError(
                f"version {self.version}: a batch of {len(items)} groups has more micro-batches than the recipe's "
                f"{self.config.micro_batches_per_update} x {self.config.learner.updates_per_batch}"
            )
        self._next_version()
        units = self.config.slots * len(items)
        return TrainReport(
            version=self.version,
            updates=self.updates,
            losses=_sums(losses, units),
            maxima=_maxima(losses),
            grad_norm=sum(norms) / len(norms),
            lr=self._lr(),
            train_s=time.perf_counter() - started,
        )

    def _accumulate(self, batches: Iterator[MicroBatch]) -> Iterator[Loss]:
        """One optimiser step over the next micro-batches; yields their losses without the graph."""
        for _ in range(self.config.micro_batches_per_update):
            batch = next(batches)
            self._install_anchor(batch.policy_version)
            loss: Loss = self.engine(batch)
            # DeepSpeed divides by the number of micro-batches, but parts_per_group of them make one group
            self.engine.backward(loss.total * self.config.parts_per_group)
            detached = Loss(loss.total.detach(), loss.terms, loss.maxima)
            self._finite.saw(batch.ordinal, detached.total)
            last = self.engine.is_gradient_accumulation_boundary()
            ordinals = self._finite.check() if last else ()
            if last and self.config.learner.zero_stage == 0:
                self._grad_norm = self._norm_before_step()
            self.engine.step()
            if last and not self.engine.was_step_applied():
                # DeepSpeed skips a step if a reduced gradient is not finite, and only logs it
                raise NotFinite(ordinals, "the gradient over all ranks is not finite")
            if last and self.config.learner.zero_stage > 0:
                self._grad_norm = float(self.engine.get_global_grad_norm())
            yield detached

    def _norm_before_step(self) -> float:
        """L2 norm before clipping; DeepSpeed records it only under ZeRO, where gradients are sharded."""
        gradients = [p.grad for p in self.theta.values() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0

    def _refuse_stale(self, items: Sequence[TrainItem]) -> None:
        lag = self.config.max_policy_lag
        for item in items:
            version = item.group.policy_version
            if lag is not None and not self.version - lag <= version <= self.version:
                raise ValueError(
                    f"group {item.task.ordinal} was sampled with version {version}, the learner's is {self.version} "
                    f"(max_policy_lag {lag})"
                )

    def _install_anchor(self, sampled_with: int) -> None:
        """Set the `old` adapter to the version that the loss is anchored to."""
        if self._old:
            version = sampled_with if self.config.objective.anchor_needed == "behaviour" else self.version
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
    def _next_version(self) -> None:
        eta = self.objective.old_decay(self.updates)
        newest = self.history[self.version]
        self.version += 1
        self.history[self.version] = {
            name: torch.lerp(parameter.detach(), newest[name], eta) for name, parameter in self.theta.items()
        }
        kept = (self.config.max_policy_lag or 0) if self.config.objective.anchor_needed == "behaviour" else 0
        for version in [v for v in self.history if v < self.version - kept]:
            del self.history[version]

    def reference_digest(self) -> str | None:
        """Digest of the reference adapter; None where the reference is the base."""
        return self.adapters.reference_digest()

    def snapshot(self) -> LoraSnapshot:
        """The newest published adapter; its arrays alias tensors that are never modified again."""
        return take_snapshot(self.history[self.version], self.version)

    def ema_snapshot(self) -> LoraSnapshot:
        """A copy of the EMA, for evaluation and export."""
        return take_snapshot({name: value.clone() for name, value in self.ema.tensors.items()}, self.version)

    def save(self) -> StateFiles:
        """Everything needed to resume, on any number of ranks; called on every rank. Rank 0 gives what they share,
        every rank its generators."""
        moments = gather_moments(self.engine.optimizer, self.theta)
        rank = self.engine.global_rank
        files = {rng_file(rank): generator_states()}
        if rank == 0:
            files |= LearnerState(
                version=self.version,
                updates=self.updates,
                reference_digest=self.reference_digest(),
                adapter=_arrays(self.theta),
                exp_avg=_arrays(moments.exp_avg),
                exp_avg_sq=_arrays(moments.exp_avg_sq),
                steps=moments.steps,
                ema=_arrays(self.ema.tensors),
                published={version: _arrays(adapter) for version, adapter in self.history.items()},
            ).files()
        return StateFiles.of(files)

    def load(self, files: StateFiles) -> None:
        """Resume from what all ranks saved together; called on every rank.

        Raises:
            InputError: the reference adapter differs from the run's.
            ValueError: an adapter of other names or shapes.
        """
        state = LearnerState.from_files(files.verified())
        if state.reference_digest != self.reference_digest():
            raise InputError(
                f"this run compares with the reference {state.reference_digest}, policy.reference is now "
                f"{self.reference_digest()}; give the adapter file that the run began with"
            )
        load_into(self.theta, self._tensors(state.adapter), source="the checkpoint")
        exp_avg, exp_avg_sq = self._tensors(state.exp_avg), self._tensors(state.exp_avg_sq)
        install_moments(self.engine.optimizer, self.theta, Moments(exp_avg, exp_avg_sq, dict(state.steps)))
        self.version, self.updates = state.version, state.updates
        self.history = {version: self._tensors(adapter) for version, adapter in state.published.items()}
        self.ema.tensors = self._tensors(state.ema)
        saved_ranks = sum(name.startswith("rng-") for name in files.contents)
        restore_generators(files.contents[rng_file(self.engine.global_rank % saved_ranks)].tobytes())

    def _tensors(self, arrays: Arrays) -> Adapter:
        """Copies on the device of the adapter; arrays from Ray are read-only."""
        device = next(iter(self.theta.values())).device
        return {name: torch.tensor(array, device=device) for name, array in arrays.items()}


def _arrays(tensors: Mapping[str, Tensor]) -> Arrays:
    return {name: value.detach().cpu().numpy() for name, value in tensors.items()}


def _sums(losses: Sequence[Loss], units: int) -> dict[Key, float]:
    """The sum of all contributions, divided by the number of groups times slots."""
    totals: dict[Key, float] = {}
    for loss in losses:
        for key, term in {Key.LOSS_TOTAL: loss.total, **loss.terms}.items():
            totals[key] = totals.get(key, 0.0) + float(term)
    return {key: total / units for key, total in totals.items()}


def _maxima(losses: Sequence[Loss]) -> dict[Key, float]:
    found: dict[Key, Tensor] = {}
    for loss in losses:
        for key, term in loss.maxima.items():
            found[key] = torch.maximum(found[key], term) if key in found else term
    return {key: float(term) for key, term in found.items()}

"""Samples groups with the behaviour adapter, and only after echoing its digest."""

import time

import numpy as np
import torch

from rl.config.online import RunConfig
from rl.config.rollout import SamplerSection
from rl.flow.cells import Cells
from rl.flow.trajectory import join_trajectories
from rl.identity import Identity
from rl.policies import load_policy
from rl.policies.base import Condition, member_noise, to_uint8
from rl.policies.lora import OLD, Adapters, SnapshotRefused, install_snapshot, installed_digest
from rl.types import Echo, LoraSnapshot, RolloutGroup, RolloutReceipt, SRTask, TrajectoryRecord

PROBE_SIDE = 4
"""Side, in latent cells, of the canary images."""


class CanaryError(RuntimeError):
    """Something that should change the output does not."""


class RolloutWorker:
    """One policy with one adapter, the behaviour adapter.

    Raises:
        CanaryError: another LR image does not change the output.
    """

    def __init__(self, config: RunConfig) -> None:
        torch.set_num_threads(config.rollout.threads)
        self.config = config
        self._cells = Cells.of(config.advantage)
        self.policy = load_policy(config.policy)
        for module in self.policy.modules.values():
            module.eval()
        self.adapters = Adapters(self.policy, OLD)
        self._adapter = self.adapters.parameters(OLD)
        for parameter in self._adapter.values():
            parameter.requires_grad_(False)
        self._installed: Echo | None = None
        self._probe = self._probe_condition(0)
        self._refuse_a_deaf_policy()

    def _probe_condition(self, which: int) -> Condition:
        """One of two fixed images, a ramp and its negative."""
        side = PROBE_SIDE * self.policy.section.size_multiple
        ramp = np.linspace(0, 255, 3 * side * side).reshape(3, side, side).astype(np.uint8)
        condition: Condition = self.policy.condition(255 - ramp if which else ramp, 1)
        return condition

    @torch.no_grad()
    def _refuse_a_deaf_policy(self) -> None:
        noise = self._noise(self._probe, (0,))
        one, other = (
            self._sampled(self.config.eval_sampler, c, noise) for c in (self._probe, self._probe_condition(1))
        )
        if torch.equal(one, other):
            raise CanaryError(
                f"policy '{self.config.policy.type}': another LR image does not change the output; the condition does "
                "not reach the model"
            )

    @property
    def adapter_size(self) -> int:
        """Values of the adapter."""
        return sum(parameter.numel() for parameter in self._adapter.values())

    def install(self, snapshot: LoraSnapshot, *, probe: bool = False) -> Echo:
        """Load a snapshot, recompute the digest from the loaded tensors, and echo version and digest. A mismatch raises
        SnapshotRefused and leaves the worker without an adapter.

        `probe`: measure the adapter's effect on one prediction.
        """
        self._installed = None
        started = time.perf_counter()
        install_snapshot(self._adapter, snapshot)
        loaded = time.perf_counter()
        digest = installed_digest(self._adapter)
        verified = time.perf_counter()
        if digest != snapshot.digest:
            raise SnapshotRefused(
                f"snapshot {snapshot.version}: claims digest {snapshot.digest}, its tensors have {digest}; "
                "push it again"
            )
        effect = self._effect() if probe else None
        modules = self.adapters.bound(OLD)
        self._installed = Echo(snapshot.version, digest, loaded - started, verified - loaded, modules, effect)
        return self._installed

    @torch.no_grad()
    def _effect(self) -> float:
        noise = self._noise(self._probe, (0,))
        with self.adapters.using(None):
            base = self.policy.probe(self._probe, noise)
        return float((self.policy.probe(self._probe, noise) - base).double().abs().mean())

    @torch.no_grad()
    def rollout(
        self, task: SRTask, seeds: tuple[int, ...], *, training: bool = True
    ) -> tuple[RolloutReceipt, RolloutGroup]:
        """Sample one candidate per seed: make the condition once, denoise in one batch (or micro-batches), decode.

        `training`: use the run's sampler and, where the objective requires it, the reference or a recorded trajectory.
        Otherwise use the evaluation's sampler and the installed adapter.
        """
        if self._installed is None:
            raise SnapshotRefused("this worker holds no verified adapter; push one before sampling")
        started = time.perf_counter()
        condition: Condition = self.policy.condition_of(task)
        size = self.config.rollout.micro_batch or len(seeds)
        parts = [slice(i, i + size) for i in range(0, len(seeds), size)]
        if training:
            latents, trajectory = self._training_group(task, condition, seeds, parts)
        else:
            drawn = (self._noise(condition, seeds[part]) for part in parts)
            latents = [self._sampled(self.config.eval_sampler, condition, noise) for noise in drawn]
            trajectory = None
        images = np.concatenate([to_uint8(self.policy.decode(x)).cpu().numpy() for x in latents])
        x0 = torch.cat(latents).cpu().numpy()
        version, digest = self._installed.version, self._installed.digest
        group = RolloutGroup(task.ordinal, task.lr_id, version, digest, seeds, x0, images, trajectory)
        seconds = time.perf_counter() - started
        return RolloutReceipt(task.ordinal, version, digest, len(seeds), seconds), group

    def _training_group(
        self, task: SRTask, condition: Condition, seeds: tuple[int, ...], parts: list[slice]
    ) -> tuple[list[torch.Tensor], TrajectoryRecord | None]:
        sampler, objective = self.config.sampler, self.config.objective
        noises = [self._noise(condition, (seeds[:1] * len(seeds) if sampler.shared_noise else seeds)[p]) for p in parts]
        if objective.likelihood:
            run = (task.seed, Identity.of(task.ordinal, self.config.train.groups_per_step).step)
            drawn = [
                self.policy.trajectory(
                    noise, condition, sampler, seeds[part], run, keep_mean=objective.keeps_mean, cells=self._cells
                )
                for noise, part in zip(noises, parts, strict=True)
            ]
            return [x for x, _ in drawn], join_trajectories([record for _, record in drawn])
        levels = sampler.member_levels(len(seeds))
        with self.adapters.using(self.adapters.reference if objective.from_reference else OLD):
            return [
                self.policy.sample(noise, [condition], sampler, None if levels is None else levels[part])
                for noise, part in zip(noises, parts, strict=True)
            ], None

    def _sampled(self, sampler: SamplerSection, condition: Condition, noise: torch.Tensor) -> torch.Tensor:
        return self.policy.sample(noise, [condition], sampler)

    def _noise(self, condition: Condition, seeds: tuple[int, ...]) -> torch.Tensor:
        return member_noise(seeds, self.policy.latent_shape(condition), self.policy.device)

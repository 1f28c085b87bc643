"""Samples groups with the behaviour adapter, and only with one whose digest it has echoed."""

import time

import numpy as np
import torch

from rl.config.objective import GRPOConfig, SampledWith
from rl.config.run import RunConfig
from rl.policies import load_policy
from rl.policies.base import Condition, FlowPolicy, OneStepPolicy, member_noise, to_uint8
from rl.policies.lora import (
    OLD,
    SnapshotRefused,
    adapter_parameters,
    add_adapters,
    install_snapshot,
    installed_digest,
    using,
)  # fmt: skip
from rl.sampling import draw, draw_one_step_trajectory, draw_trajectory, join_trajectories, one_call, step_window
from rl.types import Echo, LoraSnapshot, RolloutGroup, RolloutReceipt, SRTask, TrajectoryRecord

CANARY_SIDE = 4


class RolloutWorker:
    """One policy with one adapter, the behaviour adapter."""

    def __init__(self, config: RunConfig) -> None:
        torch.set_num_threads(config.rollout.threads)
        self.config = config.rollout
        self.policy = load_policy(config.policy)
        self.policy.backbone.eval()
        add_adapters(self.policy.backbone, config.policy.lora, (OLD,))
        self._adapter = adapter_parameters(self.policy.backbone, OLD)
        # torch multiplies matrices in another order where no gradient is needed: the likelihoods of a forced one-step
        # trajectory are computed as the learner computes them, else fresh ratios differ from 1 in the last bit
        like_the_learner = config.rollout.sampler.sde.one_step_std is not None
        for parameter in self._adapter.values():
            parameter.requires_grad_(like_the_learner)
        self._groups_per_step = config.train.groups_per_step
        self._keep_mean = isinstance(config.objective, GRPOConfig) and config.objective.guard
        self._installed: Echo | None = None
        self._canary_condition = self._make_canary_condition()

    def _make_canary_condition(self) -> Condition:
        side = CANARY_SIDE * self.policy.size_multiple
        ramp = np.linspace(0, 255, 3 * side * side).reshape(3, side, side).astype(np.uint8)
        return self.policy.encode(ramp, 1)

    @property
    def adapter_size(self) -> int:
        """Values of the adapter."""
        return sum(parameter.numel() for parameter in self._adapter.values())

    def install(self, snapshot: LoraSnapshot) -> Echo:
        """Load a snapshot, recompute the digest from what is loaded, and echo both; a mismatch is refused by name
        and leaves the worker without an adapter."""
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
        self._installed = Echo(snapshot.version, digest, loaded - started, verified - loaded)
        return self._installed

    @torch.no_grad()
    def canary(self) -> float:
        """Mean absolute answer of one call on a fixed input: changes when the adapter's effect changes."""
        x = self._noise(self._canary_condition, (0,))
        return float(one_call(self.policy, x, self._canary_condition).double().abs().mean())

    @torch.no_grad()
    def rollout(
        self, task: SRTask, seeds: tuple[int, ...], *, sampled_with: SampledWith = "policy"
    ) -> tuple[RolloutReceipt, RolloutGroup]:
        """Sample one candidate per seed: encode once, denoise as one batch (or micro-batches), decode.

        `reference`: with the adapter off. `trajectory`: with stochastic steps, whose likelihoods the group carries.
        """
        if self._installed is None:
            raise SnapshotRefused("this worker holds no verified adapter; push one before sampling")
        started = time.perf_counter()
        condition = self.policy.encode(task.lr, task.scale, task.prompt)
        size = self.config.micro_batch or len(seeds)
        parts = [seeds[i : i + size] for i in range(0, len(seeds), size)]
        trajectory = None
        if sampled_with == "trajectory":
            drawn = [self._trajectory(task, condition, part) for part in parts]
            latents = [x for x, _ in drawn]
            trajectory = join_trajectories([record for _, record in drawn])
        else:
            with using(self.policy.backbone, None if sampled_with == "reference" else OLD):
                latents = self._draw(condition, parts)
        images = np.concatenate([to_uint8(self.policy.decode(x)).cpu().numpy() for x in latents])
        x0 = torch.cat(latents).cpu().numpy()
        version, digest = self._installed.version, self._installed.digest
        group = RolloutGroup(task.ordinal, task.lr_id, version, digest, seeds, x0, images, trajectory)
        seconds = time.perf_counter() - started
        return RolloutReceipt(task.ordinal, version, digest, len(seeds), seconds), group

    def _draw(self, condition: Condition, parts: list[tuple[int, ...]]) -> list[torch.Tensor]:
        """Clean latents of each part of the group."""
        if self.config.vary == "noise":
            return [draw(self.policy, self._noise(condition, p), [condition], self.config.sampler) for p in parts]
        if not isinstance(self.policy, OneStepPolicy):
            raise TypeError(f"vary 't_add' needs a one-step policy, got {type(self.policy).__name__}")
        low, high = self.config.t_add_range
        levels = iter(np.linspace(low, high, sum(map(len, parts))).round().astype(int))
        shared = parts[0][0]
        return [
            self.policy.generate(
                self._noise(condition, (shared,) * len(p)), [condition], [int(next(levels)) for _ in p]
            )
            for p in parts
        ]

    def _trajectory(
        self, task: SRTask, condition: Condition, seeds: tuple[int, ...]
    ) -> tuple[torch.Tensor, TrajectoryRecord]:
        noise = self._noise(condition, seeds)
        if not isinstance(self.policy, FlowPolicy):
            std = self.config.sampler.sde.one_step_std
            if std is None:
                raise TypeError(f"a trajectory needs a multi-step flow, got {type(self.policy).__name__}")
            return draw_one_step_trajectory(self.policy, noise, condition, std, seeds, keep_mean=self._keep_mean)
        window = step_window(self.config.sampler, task.seed, task.ordinal // self._groups_per_step)
        return draw_trajectory(
            self.policy, noise, condition, self.config.sampler, window, seeds, keep_mean=self._keep_mean
        )

    def _noise(self, condition: Condition, seeds: tuple[int, ...]) -> torch.Tensor:
        device = next(iter(self._adapter.values())).device
        return member_noise(seeds, self.policy.latent_shape(condition), device)

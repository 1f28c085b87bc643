"""Samples groups with the behaviour adapter, and only with one whose digest it has echoed."""

import time

import numpy as np
import torch

from rl.config.run import RunConfig
from rl.policies import load_policy
from rl.policies.base import Condition, member_noise, to_uint8
from rl.policies.lora import OLD, SnapshotRefused, adapter_parameters, add_adapters, install_snapshot, installed_digest
from rl.sampling import draw, one_call
from rl.types import Echo, LoraSnapshot, RolloutGroup, RolloutReceipt, SRTask

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
        for parameter in self._adapter.values():
            parameter.requires_grad_(False)
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
    def rollout(self, task: SRTask, seeds: tuple[int, ...]) -> tuple[RolloutReceipt, RolloutGroup]:
        """Sample one candidate per seed: encode once, denoise as one batch (or micro-batches), decode."""
        if self._installed is None:
            raise SnapshotRefused("this worker holds no verified adapter; push one before sampling")
        started = time.perf_counter()
        condition = self.policy.encode(task.lr, task.scale)
        size = self.config.micro_batch or len(seeds)
        parts = [self._sample(condition, seeds[i : i + size]) for i in range(0, len(seeds), size)]
        latents, images = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        version, digest = self._installed.version, self._installed.digest
        group = RolloutGroup(task.ordinal, task.lr_id, version, digest, seeds, latents, images)
        seconds = time.perf_counter() - started
        return RolloutReceipt(task.ordinal, version, digest, len(seeds), seconds), group

    def _sample(self, condition: Condition, seeds: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        latents = draw(self.policy, self._noise(condition, seeds), [condition], self.config.sampler)
        return latents.cpu().numpy(), to_uint8(self.policy.decode(latents)).cpu().numpy()

    def _noise(self, condition: Condition, seeds: tuple[int, ...]) -> torch.Tensor:
        device = next(iter(self._adapter.values())).device
        return member_noise(seeds, self.policy.latent_shape(condition), device)

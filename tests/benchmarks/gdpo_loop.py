"""GDPO-SR's objectives on one thread of control: the worker, reward servers, advantages and objective of a run, without
Ray or DeepSpeed (their equality is a test). The `bench_gdpo_*.py` train and judge with it."""

from collections.abc import Sequence

import numpy as np
import torch
from bare_loop import BareLoop, StepTimes
from rl.perceptual import Lpips

from rl.config.policy import PolicyConfig
from rl.config.run import RunConfig
from rl.policies import load_policy
from rl.policies.base import OneStepPolicy, from_uint8, member_noise, to_uint8
from rl.policies.lora import OLD, adapter_parameters, add_adapters, take_snapshot, using
from rl.rollout import RolloutWorker
from rl.seeding import derive_seed
from rl.types import F64, U8, RolloutGroup, SRTask

Adapter = dict[str, torch.Tensor]


class GDPOLoop(BareLoop):
    """The bare loop, sampled by a `RolloutWorker`: groups of the reference, by t_add, or with a trajectory."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.worker = RolloutWorker(config)
        self.version = 0
        self._install()

    def _install(self) -> None:
        self.worker.install(take_snapshot({n: p.detach().clone() for n, p in self.old.items()}, self.version))

    def rollout(self, task: SRTask, seeds: tuple[int, ...], adapter: str = OLD) -> RolloutGroup:
        return self.worker.rollout(task, seeds, sampled_with=self.config.objective.sampled_with)[1]

    def run(self) -> F64:
        """All steps; mean reward per step `[steps, R]`. The EMA is the result."""
        means = []
        for index in range(self.config.train.steps):
            means.append(self.step(index)[1].mean((0, 1)))
        return np.array(means)

    def step_on(self, tasks: list[SRTask]) -> tuple[StepTimes, F64]:
        answer = super().step_on(tasks)
        self.version += 1
        if self.config.objective.sampled_with != "reference":
            self._install()
        return answer


class Judge:
    """Scores of an adapter on given crops: metrics of the reward, and metrics outside it."""

    def __init__(self, config: RunConfig, lpips: Lpips, servers: Sequence[object]) -> None:
        self.names = (*(server.config.name for server in servers), "lpips")  # type: ignore[attr-defined]
        self._servers, self._lpips = servers, lpips
        self.policy_config, self._lora = config.policy, config.policy.lora

    @torch.no_grad()
    def scores(self, tasks: Sequence[SRTask], adapter: Adapter | None, draws: int, **changes: int) -> F64:
        """`[crops, draws, metrics]`, higher is better but for lpips; `changes` go to the policy (t_add)."""
        policy = load_policy(PolicyConfig.model_validate({**self.policy_config.model_dump(), **changes}))
        assert isinstance(policy, OneStepPolicy)
        policy.backbone.eval()
        add_adapters(policy.backbone, self._lora, (OLD,))
        if adapter is not None:
            for name, parameter in adapter_parameters(policy.backbone, OLD).items():
                parameter.copy_(adapter[name])
        table = []
        with using(policy.backbone, OLD if adapter is not None else None):
            for task in tasks:
                images = self.draw(policy, task, draws)
                group = RolloutGroup(task.ordinal, task.lr_id, 0, "", (0,) * draws, np.zeros(0, np.float32), images)
                columns = [server.score([task], [group])[0].scores for server in self._servers]  # type: ignore[attr-defined]
                y = from_uint8(torch.from_numpy(images))
                hr = from_uint8(torch.tensor(task.hr))[None].expand_as(y)
                table.append(np.stack([*columns, self._lpips(y, hr).double().numpy()], axis=1))
        return np.stack(table)

    @staticmethod
    def draw(policy: OneStepPolicy, task: SRTask, draws: int) -> U8:
        """`[draws, 3, H, W]`; the noise depends on the task and on the draw's index alone."""
        condition = policy.encode(task.lr, task.scale, task.prompt)
        seeds = [derive_seed("judge", task.lr_id, k) for k in range(draws)]
        noise = member_noise(seeds, policy.latent_shape(condition), torch.device("cpu"))
        parts = [policy.decode(policy.generate(part, [condition])) for part in noise.split(6)]
        return to_uint8(torch.cat(parts)).numpy()

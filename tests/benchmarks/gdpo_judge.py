"""What the `bench_gdpo_*.py` judge an adapter by: metrics of the reward and metrics outside it, on given crops."""

from collections.abc import Sequence

import numpy as np
import torch

from rewards.server import RewardServer
from rl.config.online import RunConfig
from rl.config.policy import policy_section
from rl.config.rollout import OneStepSection
from rl.objectives.lpips import Lpips
from rl.policies import load_policy
from rl.policies.base import Policy, from_uint8, member_noise, to_uint8
from rl.policies.lora import OLD, Adapters
from rl.seeding import derive_seed
from rl.types import F64, U8, RolloutGroup, SRTask

Adapter = dict[str, torch.Tensor]


class Judge:
    """Scores of an adapter on crops of a one-step policy."""

    def __init__(self, config: RunConfig, lpips: Lpips, servers: Sequence[RewardServer]) -> None:
        self.names = (*(server.config.name for server in servers), "lpips")
        self._servers, self._lpips = servers, lpips
        self._policy = config.policy.model_dump()

    def policy(self, **changes: int) -> Policy:
        """The judged policy without an adapter; `changes` are keys of its section (t_add)."""
        return load_policy(policy_section(**{**self._policy, **changes}))

    @torch.no_grad()
    def scores(self, tasks: Sequence[SRTask], adapter: Adapter | None, draws: int, **changes: int) -> F64:
        """`[crops, draws, metrics]`, higher is better but for lpips; `changes` go to the policy (t_add)."""
        policy = self.policy(**changes)
        for module in policy.modules.values():
            module.eval()
        if adapter is not None:
            for name, parameter in Adapters(policy, OLD).parameters(OLD).items():
                parameter.copy_(adapter[name])
        table = []
        for task in tasks:
            images = self.draw(policy, task, draws)
            group = RolloutGroup(task.ordinal, task.lr_id, 0, "", (0,) * draws, np.zeros(0, np.float32), images)
            columns = [server.score([task], [group])[0].scores for server in self._servers]
            y = from_uint8(torch.from_numpy(images))
            hr = from_uint8(torch.tensor(task.hr))[None].expand_as(y)
            table.append(np.stack([*columns, self._lpips(y, hr).double().numpy()], axis=1))
        return np.stack(table)

    @staticmethod
    def draw(policy: Policy, task: SRTask, draws: int) -> U8:
        """`[draws, 3, H, W]`; the noise depends on the task and on the draw's index alone."""
        condition = policy.condition(task.lr, task.scale, task.prompt)
        seeds = [derive_seed("judge", task.lr_id, k) for k in range(draws)]
        noise = member_noise(seeds, policy.latent_shape(condition), torch.device("cpu"))
        batches = [noise[i : i + 6] for i in range(0, draws, 6)]
        parts = [policy.decode(policy.sample(batch, [condition], OneStepSection())) for batch in batches]
        images: U8 = to_uint8(torch.cat(parts)).numpy()
        return images

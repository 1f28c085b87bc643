"""`isrl plan`: what a recipe would start, and the numbers that follow from it. No torch, no process."""

from pathlib import Path

from rl.config.policy import LORA_TARGETS
from rl.config.run import RunConfig
from rl.policies.folders import policy_folder


def plan_text(config: RunConfig) -> str:
    """Processes, one step's work, and what is still missing on this machine."""
    sections = (_processes(config), _step(config), _policy(config))
    return "\n\n".join("\n".join(lines) for lines in sections)


def _processes(config: RunConfig) -> list[str]:
    rollout, learner = config.rollout, config.learner
    lines = [
        "processes",
        f"  rollout workers  {rollout.workers} x {rollout.cpus_per_worker:g} CPU, {rollout.gpus_per_worker:g} GPU",
        f"  learner ranks    {learner.ranks} x {learner.cpus_per_rank:g} CPU, {learner.gpus_per_rank:g} GPU, "
        f"ZeRO stage {learner.zero_stage}",
    ]
    for reward in config.rewards:
        lines.append(
            f"  reward {reward.name:<10}{reward.replicas} x {reward.cpus:g} CPU, {reward.gpus:g} GPU, "
            f"{reward.type}, weight {reward.weight:g}"
        )
    return lines


def _step(config: RunConfig) -> list[str]:
    groups, size = config.train.groups_per_step, config.rollout.group_size
    lag = config.train.max_policy_lag
    mode = "sync: sampling waits for the newest adapter" if lag == 0 else f"async: groups up to {lag} version(s) old"
    sampler = config.rollout.sampler
    forwards = 2 + (config.objective.kl_weight > 0)
    return [
        f"one of {config.train.steps} steps ({mode})",
        f"  sample           {groups} groups x {size} images of {config.data.crop} px, {sampler.steps} {sampler.solver} "
        "steps each",
        f"  score            {groups * size} images x {len(config.rewards)} rewards, {config.advantage.aggregation} "
        "advantages over the whole batch",
        f"  train            {config.timesteps_per_member} of {sampler.steps} timesteps a member, {forwards} forwards "
        f"each, {config.learner.updates_per_batch} optimiser step(s) of {config.micro_batches_per_update} micro-batches",
        f"  whole run        {config.train.steps * groups * size} images",
    ]


def _policy(config: RunConfig) -> list[str]:
    policy, lora = config.policy, config.policy.lora
    try:
        where = f"found in {policy_folder(policy)}"
    except FileNotFoundError as error:
        where = f"MISSING here: {error}"
    lines = [
        f"policy {policy.type} '{policy.path}', {policy.dtype} on {policy.device}",
        f"  weights          {where}",
        f"  adapter          rank {lora.rank}, alpha {lora.alpha:g}, {len(LORA_TARGETS[lora.targets])} kinds of layers "
        f"({lora.targets})",
    ]
    missing = [path for path in config.data.path if not path.startswith("skimage:") and not Path(path).exists()]
    return lines + [f"  data             MISSING here: {path}" for path in missing]

"""`isrl plan`: what a recipe would start, and the numbers that follow from it. No torch, no process."""

from pathlib import Path

from rl.policies.folders import policy_folder

from rl.config.base import SKIMAGE
from rl.config.objective import NFTConfig
from rl.config.policy import LORA_TARGETS
from rl.config.run import ONE_STEP_POLICIES, RunConfig

Row = tuple[str, str]


def plan_text(config: RunConfig) -> str:
    """Processes, one step's work, and what is still missing on this machine."""
    policy, lag = config.policy, config.train.max_policy_lag
    mode = "sync: sampling waits for the newest adapter" if lag == 0 else f"async: groups up to {lag} version(s) old"
    sections = {
        "processes": _processes(config),
        f"one of {config.train.steps} steps ({mode})": _step(config),
        f"policy {policy.type} '{policy.path}', {policy.dtype} on {policy.device}": _policy(config),
    }
    width = max(len(label) for rows in sections.values() for label, _ in rows)
    return "\n\n".join(
        "\n".join([title, *(f"  {label:<{width}}  {text}" for label, text in rows)]) for title, rows in sections.items()
    )


def _processes(config: RunConfig) -> list[Row]:
    rollout, learner = config.rollout, config.learner
    ranks = f"{learner.ranks} x {_place(learner.cpus_per_rank, learner.gpus_per_rank)}"
    return [
        ("rollout workers", f"{rollout.workers} x {_place(rollout.cpus_per_worker, rollout.gpus_per_worker)}"),
        ("learner ranks", f"{ranks}, ZeRO stage {learner.zero_stage}"),
        *(
            (f"reward {r.name}", f"{r.replicas} x {_place(r.cpus, r.gpus)}, {r.type}, weight {r.weight:g}")
            for r in config.rewards
        ),
        *(
            (f"tagger of {where}", f"{t.replicas} x {_place(t.cpus, t.gpus)}, {t.type} on the {t.image.upper()}")
            for where, t in config.taggers.items()
        ),
    ]


def _place(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU, {gpus:g} GPU"


def _step(config: RunConfig) -> list[Row]:
    groups, size = config.train.groups_per_step, config.rollout.group_size
    sampler, updates = config.rollout.sampler, config.learner.updates_per_batch
    steps = f"{sampler.steps} {sampler.solver} steps each"
    if config.policy.type in ONE_STEP_POLICIES:
        steps = "one step each" if config.rollout.vary == "noise" else "one step each, members by t_add"
    return [
        (
            "sample",
            f"{groups} groups x {size} images of {config.data.crop} px, {steps}",
        ),
        (
            "score",
            f"{groups * size} images x {len(config.rewards)} rewards, {config.advantage.aggregation} advantages over "
            "the whole batch",
        ),
        (
            "train",
            f"{config.objective.type}: {config.micro_batches_per_group} micro-batch(es) a group, {_forwards(config)} "
            f"forwards each, {updates} optimiser step(s) of {config.micro_batches_per_update} micro-batches",
        ),
        ("whole run", f"{config.train.steps * groups * size} images"),
    ]


def _forwards(config: RunConfig) -> int:
    """Of the backbone: policy, behaviour and maybe reference for NFT; policy and reference for preferences."""
    objective = config.objective
    return 2 + (isinstance(objective, NFTConfig) and objective.kl_weight > 0)


def _policy(config: RunConfig) -> list[Row]:
    lora = config.policy.lora
    try:
        where = f"found in {policy_folder(config.policy)}"
    except FileNotFoundError as error:
        where = f"MISSING here: {error}"
    kinds = len(LORA_TARGETS[lora.targets])
    missing = [path for path in config.data.path if not path.startswith(SKIMAGE) and not Path(path).exists()]
    return [
        ("weights", where),
        ("adapter", f"rank {lora.rank}, alpha {lora.alpha:g}, {kinds} kinds of layers ({lora.targets})"),
        *(("data", f"MISSING here: {path}") for path in missing),
    ]

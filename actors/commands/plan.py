"""`isrl plan`: what a recipe would start, the numbers that follow from it, and what is missing here.

No torch, no processes. The needs of a policy, sampler or objective are read from its section, never from its name.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from actors.commands import Overrides, Recipe
from actors.paths import inputs, is_missing
from rewards import weights_texts
from rl.config.base import Section
from rl.config.load import load_recipe
from rl.config.offline import OfflineConfig
from rl.config.online import EvalSection, RunConfig
from rl.config.policy import PolicySection, reference_file
from rl.config.pretrain import PretrainSection
from rl.config.rollout import SamplerSection
from rl.config.training import TrainingSection
from rl.errors import MissingInput
from rl.spatial import grid
from rl.types import map_bytes

Row = tuple[str, str]
Rows = dict[str, list[Row]]
SHOWN = 3
"""How many inputs of one key are listed by name."""


def plan(recipe: Recipe, overrides: Overrides = None) -> None:
    """Check a recipe of any kind and print what it would start: processes, sizes, derived numbers, and what is missing
    here. Starts nothing."""
    typer.echo(plan_text(load_recipe(recipe, overrides or [])))


def plan_text(recipe: Section) -> str:
    """Titles with their rows of label and text in two columns; the inputs, with MISSING, come last."""
    planned = next(rows for kind, rows in PLANS.items() if isinstance(recipe, kind))
    sections: Rows = {**planned(recipe), "inputs": _inputs(recipe)}
    width = max(len(label) for rows in sections.values() for label, _ in rows)
    return "\n\n".join(
        "\n".join([title, *(f"  {label:<{width}}  {text}" for label, text in rows)])
        for title, rows in sections.items()
        if rows
    )


def _inputs(recipe: Section) -> list[Row]:
    """One row per key for inputs that exist, one row each for missing ones."""
    found: dict[str, list[str]] = {}
    missing = []
    for key, path in inputs(recipe):
        if is_missing(path):
            missing.append((key, f"MISSING here: {path}"))
        else:
            found.setdefault(key, []).append(path)
    return [*((key, _listed(paths)) for key, paths in found.items()), *missing]


def _listed(paths: list[str]) -> str:
    rest = len(paths) - SHOWN
    return ", ".join(paths) if rest < 2 else f"{', '.join(paths[:SHOWN])} and {rest} more"


def _online(config: RunConfig) -> Rows:
    policy, lag = config.policy, config.train.max_policy_lag
    mode = "sync: sampling waits for the newest adapter" if lag == 0 else f"async: groups up to {lag} version(s) old"
    return {
        "processes": _processes(config),
        f"one of {config.train.steps} steps ({mode})": _step(config),
        f"policy {policy.type} '{policy.path}', {policy.dtype} on {policy.device}": _policy(config),
    }


def _processes(config: RunConfig) -> list[Row]:
    rollout, learner = config.rollout, config.learner
    ranks = f"{learner.ranks} x {_place(learner.cpus_per_rank, learner.gpus_per_rank)}"
    found = weights_texts(config.rewards) if config.ray.address is None else {}
    weights = {reward.name: f"; {found[reward.name]}" if found.get(reward.name) else "" for reward in config.rewards}
    return [
        ("rollout workers", f"{rollout.workers} x {_place(rollout.cpus_per_worker, rollout.gpus_per_worker)}"),
        ("learner ranks", f"{ranks}, ZeRO stage {learner.zero_stage}"),
        *(
            (
                f"reward {r.name}",
                f"{r.replicas} x {_place(r.cpus, r.gpus)}, {r.type}, weight {r.weight:g}{weights[r.name]}",
            )
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
    groups, size, rewards = config.train.groups_per_step, config.rollout.group_size, len(config.rewards)
    return [
        ("sample", f"{groups} groups x {size} images of {config.data.crop} px, {_sampling(config.sampler, size)}"),
        (
            "score",
            f"{groups * size} images x {rewards} rewards, {config.advantage.aggregation} advantages over the whole "
            "batch",
        ),
        *_maps(config),
        ("train", _training(config)),
        ("whole run", f"{config.train.steps * groups * size} images"),
        *([] if config.eval is None else [("evaluate", _evaluation(config.eval, config.eval_sampler))]),
    ]


def _maps(config: RunConfig) -> list[Row]:
    """Who says where, and what a map of one group weighs."""
    if config.map_cell_px is None:
        return []
    rows, columns = grid((config.data.crop, config.data.crop), config.map_cell_px)
    local = [reward.name for reward in config.rewards if reward.map and reward.has_map is not False]
    size = map_bytes(config.group_size, rows, columns)
    cells = f"{rows} x {columns} cells of {config.map_cell_px} px"
    return [("maps", f"{cells} from {', '.join(local)}, {size} bytes per group and reward")]


def _sampling(sampler: SamplerSection, members: int) -> str:
    """A description built from what the sampler's section declares."""
    levels = sampler.member_levels(members)
    parts = ["one step each" if sampler.steps_taken == 1 else f"{sampler.steps_taken} {sampler.solver} steps each"]
    if sampler.trained_steps:
        parts.append(f"{sampler.trained_steps} of them with a likelihood")
    if levels is not None:
        parts.append(f"at noise levels {min(levels):g} to {max(levels):g}")
    if sampler.shared_noise:
        parts.append("one noise a group")
    return ", ".join(parts)


def _training(config: TrainingSection) -> str:
    """Micro-batches per group: its slots (timesteps, trained steps or noise draws) times the parts of its members."""
    objective, parts = config.objective, config.parts_per_group
    what = "pair(s)" if objective.pairs else "member(s)"
    return (
        f"{objective.type}: {config.micro_batches_per_group} micro-batch(es) a group ({config.slots} slot(s) x {parts} "
        f"part(s) of {config.micro_batch} {what}), {objective.forwards(parts)} forwards each, "
        f"{config.learner.updates_per_batch} optimiser step(s) of {config.micro_batches_per_update} micro-batches"
    )


def _evaluation(section: EvalSection, sampler: SamplerSection) -> str:
    between = f", and every {section.every} steps" if section.every else ""
    sampled = f"{section.crops} crops x {section.samples} sample(s), {_sampling(sampler, 1)}"
    return f"{sampled}, before and after the run{between}"


def _policy(config: TrainingSection) -> list[Row]:
    policy = config.policy
    kinds = len(policy.lora_targets[policy.lora.targets])
    adapter = f"rank {policy.lora.rank}, alpha {policy.lora.alpha:g}, {kinds} kinds of layers ({policy.lora.targets})"
    rows = [("weights", _weights(policy)), ("adapter", adapter)]
    if config.objective.reference_needed:
        rows.append(("reference", _reference(policy)))
    return rows


def _weights(policy: PolicySection) -> str:
    try:
        folder = policy.folder()
    except MissingInput as error:
        return f"MISSING here: {error}"
    # a file that the policy's own check finds missing is listed under inputs; contradicting files are refused
    with suppress(MissingInput):
        policy.check()
    return f"found in {folder}"


def _reference(policy: PolicySection) -> str:
    file = reference_file(policy)
    if file is None:
        return "the base, with adapters off"
    return file if Path(file).expanduser().exists() else f"MISSING here: {file}"


def _pretrain(config: PretrainSection) -> Rows:
    return {f"pretraining of {config.type} into {config.out}, one process, {config.device}": config.stages()}


def _offline(config: OfflineConfig) -> Rows:
    pools, learner = config.pools, config.learner
    ranks = f"{learner.ranks} x {_place(learner.cpus_per_rank, learner.gpus_per_rank)}"
    batch = f"{config.train.groups_per_step} groups of {pools.group_size} from {len(pools.path)} pool(s)"
    scores = ", ".join(f"{score.name} x {score.weight:g}" for score in config.scores)
    return {
        "processes": [("learner ranks", f"{ranks}, ZeRO stage {learner.zero_stage}")],
        f"one of {config.train.steps} steps": [
            ("read", f"{batch}, {config.advantage.aggregation} advantages of {scores}"),
            ("train", _training(config)),
        ],
        f"policy {config.policy.type} '{config.policy.path}', {config.policy.dtype} on {config.policy.device}": _policy(
            config
        ),
    }


PLANS: dict[type[Section], Callable[[Any], Rows]] = {
    RunConfig: _online,
    OfflineConfig: _offline,
    PretrainSection: _pretrain,
}
"""Kind of recipe -> its plan."""

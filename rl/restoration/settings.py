"""Settings for restoring images, from a trained adapter or a policy: the policy's section, sampler, scale, tile side.

An adapter exported by isrl carries them in its header (`recorded`); without one they come from the policy's section.
Options override either. Torch-free: mistakes are refused before any weights are read.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.config.base import Section
from rl.config.load import apply_override, validate
from rl.config.online import RunConfig
from rl.config.policy import POLICY_UNION, PolicySection
from rl.config.rollout import AnySampler, SamplerSection
from rl.config.training import TrainingSection
from rl.errors import InputError, MissingInput
from rl.policies.lora_file import LORA_FILE, read_header
from rl.policies.stored import stored_dtype

SCALE = 4
SAMPLER = "sampler."
OPTIONS = {"type": "--type", "path": "--policy", "device": "--device", "lora": "--lora"}
"""Keys of a policy's section that are options of the command."""
TRAINED_WITH = ("lora", "reference", "gradient_checkpointing")
"""Keys that only training reads."""


@dataclass(frozen=True)
class Settings:
    """How images are restored."""

    policy: PolicySection
    sampler: SamplerSection
    scale: int
    tile_px: int
    """Side of a tile in output pixels."""


@dataclass(frozen=True)
class Options:
    """The options given on the command line; None where not given."""

    lora: Path | None = None
    type: str | None = None
    policy: str | None = None
    device: str = "cpu"
    scale: int | None = None
    tile_px: int | None = None
    overrides: Sequence[str] = ()
    """`key=value` of the policy's section, `sampler.key=value` of the sampler's."""


class _Sampling(Section):
    """Makes error messages about a sampler use the keys of the command line."""

    sampler: AnySampler


def recorded(config: TrainingSection) -> dict[str, object]:
    """The `restore` part of an exported adapter's header: the settings of the run's own evaluation."""
    policy = config.policy.model_dump(mode="json", exclude={"device", *TRAINED_WITH})
    sampler = config.eval_sampler.model_dump(mode="json")
    sizes = {"scale": config.data.scale, "tile_px": config.data.crop} if isinstance(config, RunConfig) else {}
    return {"policy": policy, "sampler": sampler, **sizes}


def settings(options: Options) -> Settings:
    """The header of the adapter (or the section's facts) with the options on top.

    Raises:
        InputError: an option that the policy does not read, a base other than the adapter's, or missing weights.
    """
    header = {} if options.lora is None else _header(options.lora)
    policy = _policy(header, options)
    preset_px = policy.tile_px if policy.preset_folder() is None else policy.preset_tile_px
    return Settings(
        policy,
        _sampler(policy, header, options),
        options.scale or header.get("scale", SCALE),
        options.tile_px or header.get("tile_px", preset_px),
    )


def _header(path: Path) -> Mapping[str, Any]:
    """What `recorded` wrote; only the base for an older file, nothing for another tool's."""
    file = path / LORA_FILE if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        return {}
    facts: dict[str, Any] = json.loads(read_header(file).get("isrl", "{}"))
    if "restore" not in facts and "base" in facts:
        kind, _, path = facts["base"].partition(":")
        return {"policy": {"type": kind, "path": path}}
    recipe: dict[str, Any] = facts.get("restore", {})
    return recipe


def _policy(header: Mapping[str, Any], options: Options) -> PolicySection:
    base = header.get("policy", {})
    raw = {"type": POLICY_UNION.default, **base, "device": options.device}
    raw.update({key: value for key, value in (("type", options.type), ("path", options.policy)) if value is not None})
    if base and raw["type"] != base["type"]:
        raise _another_base(base, raw, options)
    for override in options.overrides:
        if not override.startswith(SAMPLER):
            _refuse_reserved(override)
            apply_override(raw, override)
    try:
        member = POLICY_UNION.member(raw["type"])
    except ValueError as error:
        given = "--type" if base.get("type") != raw["type"] else f"--lora {options.lora}"
        raise InputError(f"{given}: {error}") from error
    assert issubclass(member, PolicySection)
    section = validate(member, raw, f"isrl restore, policy '{raw['type']}'")
    if base and section.path != base["path"] and _names_a_preset(section, base["path"]):
        raise _another_base(base, raw, options)
    try:
        section.check()
        stored = stored_dtype(section)
    except MissingInput as error:
        raise MissingInput(f"{error}; --policy FOLDER says where the weights are") from error
    return section if "dtype" in raw else section.model_copy(update={"dtype": stored})


def _refuse_reserved(override: str) -> None:
    key = override.partition("=")[0].partition(".")[0]
    if key in OPTIONS:
        raise InputError(f"{override}: '{key}' is an option of isrl restore; write {OPTIONS[key]}")
    if key in TRAINED_WITH:
        raise InputError(f"{override}: '{key}' is read by training alone; remove it")


def _names_a_preset(section: PolicySection, path: str) -> bool:
    """Presets differ by name; a local folder may have moved, so there the tensors decide."""
    sections = (section, section.model_copy(update={"path": path}))
    return any(one.preset_folder() is not None for one in sections)


def _another_base(base: Mapping[str, Any], asked: Mapping[str, Any], options: Options) -> InputError:
    trained, wanted = (f"{raw['type']}:{raw.get('path')}" for raw in (base, asked))
    return InputError(
        f"--lora {options.lora}: trained on {trained}, asked to run on {wanted}; without --type and --policy it runs "
        "on what it was trained on"
    )


def _sampler(policy: PolicySection, header: Mapping[str, Any], options: Options) -> SamplerSection:
    raw = {"sampler": dict(header.get("sampler", {"solver": policy.solvers[0]}))}
    for override in options.overrides:
        if override.startswith(SAMPLER):
            apply_override(raw, override)
    source = f"isrl restore, policy '{policy.type}'"
    sampler = validate(_Sampling, raw, source).sampler
    if sampler.solver not in policy.solvers:
        raise InputError(
            f"{source}: sampler.solver must be one of {list(policy.solvers)}, got '{sampler.solver}'; write "
            f"sampler.solver={policy.solvers[0]}"
        )
    if sampler != sampler.deterministic:
        raise InputError(
            f"{source}: this sampler makes groups for training; write sampler.solver={sampler.deterministic.solver} "
            "without keys that vary the members"
        )
    return sampler

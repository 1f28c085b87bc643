"""What is set is read: a key that the chosen kinds do not read is refused by name, with who reads it.

`test_unread_offline.py` has the keys that a run on pools does not read.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml

from rl.config.base import ReadWith
from rl.config.load import ConfigError, load_config, load_pretrain_config, validate
from rl.config.online import RunConfig
from rl.config.open_union import OpenUnion
from rl.config.policy import policy_section
from rl.config.pretrain import PRETRAINS
from rl.errors import InputError

GDPO = ("policy.type=naosd", "objective.type=gdpo")
GRPO = ("objective.type=grpo", "rollout.sampler.solver=sde")

UNREAD: dict[str, tuple[tuple[str, ...], str]] = {
    # policies
    "flux2sr t_add": (("policy.t_add=200",), "policy.t_add: unknown key for policy type 'flux2sr'; read by naosd"),
    "flux2sr t_diff": (("policy.t_diff=9",), "policy.t_diff: unknown key for policy type 'flux2sr'; read by naosd"),
    "flux2sr merge": (("policy.merge=[x]",), "policy.merge: unknown key for policy type 'flux2sr'; read by naosd"),
    "naosd guidance": (
        (*GDPO, "policy.guidance=2"), "policy.guidance: unknown key for policy type 'naosd'; read by flux2sr",
    ),
    "naosd shift": ((*GDPO, "policy.shift=1"), "policy.shift: unknown key for policy type 'naosd'; read by flux2sr"),
    "naosd solver": (
        (*GDPO, "rollout.sampler.solver=dpm2"),
        "rollout.sampler.solver must be one of ['one_step', 'gaussian'] for policy 'naosd', got 'dpm2'",
    ),
    # samplers
    "one_step steps": (
        (*GDPO, "rollout.sampler={solver: one_step, steps: 4}"),
        "rollout.sampler.steps: unknown key for sampler solver 'one_step'; read by dpm2, euler, heun, sde",
    ),
    "one_step std": (
        (*GDPO, "rollout.sampler={solver: one_step, std: 0.1}"),
        "rollout.sampler.std: unknown key for sampler solver 'one_step'; read by gaussian",
    ),
    "gaussian t_add_range": (
        (*GDPO, "rollout.sampler={solver: gaussian, std: 0.1, t_add_range: [100, 200]}"),
        "rollout.sampler.t_add_range: unknown key for sampler solver 'gaussian'; read by one_step",
    ),
    "gaussian without a likelihood": (
        (*GDPO, "rollout.sampler={solver: gaussian, std: 0.1}"),
        "rollout.sampler.solver 'gaussian' is read only by objectives that need a likelihood, got 'gdpo'; write "
        "rollout.sampler.solver=one_step",
    ),
    "dpm2 sde": (
        ("rollout.sampler={solver: dpm2, sde: {noise_level: 0.5}}",),
        "rollout.sampler.sde: unknown key for sampler solver 'dpm2'; read by sde",
    ),
    "euler sde": (
        ("rollout.sampler={solver: euler, sde: {}}",),
        "rollout.sampler.sde: unknown key for sampler solver 'euler'; read by sde",
    ),
    "heun t_add_range": (
        ("rollout.sampler={solver: heun, t_add_range: [1, 2]}",),
        "rollout.sampler.t_add_range: unknown key for sampler solver 'heun'; read by one_step",
    ),
    "sde std": (
        (*GRPO, "rollout.sampler.std=0.1"),
        "rollout.sampler.std: unknown key for sampler solver 'sde'; read by gaussian",
    ),
    "SDESection.size": (
        (*GRPO, "rollout.sampler.sde={window: all, size: 2}"),
        "size is read only with window: random or sliding, got window: all; remove size",
    ),
    "SDESection.every": (
        (*GRPO, "rollout.sampler.sde={window: random, every: 2}"),
        "every is read only with window: sliding, got window: random; remove every",
    ),
    "SDESection.fraction": (
        (*GRPO, "rollout.sampler.sde.fraction=0.5"),
        "fraction is read only with window: fraction, got window: all; remove fraction",
    ),
    # objectives
    "nft sde": (
        ("rollout.sampler={solver: sde, sde: {noise_level: 0.5}}",),
        "rollout.sampler.solver 'sde' is read only by objectives that need a likelihood, got 'nft'; write "
        "rollout.sampler.solver=dpm2",
    ),
    "nft t_add_range": (
        ("policy.type=naosd", "objective.allow_one_step=true",
         "rollout.sampler={solver: one_step, t_add_range: [150, 350]}"),
        "rollout.sampler.t_add_range makes groups by t_add, which objective 'nft' cannot train; write "
        "objective.type=gdpo, or remove it",
    ),
    "nft omega": (("objective.omega=1",), "objective.omega: unknown key for objective type 'nft'; read by gdpo"),
    "nft allow_one_step": (
        ("objective.allow_one_step=true",),
        "objective.allow_one_step is read only with a one-step policy, got 'flux2sr'; remove it",
    ),
    "gdpo beta": (
        (*GDPO, "objective.beta=1"),
        "objective.beta: unknown key for objective type 'gdpo'; read by nft, diffusion_dpo",
    ),
    "gdpo kl_weight": (
        (*GDPO, "objective.kl_weight=1"),
        "objective.kl_weight: unknown key for objective type 'gdpo'; read by nft, grpo",
    ),
    "diffusion_dpo noise": (
        (*GDPO, "objective={type: diffusion_dpo, noise: group}"),
        "objective.noise: unknown key for objective type 'diffusion_dpo'; read by gdpo",
    ),
    "grpo anchor": ((*GRPO, "objective.anchor=newest"), "objective.anchor: unknown key for objective type 'grpo'"),
    "grpo draws": (
        (*GRPO, "objective.draws=2"),
        "objective.draws: unknown key for objective type 'grpo'; read by gdpo, diffusion_dpo",
    ),
    # advantages
    **{
        f"{section}Section.{key}": (
            (*recipe, f"advantage.{key}={value}"),
            f"{key} is read only with spatial: map, got spatial: off; remove {key}",
        )
        for section, recipe in {
            "Advantage": (), "Decoupled": (), "Scalarised": ("advantage.aggregation=scalarised",),
            "AttributeAware": ("advantage.aggregation=attribute_aware", "rewards.0.attribute=fidelity"),
        }.items()
        for key, value in {"pool": 2, "local_weight": 0.5}.items()
    },
    "sharpness device": (
        ("rewards.0={name: a, type: sharpness, device: cpu}",),
        "rewards.0.device: unknown key for rewards type 'sharpness'; read by pyiqa, lr_consistency",
    ),
    "noise cap_db": (
        ("rewards.0={name: a, type: noise, cap_db: 40}",),
        "rewards.0.cap_db: unknown key for rewards type 'noise'; read by lr_consistency",
    ),
    "rewards map": (("rewards.0.map=false",), "rewards ['a']: map is read only with advantage.spatial: map; remove it"),
    **{
        f"{kind} {key}": (
            (*base, f"objective.{key}={value}"), f"objective.{key} is read only with advantage.spatial: map; remove it",
        )
        for kind, base, key, value in (
            ("nft", (), "normaliser", "cell"), ("gdpo", GDPO, "judged", "cell"),
            ("diffusion_dpo", (*GDPO, "objective={type: diffusion_dpo}"), "stitched", "latents"),
        )
    },
    "decoupled detail_share": (
        ("advantage.detail_share=0.5",),
        "advantage.detail_share: unknown key for advantage aggregation 'decoupled'; read by attribute_aware",
    ),
    "decoupled attribute": (
        ("rewards.0.attribute=fidelity",),
        "rewards ['a']: attribute is not read by advantage.aggregation 'decoupled'; remove it",
    ),
    "scalarised attribute": (
        ("advantage.aggregation=scalarised", "rewards.0.attribute=fidelity"),
        "rewards ['a']: attribute is not read by advantage.aggregation 'scalarised'; remove it",
    ),
    "scalarised detail_share": (
        ("advantage={aggregation: scalarised, detail_share: 0.5}",),
        "advantage.detail_share: unknown key for advantage aggregation 'scalarised'; read by attribute_aware",
    ),
    "attribute_aware std": (
        ("advantage={aggregation: attribute_aware, std: group}",),
        "advantage.std: unknown key for advantage aggregation 'attribute_aware'; read by scalarised",
    ),
    # rewards and taggers
    "pyiqa file": (("rewards.0.file=x.py",), "rewards.0.file: unknown key for rewards type 'pyiqa'; read by python"),
    "lr_consistency metric": (
        ("rewards.0={name: a, type: lr_consistency, metric: psnr}",),
        "rewards.0.metric: unknown key for rewards type 'lr_consistency'; read by pyiqa",
    ),
    "python options": (
        ("rewards.0={name: a, type: python, file: x.py, options: {}}",),
        "rewards.0.options: unknown key for rewards type 'python'; read by pyiqa",
    ),
    "clip file": (
        ("data.tagger={type: clip, path: x, tags: y, file: z}",),
        "data.tagger.file: unknown key for tagger type 'clip'; read by python",
    ),
    "python top_k": (
        ("data.tagger={type: python, file: x.py, top_k: 3}",),
        "data.tagger.top_k: unknown key for tagger type 'python'; read by clip",
    ),
    # kinds
    "online pools": (("pools={}",), "pools: unknown key for kind 'online'; read by offline"),
    "online photos": (("photos=[]",), "photos: unknown key for kind 'online'; read by pretrain"),
    # data and evaluation
    "lr degradation": (
        ("data={kind: lr, path: x, degradation: light}",),
        "data.degradation: unknown key for data kind 'lr'; read by hr",
    ),
    "paired degradation": (
        ("data={kind: paired, path: x, hr_path: y, degradation: light}",),
        "data.degradation: unknown key for data kind 'paired'; read by hr",
    ),
    "hr hr_path": (("data.hr_path=x",), "data.hr_path: unknown key for data kind 'hr'; read by paired"),
    "eval without data": (("eval.every=3",), "eval.data: Field required"),
    # Ray and the monitor
    "RayConfig.num_cpus": (
        ("ray={address: auto, num_cpus: 4}",),
        "num_cpus is read only with address: null, got address: auto; remove num_cpus",
    ),
    "RayConfig.object_store_mb": (
        ("ray={address: auto, object_store_mb: 512}",),
        "object_store_mb is read only with address: null, got address: auto; remove object_store_mb",
    ),
    "MonitorConfig.project": (
        ("monitor.project=mine",),
        "project is read only with wandb: offline or online, got wandb: disabled; remove project",
    ),
    "MonitorConfig.entity": (
        ("monitor.entity=us",), "entity is read only with wandb: offline or online, got wandb: disabled; remove entity",
    ),
}  # fmt: skip
"""Which key of what -> overrides of a valid recipe, and what the message must hold. A key with a `ReadWith` mark is
named `Section.field`; the others begin with the union member that does not read them."""

PRETRAINING: dict[str, tuple[str, tuple[str, ...], str]] = {
    "flux2sr teacher": ("flux2sr", ("teacher.steps=3",), "teacher: unknown key for type 'flux2sr'; read by naosd"),
    "flux2sr flip": ("flux2sr", ("flip=true",), "flip: unknown key for type 'flux2sr'; read by naosd"),
    "naosd flow": ("naosd", ("flow.steps=3",), "flow: unknown key for type 'naosd'; read by flux2sr"),
    "naosd sampler_steps": (
        "naosd", ("sampler_steps=3",), "sampler_steps: unknown key for type 'naosd'; read by flux2sr",
    ),
    **{
        f"NAOSDPretrain.{name}": ("based", (f"{name}={value}",), f"{name} is read only with base: null, got base: b")
        for name, value in {"vae": "{}", "vae_size": "{}", "pairs": 3, "unet": "{}", "teacher": "{}"}.items()
    },
    "NAOSDPretrain.flip": (
        "based", ("flip=true", "augment=true"), "flip is read only with augment: false, got augment: true; remove flip",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNREAD)
def test_a_key_that_nobody_reads_is_refused(recipe: Path, case: str) -> None:
    overrides, message = UNREAD[case]
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, overrides)
    assert message in str(caught.value)


@pytest.mark.parametrize("case", PRETRAINING)
def test_a_key_that_no_stage_reads_is_refused(case: str, tmp_path: Path) -> None:
    kind, overrides, message = PRETRAINING[case]
    raw = {
        "kind": "pretrain", "type": kind, "out": "o", "photos": [{"path": ["p"]}], "held_out": ["h"],
        "lpips": {"backbone": "b", "heads": "h"},
    }  # fmt: skip
    file = tmp_path / "pretrain.yaml"
    file.write_text(yaml.safe_dump({**raw, "type": "naosd", "base": "b"} if kind == "based" else raw))
    load_pretrain_config(file)
    with pytest.raises(ConfigError) as caught:
        load_pretrain_config(file, overrides)
    assert message in str(caught.value)


def test_guidance_is_refused_where_the_transformer_has_no_embedding_for_it(tmp_path: Path) -> None:
    """A fact of the files: refused before the first process, not at the first look at the recipe."""
    for part in ("transformer", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text('{"guidance_embeds": false}')
    (tmp_path / "prompt_embeds.safetensors").touch()
    policy_section(path=str(tmp_path)).check()
    with pytest.raises(InputError, match="policy.guidance: the transformer .* has no guidance embedding .*; remove it"):
        policy_section(path=str(tmp_path), guidance=2.0).check()
    (tmp_path / "transformer" / "config.json").write_text('{"guidance_embeds": true}')
    policy_section(path=str(tmp_path), guidance=2.0).check()


def test_every_mark_has_a_case(every_field: list[Any]) -> None:
    marked = {str(field) for field in every_field if any(isinstance(mark, ReadWith) for mark in field.marks)}
    assert len(marked) >= 7
    assert marked <= {*UNREAD, *PRETRAINING}


def test_every_member_of_every_union_has_a_case(every_field: list[Any]) -> None:
    unions = {field.name: mark for field in every_field for mark in field.marks if isinstance(mark, OpenUnion)}
    assert {"policy", "sampler", "objective", "advantage", "data", "rewards", "tagger"} <= set(unions)
    refused = {case.split()[0] for case in UNREAD}
    for union in unions.values():
        assert set(union.registry) <= refused
    assert set(PRETRAINS.registry) <= {case.split()[0] for case in PRETRAINING}


@pytest.mark.parametrize("case", ["SDESection.size", "RayConfig.num_cpus", "MonitorConfig.project"])
def test_a_key_that_is_not_read_is_not_dumped(case: str, every_field: list[Any]) -> None:
    """config.yaml of a run is a recipe that loads again."""
    section, field = case.split(".")
    found = next(known.section for known in every_field if known.section.__name__ == section)
    unread = {"RayConfig": {"address": "auto"}}.get(section, {})
    dumped = found.model_validate(unread).model_dump()
    assert field not in dumped
    assert found.model_validate(dumped).model_dump() == dumped


def test_what_is_read_is_accepted(minimal: dict[str, Any]) -> None:
    """The other side of the marks: the same keys where they are read."""
    raw = {
        **minimal,
        "objective": {"type": "grpo"},
        "rollout": {"sampler": {"solver": "sde", "sde": {"window": "sliding", "size": 2, "every": 3}}},
        "ray": {"num_cpus": 4, "object_store_mb": 100},
        "monitor": {"wandb": "offline", "project": "p", "entity": "e"},
    }
    config = validate(RunConfig, raw, "test")
    assert config.sampler.trained_steps == 2
    assert (config.ray.num_cpus, config.monitor.project, config.monitor.entity) == (4, "p", "e")
    assert validate(RunConfig, config.model_dump(mode="json"), "again") == config

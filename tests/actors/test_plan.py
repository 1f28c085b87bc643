"""What `isrl plan` prints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.commands.plan import plan_text
from actors.paths import inputs
from rl.config.load import load_recipe, validate
from rl.config.online import RunConfig
from rl.errors import InputError

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(CONFIGS.glob("**/*.yaml"))

RAW: dict[str, Any] = {
    "data": {"path": ["skimage:camera", "nowhere"]},
    "train": {"steps": 10, "groups_per_step": 4},
    "rollout": {"group_size": 3},
    "policy": {"path": "/nowhere"},
    "rewards": [
        {"name": "a_reward_with_a_long_name", "type": "lr_consistency", "weight": 0.5},
        {"name": "iqa", "type": "pyiqa", "metric": "piqe", "replicas": 2},
    ],
}


def test_labels_and_texts_stand_in_two_columns() -> None:
    text = plan_text(validate(RunConfig, RAW, "test"))
    rows = [line for line in text.splitlines() if line.startswith("  ")]
    column = 2 + len("reward a_reward_with_a_long_name") + 2
    assert all(row[column - 2 : column] == "  " and row[column] != " " for row in rows)
    assert (
        f"  {'reward a_reward_with_a_long_name':<32}  1 x 1 CPU, 0 GPU, lr_consistency, weight 0.5; no weights" in rows
    )
    assert f"  {'reward iqa':<32}  2 x 1 CPU, 0 GPU, pyiqa, weight 1; no weights" in rows


def test_a_tagger_is_a_process_like_a_reward() -> None:
    tagger = {"type": "python", "file": "ram.py", "image": "lr", "replicas": 2, "cpus": 0.5, "gpus": 0.25}
    with_tagger = {**RAW, "data": {**RAW["data"], "tagger": tagger}}
    config, plain = (validate(RunConfig, raw, "test") for raw in (with_tagger, RAW))
    assert f"  {'tagger of data':<32}  2 x 0.5 CPU, 0.25 GPU, python on the LR" in plan_text(config).splitlines()
    assert "tagger" not in plan_text(plain)
    assert config.total_cpus == plain.total_cpus + 1


def test_maps_are_told_with_their_cells_and_bytes() -> None:
    """128 px in cells of 2 x 16 px; 3 float16 differences and a float32 mean in 4 x 4 cells."""
    advantage = {"spatial": "map", "pool": 2}
    text = plan_text(validate(RunConfig, {**RAW, "advantage": advantage}, "test"))
    (line,) = [line for line in text.splitlines() if line.startswith("  maps")]
    assert line.endswith("4 x 4 cells of 32 px from a_reward_with_a_long_name, 160 bytes per group and reward")
    assert "cells" not in plan_text(validate(RunConfig, RAW, "test"))


def test_numbers_follow_from_the_recipe_and_what_is_missing_is_said() -> None:
    text = plan_text(validate(RunConfig, RAW, "test"))
    assert "4 groups x 3 images of 128 px, 10 dpm2 steps each" in text
    assert (
        "nft: 9 micro-batch(es) a group (9 slot(s) x 1 part(s) of 3 member(s)), 3 forwards each, "
        "1 optimiser step(s) of 36 micro-batches"
    ) in text
    assert "120 images" in text
    assert "MISSING here: policy.path '/nowhere'" in text
    assert [line for line in text.splitlines() if "data.path" in line] == [
        f"  {'data.path':<32}  skimage:camera",
        f"  {'data.path':<32}  MISSING here: nowhere",
    ]


STEPS = {
    "micro-batches of members": (
        {"learner": {"micro_batch": 2}},
        "nft: 18 micro-batch(es) a group (9 slot(s) x 2 part(s) of 2 member(s)), 3 forwards each",
    ),
    "no reference": ({"objective": {"kl_weight": 0.0}}, "(9 slot(s) x 1 part(s) of 3 member(s)), 2 forwards each"),
    "a likelihood": (
        {"objective": {"type": "grpo", "kl_weight": 0.0}, "rollout": {"group_size": 3, "sampler": {"solver": "sde"}}},
        "grpo: 9 micro-batch(es) a group (9 slot(s) x 1 part(s) of 3 member(s)), 1 forwards each",
    ),
    "its trajectory": (
        {"objective": {"type": "grpo"}, "rollout": {"group_size": 3, "sampler": {"solver": "sde"}}},
        "4 groups x 3 images of 128 px, 10 sde steps each, 9 of them with a likelihood",
    ),
    "pairs": (
        {"objective": {"type": "diffusion_dpo", "draws": 2}, "policy": {"type": "naosd"}},
        "diffusion_dpo: 2 micro-batch(es) a group (2 slot(s) x 1 part(s) of 1 pair(s)), 2 forwards each",
    ),
    "a first pass over all errors": (
        {"objective": {"type": "gdpo"}, "policy": {"type": "naosd"}, "learner": {"micro_batch": 2}},
        "gdpo: 2 micro-batch(es) a group (1 slot(s) x 2 part(s) of 2 member(s)), 3 forwards each",
    ),
    "one step": (
        {"objective": {"type": "gdpo"}, "policy": {"type": "naosd"}},
        "4 groups x 3 images of 128 px, one step each\n",
    ),
    "levels": (
        {
            "objective": {"type": "gdpo"},
            "policy": {"type": "naosd"},
            "rollout": {"group_size": 3, "sampler": {"solver": "one_step", "t_add_range": [150, 350]}},
        },
        "one step each, at noise levels 150 to 350, one noise a group\n",
    ),
    "an evaluation": (
        {"eval": {"data": {"path": "skimage:coffee"}, "crops": 6, "samples": 4, "every": 5}},
        "6 crops x 4 sample(s), 10 dpm2 steps each, before and after the run, and every 5 steps\n",
    ),
}


@pytest.mark.parametrize("case", STEPS)
def test_a_step_is_said_in_the_words_of_the_sections(case: str) -> None:
    changes, words = STEPS[case]
    assert words in plan_text(validate(RunConfig, {**RAW, **changes}, "test"))


def test_every_missing_input_is_named_by_its_key(tmp_path: Path) -> None:
    """An adapter to start from, the reference, what is merged, prompts, of both data sections."""
    raw = {
        **RAW,
        "data": {"path": str(tmp_path), "prompt_path": "texts"},
        "eval": {"data": {"kind": "paired", "path": "lr", "hr_path": "hr"}},
        "policy": {
            "type": "naosd", "lora": {"init_from": "start.safetensors"}, "reference": "ref.safetensors",
            "merge": ["a.pkl", str(tmp_path), "b.pkl"],
        },
        "objective": {"type": "gdpo"},
    }  # fmt: skip
    rows = [line.split("  ") for line in plan_text(validate(RunConfig, raw, "test")).splitlines() if "MISSING" in line]
    assert sorted((row[1], row[-1].strip().removeprefix("MISSING here: ")) for row in rows) == [
        ("data.prompt_path", "texts"),
        ("eval.data.hr_path", "hr"),
        ("eval.data.path", "lr"),
        ("policy.lora.init_from", "start.safetensors"),
        ("policy.merge", "a.pkl"),
        ("policy.merge", "b.pkl"),
        ("reference", "ref.safetensors"),
    ]


def test_the_reference_is_the_adapter_that_training_starts_from(tmp_path: Path) -> None:
    (tmp_path / "start.safetensors").touch()
    start = {"lora": {"init_from": str(tmp_path / "start.safetensors")}}
    for policy, said in ((start, start["lora"]["init_from"]), ({**start, "reference": "base"}, "the base, with")):
        text = plan_text(validate(RunConfig, {**RAW, "policy": policy}, "test"))
        assert f"  {'reference':<32}  {said}" in text
    none = {**RAW, "policy": start, "objective": {"kl_weight": 0.0}}
    assert "  reference " not in plan_text(validate(RunConfig, none, "test"))


def test_what_the_files_of_the_policy_contradict_is_refused(run_config: Callable[..., Any]) -> None:
    assert "found in" in plan_text(run_config())
    with pytest.raises(InputError, match="policy.guidance: the transformer in .* reads no guidance"):
        plan_text(run_config("policy.guidance=2.0"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_has_a_plan(path: Path) -> None:
    """Two columns, and every input of the recipe under its key."""
    recipe = load_recipe(path)
    text = plan_text(recipe)
    assert all(f"\n  {key} " in text for key, _ in inputs(recipe))
    assert text.startswith("pretraining of" if "pretrain" in path.name else "processes\n  rollout workers")


def test_a_pretraining_recipe_says_its_stages_and_what_is_missing() -> None:
    """The real-size NAOSD: one stage of 16 crops a step, since the base is given; the embedded one trains all three."""
    text = plan_text(load_recipe(CONFIGS / "naosd_pretrain.yaml", ["base=/nowhere"]))
    assert "35000 steps of 2 x 8, LoRA rank 4, 1 L2 + 2 LPIPS + 1 VSD on crops of 512 px" in text
    assert "MISSING here: /nowhere" in text and "vae  " not in text
    mini = plan_text(load_recipe(CONFIGS / "naosd_pretrain_mini.yaml"))
    assert [word for word in ("vae", "teacher", "student") if f"\n  {word} " in mini] == ["vae", "teacher", "student"]
    assert "skimage:astronaut" in mini and "MISSING here: skimage" not in mini

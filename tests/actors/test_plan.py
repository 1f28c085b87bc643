"""What `isrl plan` prints."""

from pathlib import Path
from typing import Any

from actors.plan import plan_text
from actors.plan_pretrain import pretrain_plan_text
from rl.config.load import validate
from rl.config.pretrain import load_pretrain_config
from rl.config.run import RunConfig

RAW: dict[str, Any] = {
    "data": {"path": ["skimage:camera", "nowhere"]},
    "train": {"steps": 10, "groups_per_step": 4},
    "rollout": {"group_size": 3},
    "policy": {"path": "/nowhere"},
    "rewards": [
        {"name": "a_reward_with_a_long_name", "type": "lr_consistency", "weight": 0.5},
        {"name": "iqa", "type": "pyiqa", "metric": "musiq", "replicas": 2},
    ],
}


def test_labels_and_texts_stand_in_two_columns() -> None:
    text = plan_text(validate(RunConfig, RAW, "test"))
    rows = [line for line in text.splitlines() if line.startswith("  ")]
    column = 2 + len("reward a_reward_with_a_long_name") + 2
    assert all(row[column - 2 : column] == "  " and row[column] != " " for row in rows)
    assert f"  {'reward a_reward_with_a_long_name':<32}  1 x 1 CPU, 0 GPU, lr_consistency, weight 0.5" in rows
    assert f"  {'reward iqa':<32}  2 x 1 CPU, 0 GPU, pyiqa, weight 1" in rows


def test_a_tagger_is_a_process_like_a_reward() -> None:
    tagger = {"type": "python", "file": "ram.py", "image": "lr", "replicas": 2, "cpus": 0.5, "gpus": 0.25}
    with_tagger = {**RAW, "data": {**RAW["data"], "tagger": tagger}}
    config, plain = (validate(RunConfig, raw, "test") for raw in (with_tagger, RAW))
    assert f"  {'tagger of data':<32}  2 x 0.5 CPU, 0.25 GPU, python on the LR" in plan_text(config).splitlines()
    assert "tagger" not in plan_text(plain)
    assert config.total_cpus == plain.total_cpus + 1


def test_numbers_follow_from_the_recipe_and_what_is_missing_is_said() -> None:
    text = plan_text(validate(RunConfig, RAW, "test"))
    assert "4 groups x 3 images of 128 px, 10 dpm2 steps each" in text
    assert "nft: 9 micro-batch(es) a group, 3 forwards each, 1 optimiser step(s) of 36 micro-batches" in text
    assert "120 images" in text
    assert "MISSING here: policy.path '/nowhere'" in text
    assert "MISSING here: nowhere" in text


def test_a_pretraining_recipe_says_its_stages_and_what_is_missing() -> None:
    """The real-size NAOSD: one stage of 16 crops a step, since the base is given; the embedded one trains all three."""
    configs = Path(__file__).parents[2] / "configs"
    text = pretrain_plan_text(load_pretrain_config(configs / "naosd_pretrain.yaml", ["base=/nowhere"]))
    assert "35000 steps of 2 x 8 crops of 512 px, LoRA rank 4, 1 L2 + 2 LPIPS + 1 VSD" in text
    assert "MISSING here: /nowhere" in text and "vae  " not in text
    mini = pretrain_plan_text(load_pretrain_config(configs / "naosd_pretrain_mini.yaml"))
    assert [word for word in ("vae", "teacher", "student") if f"\n  {word} " in mini] == ["vae", "teacher", "student"]
    assert "skimage:astronaut" in mini and "MISSING here: skimage" not in mini

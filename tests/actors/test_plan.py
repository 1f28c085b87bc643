"""What `isrl plan` prints."""

from actors.plan import plan_text
from rl.config.load import validate
from rl.config.run import RunConfig

RAW = {
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


def test_numbers_follow_from_the_recipe_and_what_is_missing_is_said() -> None:
    text = plan_text(validate(RunConfig, RAW, "test"))
    assert "4 groups x 3 images of 128 px, 10 dpm2 steps each" in text
    assert "nft: 9 micro-batch(es) a group, 3 forwards each, 1 optimiser step(s) of 36 micro-batches" in text
    assert "120 images" in text
    assert "MISSING here: policy.path '/nowhere'" in text
    assert "MISSING here: nowhere" in text

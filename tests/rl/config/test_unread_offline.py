"""A run on pools reads no key that says how to sample: each is refused by name, with who reads it."""

from pathlib import Path

import pytest
import yaml

from rl.config.load import ConfigError, load_training_config

OFFLINE: dict[str, tuple[tuple[str, ...], str]] = {
    "data": (("data={path: x}",), "data: unknown key for kind 'offline'; read by online"),
    "rollout": (("rollout.group_size=3",), "rollout: unknown key for kind 'offline'; read by online"),
    "rewards": (("rewards=[]",), "rewards: unknown key for kind 'offline'; read by online"),
    "eval": (("eval.every=3",), "eval: unknown key for kind 'offline'; read by online"),
    "sample_from": (
        ("objective={type: gdpo, sample_from: reference}",),
        "objective.sample_from says how groups are sampled, and pools are; remove it",
    ),
    "ratios": (
        ("objective.type=grpo",),
        "objective 'grpo' needs the likelihoods of a trajectory, and pools hold images; use kind: online",
    ),
    "implicit policies": (
        ("objective.type=nft", "objective.allow_one_step=true"),
        "objective 'nft' trains on the clean latents that a worker sampled, and pools hold images; use kind: online",
    ),
    "maps": (("advantage.spatial=map",), "advantage.spatial map: pools hold scores, not maps; remove it"),
    "attribute": (
        ("scores.0.attribute=fidelity",),
        "scores ['psnr']: attribute is not read by advantage.aggregation 'decoupled'; remove it",
    ),
}


@pytest.mark.parametrize("case", OFFLINE)
def test_a_key_that_says_how_to_sample_is_refused_offline(case: str, tmp_path: Path) -> None:
    overrides, message = OFFLINE[case]
    file = tmp_path / "offline.yaml"
    raw = {
        "kind": "offline", "policy": {"type": "naosd"}, "objective": {"type": "gdpo"},
        "pools": {"path": "pool", "group_size": 4}, "scores": [{"name": "psnr"}],
    }  # fmt: skip
    file.write_text(yaml.safe_dump(raw))
    assert load_training_config(file).group_size == 4
    with pytest.raises(ConfigError) as caught:
        load_training_config(file, overrides)
    assert message in str(caught.value)

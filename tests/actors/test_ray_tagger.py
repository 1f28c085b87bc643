"""The real command with a tagger, tiny: who is tagged, what a failure costs, and that prompts reach the pixels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rl.config.load import load_config

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

TAGGER = """
from pathlib import Path

SEEN = Path(__file__).with_name("seen.txt")

def tag(images):
    before = SEEN.read_text().split() if SEEN.exists() else []
    now = [f"{image.shape[1]}:{image.astype(float).mean():.6f}" for image in images]
    SEEN.write_text("\\n".join([*before, *now]))
    trained = [line for line in [*before, *now] if line.startswith("64:")]
    if trained and trained[0] in now:
        raise RuntimeError("the first photograph that is trained on has no tags")
    return ["abcdefgh" for _ in images]
"""


def test_a_tagger_writes_the_prompts_of_training_and_evaluation(
    isrl_train: Callable[..., None], quickstart: tuple[str, ...],
    trained_steps: Callable[[Path], list[dict[str, float]]], tmp_path: Path, tiny_sd21_folder: Path,
) -> None:  # fmt: skip
    """One process tags HR crops of 64 pixels for training and LR images of 16 for evaluation. The first training image
    fails twice and its group is dropped; the held-out images are restored with their tags as the prompt."""
    (tmp_path / "tags.py").write_text(TAGGER)
    tagger = f"type: python, file: {tmp_path}/tags.py, retries: 1"
    run = tmp_path / "run"
    isrl_train(
        *quickstart, f"run.dir={run}", "train.steps=2", "learner.updates_per_batch=1", "objective={type: gdpo}",
        f"policy={{type: naosd, path: {tiny_sd21_folder}, lora: {{rank: 4, alpha: 8}}}}", "rollout={group_size: 3}",
        "data.path=skimage:coffee",
        f"data.tagger={{{tagger}}}", f"eval.data.tagger={{{tagger}, image: lr}}", "eval.data.prompt_suffix=8k",
    )  # fmt: skip
    trained = trained_steps(run)
    assert [step["policy/version"] for step in trained] == [1, 2]
    assert all(step["optim/grad_norm"] > 0 and step["time/tag_s"] > 0 for step in trained)
    assert [step["tagger/failed"] for step in trained] == [1, 0] == [step["group/dropped"] for step in trained]

    seen = (tmp_path / "seen.txt").read_text().split()
    held_out, hr = seen[:2], seen[2:]
    assert all(line.startswith("16:") for line in held_out) and all(line.startswith("64:") for line in hr)
    assert (len(hr), len(set(hr)), hr.count(hr[0])) == (6, 5, 2)

    prompted = untrained_images(run, "abcdefgh, 8k")
    assert len(prompted) == 2
    unprompted = untrained_images(run, "")
    with np.load(run / "eval" / "start-000000.npz") as written:
        for lr_id, image in prompted.items():
            assert abs(written[lr_id].astype(int) - image).max() <= 1
            assert abs(written[lr_id].astype(int) - unprompted[lr_id]).max() > 1


def untrained_images(run: Path, prompt: str) -> dict[str, NDArray[np.int_]]:
    """What the policy without an adapter makes of the run's held-out crops, by LR id."""
    import torch

    from actors.evaluate import eval_seeds
    from rl.data.source import TaskSource
    from rl.policies import load_policy
    from rl.policies.base import member_noise, to_uint8

    config = load_config(run / "config.yaml")
    assert config.eval is not None
    policy, found = load_policy(config.policy), {}
    for task in TaskSource(config.eval.data, 0).grid(config.eval.crops):
        with torch.no_grad():
            condition = policy.condition(task.lr, task.scale, prompt)
            noise = member_noise(eval_seeds(task.lr_id, 1), policy.latent_shape(condition), torch.device("cpu"))
            image = to_uint8(policy.decode(policy.sample(noise, [condition], config.eval_sampler)))[0]
        found[task.lr_id] = image.numpy().astype(int)
    return found

"""Every recipe of the policy-gradient and one-step methods through the real command, three steps.

Embedded recipes run as they are, but shorter. Real-size recipes keep method, sampler and optimiser values and get a
tiny model of the same classes, the CPU, rewards without downloads and smaller crops and groups.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

SHORT = ("train.groups_per_step=2", "rollout.group_size=4", "eval=null")
PARTS = ("rollout.micro_batch=2", "learner.updates_per_batch=2")
"""Two parts of a group, so that each of two updates has its share of them (`objective.order: samples`)."""
EMBEDDED = {
    "gdpo_sr_mini": SHORT,
    **{name: (*SHORT, *PARTS) for name in ("flow_grpo_mini", "dance_grpo_mini", "grpo_guard_mini")},
}
SMALL = (
    "train.groups_per_step=2", "rollout.group_size=3", "rollout.workers=1", "rollout.gpus_per_worker=0",
    "learner.ranks=1", "learner.gpus_per_rank=0", "ray.address=null", "policy.device=cpu", "policy.dtype=float32",
    "data.path=skimage:astronaut", "data.crop=64",
)  # fmt: skip
"""What a laptop must change of a real-size recipe."""
FLOW_REWARDS = "rewards=[{name: gmsd, type: pyiqa}, {name: lr_consistency, type: lr_consistency}]"
REAL = {
    "gdpo_sr": (
        "policy.path={sd21}", "policy.merge=[]", "data.prompt_path=null", "data.prompt=a wall",
        "rewards=[{name: psnry, type: pyiqa, attribute: fidelity}, {name: piqe, type: pyiqa, attribute: perceptual}]",
    ),
    "flow_grpo": ("policy.path={flux2}", FLOW_REWARDS),
    "dance_grpo": ("policy.path={flux2}", FLOW_REWARDS, "learner.updates_per_batch=2"),
    "grpo_guard": ("policy.path={flux2}", FLOW_REWARDS),
}  # fmt: skip

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("recipe", [*EMBEDDED, *REAL])
def test_a_recipe_trains_three_steps(
    recipe: str, isrl_train: Callable[..., None], trained_steps: Callable[[Path], list[dict[str, float]]],
    tmp_path: Path, tiny_sd21_folder: Path, tiny_flux2_folder: Path,
) -> None:  # fmt: skip
    """Three versions with a gradient each; GRPO's first ratios are exactly 1, GDPO's first loss is ln 2."""
    changes = EMBEDDED.get(recipe) or (*SMALL, *REAL[recipe])
    folders = {"{sd21}": str(tiny_sd21_folder), "{flux2}": str(tiny_flux2_folder)}
    for name, folder in folders.items():
        changes = tuple(change.replace(name, folder) for change in changes)
    isrl_train(f"configs/{recipe}.yaml", f"run.dir={tmp_path}/run", "train.steps=3", *changes, timeout_s=800)
    steps = trained_steps(tmp_path / "run")
    assert [step["policy/version"] for step in steps] == [1, 2, 3]
    assert all(step["optim/grad_norm"] > 0 for step in steps)
    if "gdpo" in recipe:
        assert steps[0]["loss/total"] == pytest.approx(0.6931, abs=1e-3)
    else:
        assert [step["ratio/fresh_deviation"] for step in steps] == [0.0] * 3

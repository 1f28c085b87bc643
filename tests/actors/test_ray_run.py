"""The real command on real Ray and DeepSpeed, tiny."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

START_S, STOP_S = 300, 200

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

Train = Callable[..., None]
Records = Callable[[Path], list[dict[str, float]]]
Facts = Callable[[Path], dict[str, Any]]


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    isrl_train: Train, quickstart: tuple[str, ...], trained_steps: Records, adapter_facts: Facts, tmp_path: Path
) -> None:
    """max_policy_lag 0, CPU: 3 steps in one go, and what was on disk after 2 of them in a new process for the third.
    With an advantage per cell, so that maps go the whole way."""
    run, resumed = tmp_path / "whole", tmp_path / "parts"
    quickstart = (*quickstart, "advantage.spatial=map")
    isrl_train(*quickstart, f"run.dir={run}", "train.steps=3")
    trained = trained_steps(run)
    assert all(0 < step["advantage/local_share"] < 1 for step in trained)
    assert len(list((run / "samples").glob("*_maps.png"))) == 2
    assert [step["policy/version"] for step in trained] == [1, 2, 3]
    assert all(step["policy/age_max"] == 0 for step in trained)
    assert (
        (run / "report.md").exists() and (run / "before_after.png").exists() and list((run / "samples").glob("*.png"))
    )

    resumed.mkdir()
    shutil.copytree(run / "checkpoints" / "step-000002", resumed / "checkpoints" / "step-000002")
    for name in ("metrics.jsonl", "eval.jsonl"):
        lines = (run / name).read_text().splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line).get("step", 0) < 3 and '"end"' not in line]
        (resumed / name).write_text("".join(kept))
    isrl_train(*quickstart, f"run.dir={resumed}", "train.steps=3", "--resume")
    assert [step["policy/version"] for step in trained_steps(resumed)] == [1, 2, 3]
    assert adapter_facts(resumed)["digest"] == adapter_facts(run)["digest"]
    last = [trained_steps(folder)[-1] for folder in (run, resumed)]
    assert last[0]["loss/total"] == last[1]["loss/total"] and last[0]["optim/grad_norm"] == last[1]["optim/grad_norm"]


OWN_POLICY = """
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from rl.config.policy import PolicySection
from rl.policies.base import FlowPolicy, enlarged, from_uint8, repeated


class TinySection(PolicySection):
    builder = "my_policy:Tiny"
    size_multiple = 8
    cell_px = 1
    prediction = "velocity"
    reads_text = False
    lora_targets: ClassVar[dict[str, tuple[str, ...]]] = {"all": ("inner", "outer", "level")}
    files = ("weights.pt",)
    trained = ("net",)
    tile_px = 64

    type: str = "my_policy:TinySection"
    width: int = 8


@dataclass(frozen=True, eq=False)
class Enlarged:
    pixels: Tensor

    def crop(self, y: int, x: int, height: int, width: int) -> "Enlarged":
        return Enlarged(self.pixels[:, :, y : y + height, x : x + width])


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(6, width, 3, padding=1)
        self.level = nn.Linear(1, width)
        self.outer = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, lr: Tensor) -> Tensor:
        hidden = self.inner(torch.cat([x, lr], 1)) + self.level(t[:, None])[:, :, None, None]
        return self.outer(torch.tanh(hidden))


class Tiny(FlowPolicy):
    \"\"\"A flow on pixels.\"\"\"

    def __init__(self, net: Net, section: TinySection) -> None:
        self.section, self.net = section, net.requires_grad_(False)
        self.modules = {"net": net}
        self.device = torch.device("cpu")

    @classmethod
    def from_folder(cls, folder, section):
        net = Net(section.width)
        net.load_state_dict(torch.load(folder / "weights.pt"))
        return cls(net, section)

    def condition(self, lr, scale, prompt="", *, enlargement="bicubic"):
        return Enlarged(enlarged(lr, scale, self.section.size_multiple, enlargement))

    def latent_shape(self, condition):
        return tuple(condition.pixels.shape[1:])

    def decode(self, latents):
        return latents

    def encode_hr(self, hr):
        return from_uint8(torch.from_numpy(np.array(hr)))

    def prediction(self, x_t, t, conditions):
        return self.net(x_t, t, repeated([condition.pixels for condition in conditions], len(x_t)))

    def levels(self, steps, condition):
        return torch.linspace(1, 0, steps + 1)
"""


def own_policy(folder: Path) -> str:
    """A policy in a file in `folder`, outside of the package, with its weights; returns the override that takes it."""
    import torch
    from torch import nn

    (folder / "my_policy.py").write_text(OWN_POLICY)
    torch.manual_seed(5)
    layers = {"inner": nn.Conv2d(6, 8, 3), "level": nn.Linear(1, 8), "outer": nn.Conv2d(8, 3, 3)}
    weights = {f"{name}.{key}": value for name, layer in layers.items() for key, value in layer.state_dict().items()}
    torch.save(weights, folder / "weights.pt")
    return "policy={type: 'my_policy:TinySection', path: ., lora: {rank: 2, alpha: 4}}"


def test_a_users_policy_trains_on_two_ranks_and_workers_and_resumes_after_an_interrupt(
    isrl_train: Train, quickstart: tuple[str, ...], logged: Records, adapter_facts: Facts, tmp_path: Path
) -> None:
    """The class lies in the directory that the run starts from; its latents are pixels, in cells of eight. Two gloo
    ranks under ZeRO-2, two workers, one step of lag: versions rise, no group is older than the lag. SIGINT between
    checkpoints: exit 130, the finished steps are saved, `--resume` does exactly the rest."""
    run = tmp_path / "run"
    arguments = (
        *quickstart, f"run.dir={run}", own_policy(tmp_path), "eval=null", "checkpoint={every: 1000, keep: 1}",
        "train.max_policy_lag=1", "learner={ranks: 2, zero_stage: 2, updates_per_batch: 1}", "advantage.pool=8",
    )  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "actors.cli", "train", *arguments, "train.steps=4000", "rollout.workers=2"],
            cwd=tmp_path,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )
        deadline = time.monotonic() + START_S
        while not (run / "metrics.jsonl").exists() or not logged(run):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        code = process.wait(STOP_S)
    said = (tmp_path / "log").read_text()
    assert code == 130, said
    done = [step["policy/version"] for step in logged(run)]
    assert f"interrupted after step {len(done)}, which is saved; resume with --resume" in said.replace("\n", " ")
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{len(done):06d}"]
    first = adapter_facts(run)["digest"]

    isrl_train(*arguments, f"train.steps={len(done) + 3}", "--resume", cwd=tmp_path)
    steps = logged(run)
    assert [step["policy/version"] for step in steps] == [*range(1, len(done) + 4)]
    assert max(step["policy/age_max"] for step in steps) == 1
    assert all(step["optim/grad_norm"] > 0 for step in steps)
    assert adapter_facts(run)["digest"] != first
    assert yaml.safe_load((run / "config.yaml").read_text())["policy"]["type"] == "my_policy:TinySection"


OBJECTIVES = {
    "gdpo": (
        "objective={type: gdpo}",
        "rewards=[{name: psnr, type: pyiqa, attribute: fidelity}, {name: piqe, type: pyiqa, attribute: perceptual}]",
        "advantage={aggregation: attribute_aware, eps: 1.0e-8}", "data.prompt=a wall", "eval.data.prompt=a wall",
    ),
    "diffusion_dpo": ("objective={type: diffusion_dpo, sample_from: policy}",),
    "grpo": ("objective={type: grpo}", "rollout.sampler={solver: sde, steps: 3}"),
}  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["gdpo", *(pytest.param(k, marks=pytest.mark.slow) for k in ("diffusion_dpo", "grpo"))]
)
def test_every_objective_trains_three_steps(
    kind: str, isrl_train: Train, quickstart: tuple[str, ...], trained_steps: Records, adapter_facts: Facts,
    tmp_path: Path, tiny_sd21_folder: Path,
) -> None:  # fmt: skip
    """One-step policies by preference, flows by policy gradient, on the same roles; fresh ratios are exactly 1."""
    one_step = (
        f"policy={{type: naosd, path: {tiny_sd21_folder}, lora: {{rank: 4, alpha: 8}}}}",
        "rollout={group_size: 3}",
    )
    policy = () if kind == "grpo" else one_step
    isrl_train(
        *quickstart, f"run.dir={tmp_path}/run", "train.steps=3", "learner.updates_per_batch=1", *policy,
        *OBJECTIVES[kind], "learner.zero_stage=2",
    )  # fmt: skip
    trained = trained_steps(tmp_path / "run")
    assert [step["policy/version"] for step in trained] == [1, 2, 3]
    assert all(step["optim/grad_norm"] > 0 for step in trained)
    if kind == "grpo":
        assert [step["ratio/fresh_deviation"] for step in trained] == [0.0] * 3
    else:
        # ln 2 where policy and reference are equal, that is before the first update
        assert trained[0]["loss/total"] == pytest.approx(0.6931, abs=1e-3)
        assert trained[2]["loss/drift"] > 0
    assert adapter_facts(tmp_path / "run")["step"] == 3

"""The real command on real Ray and DeepSpeed, tiny."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from rl.config.load import load_config
from rl.export import read_lora_header

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "train={groups_per_step: 2, max_policy_lag: 0}", "rollout={group_size: 3, sampler: {steps: 3}}",
    "data={path: 'skimage:astronaut', crop: 64}", "eval={data: {path: 'skimage:coffee', crop: 64}, crops: 2}",
    "rewards=[{name: lr_consistency, type: lr_consistency}]", "learner={ranks: 1, updates_per_batch: 2}",
    "checkpoint.every=2", "monitor.sample_every=2",
)  # fmt: skip
"""One reward without pyiqa, whose import takes as long as a step here; the tests of objectives add it."""

START_S, STOP_S = 300, 200

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "actors.cli", "train", f"{ROOT}/configs/quickstart.yaml", *TINY, *arguments]


def isrl(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=cwd, capture_output=True, text=True, timeout=500, check=False)


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def digest(run: Path) -> object:
    return read_lora_header(run / "lora" / "pytorch_lora_weights.safetensors")["isrl"]["digest"]


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    """max_policy_lag 0, CPU: 3 steps in one go, and what was on disk after 2 of them in a new process for the third."""
    run, resumed = tmp_path / "whole", tmp_path / "parts"
    done = isrl(f"run.dir={run}", "train.steps=3")
    assert done.returncode == 0, done.stdout + done.stderr
    trained = [step for step in metrics(run) if "loss/total" in step]
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
    more = isrl(f"run.dir={resumed}", "train.steps=3", "--resume")
    assert more.returncode == 0, more.stdout + more.stderr
    assert [step["policy/version"] for step in metrics(resumed) if "loss/total" in step] == [1, 2, 3]
    assert digest(resumed) == digest(run)
    last = [[step for step in metrics(folder) if "loss/total" in step][-1] for folder in (run, resumed)]
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


def test_a_users_policy_trains_on_two_ranks_and_workers_and_resumes_after_an_interrupt(tmp_path: Path) -> None:
    """The class lies in the directory that the run starts from. Two gloo ranks under ZeRO-2, two workers, one step of
    lag: versions rise, no group is older than the lag. SIGINT between checkpoints: exit 130, the finished steps are
    saved, `--resume` does exactly the rest."""
    run = tmp_path / "run"
    arguments = (
        f"run.dir={run}", own_policy(tmp_path), "eval=null", "checkpoint.every=1000", "train.max_policy_lag=1",
        "learner={ranks: 2, zero_stage: 2, updates_per_batch: 1}",
    )  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command("train.steps=4000", "rollout.workers=2", *arguments),
            cwd=tmp_path,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )
        deadline = time.monotonic() + START_S
        while not (run / "metrics.jsonl").exists() or not metrics(run):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        code = process.wait(STOP_S)
    said = (tmp_path / "log").read_text()
    assert code == 130, said
    done = [step["policy/version"] for step in metrics(run)]
    assert f"interrupted after step {len(done)}, which is saved; resume with --resume" in said.replace("\n", " ")
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{len(done):06d}"]
    first = digest(run)

    more = isrl(f"train.steps={len(done) + 3}", *arguments, "--resume", cwd=tmp_path)
    assert more.returncode == 0, more.stdout + more.stderr
    steps = metrics(run)
    assert [step["policy/version"] for step in steps] == [*range(1, len(done) + 4)]
    assert max(step["policy/age_max"] for step in steps) == 1
    assert all(step["optim/grad_norm"] > 0 for step in steps)
    assert digest(run) != first
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


def one_step(folder: Path) -> tuple[str, ...]:
    return f"policy={{type: naosd, path: {folder}, lora: {{rank: 4, alpha: 8}}}}", "rollout={group_size: 3}"


@pytest.mark.parametrize(
    "kind", ["gdpo", *(pytest.param(k, marks=pytest.mark.slow) for k in ("diffusion_dpo", "grpo"))]
)
def test_every_objective_trains_three_steps(kind: str, tmp_path: Path, tiny_sd21_folder: Path) -> None:
    """One-step policies by preference, flows by policy gradient, on the same roles; fresh ratios are exactly 1."""
    policy = () if kind == "grpo" else one_step(tiny_sd21_folder)
    done = isrl(
        f"run.dir={tmp_path}/run", "train.steps=3", "learner.updates_per_batch=1", *policy, *OBJECTIVES[kind],
        "learner.zero_stage=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    trained = [step for step in metrics(tmp_path / "run") if "loss/total" in step]
    assert [step["policy/version"] for step in trained] == [1, 2, 3]
    assert all(step["optim/grad_norm"] > 0 for step in trained)
    if kind == "grpo":
        assert [step["ratio/fresh_deviation"] for step in trained] == [0.0] * 3
    else:
        # ln 2 where policy and reference are equal, that is before the first update
        assert trained[0]["loss/total"] == pytest.approx(0.6931, abs=1e-3)
        assert trained[2]["loss/drift"] > 0
    header = read_lora_header(tmp_path / "run" / "lora" / "pytorch_lora_weights.safetensors")
    assert header["isrl"]["step"] == 3


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


@pytest.mark.slow
def test_a_tagger_writes_the_prompts_of_training_and_evaluation(tmp_path: Path, tiny_sd21_folder: Path) -> None:
    """One process tags HR crops of 64 pixels for training and LR images of 16 for evaluation. The first training image
    fails twice and its group is dropped; the held-out images are restored with their tags as the prompt."""
    (tmp_path / "tags.py").write_text(TAGGER)
    tagger = f"type: python, file: {tmp_path}/tags.py, retries: 1"
    run = tmp_path / "run"
    done = isrl(
        f"run.dir={run}", "train.steps=2", "learner.updates_per_batch=1", "objective={type: gdpo}",
        *one_step(tiny_sd21_folder), "data.path=skimage:coffee",
        f"data.tagger={{{tagger}}}", f"eval.data.tagger={{{tagger}, image: lr}}", "eval.data.prompt_suffix=8k",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    trained = [step for step in metrics(run) if "loss/total" in step]
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

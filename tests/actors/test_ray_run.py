"""The real command on real Ray and DeepSpeed, tiny."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rl.export import read_lora_header

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "train.groups_per_step=2", "train.max_policy_lag=0", "rollout.group_size=3", "rollout.sampler.steps=3",
    "data.path=skimage:astronaut", "data.crop=64", "eval.data.crop=64", "eval.data.path=skimage:coffee",
    "eval.crops=2", "learner.updates_per_batch=2", "checkpoint.every=2", "monitor.sample_every=2", "learner.ranks=1",
)  # fmt: skip

START_S, STOP_S = 300, 200

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "actors.cli", "train", "configs/quickstart.yaml", *TINY, *arguments]


def isrl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def digest(run: Path) -> object:
    return read_lora_header(run / "lora" / "pytorch_lora_weights.safetensors")["isrl"]["digest"]


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    """max_policy_lag 0, CPU: 3 steps in one go, and 2 steps, a new process, 1 step."""
    whole = isrl(f"run.dir={tmp_path}/whole", "train.steps=3")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    first = isrl(f"run.dir={tmp_path}/parts", "train.steps=2")
    assert first.returncode == 0, first.stdout + first.stderr
    assert digest(tmp_path / "parts") != digest(tmp_path / "whole")
    second = isrl(f"run.dir={tmp_path}/parts", "train.steps=3", "--resume")
    assert second.returncode == 0, second.stdout + second.stderr
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")

    run = tmp_path / "whole"
    trained = [step for step in metrics(run) if "loss/total" in step]
    assert [step["policy/version"] for step in trained] == [1, 2, 3]
    assert all(step["policy/age_max"] == 0 for step in trained)
    assert (
        (run / "report.md").exists() and (run / "before_after.png").exists() and list((run / "samples").glob("*.png"))
    )


def test_two_ranks_and_two_workers_train_with_one_step_of_lag(tmp_path: Path) -> None:
    """gloo over two learner ranks under ZeRO-2, two rollout workers: versions rise, no group is older than the lag."""
    done = isrl(
        f"run.dir={tmp_path}/run", "train.steps=3", "train.max_policy_lag=1", "learner.ranks=2", "rollout.workers=2",
        "learner.zero_stage=2", "learner.updates_per_batch=1", "eval.data=null",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    steps = metrics(tmp_path / "run")
    assert [step["policy/version"] for step in steps] == [1, 2, 3]
    assert max(step["policy/age_max"] for step in steps) <= 1
    assert all(step["optim/grad_norm"] > 0 for step in steps)


def test_an_interrupt_saves_the_step_in_progress_and_the_run_goes_on(tmp_path: Path) -> None:
    """SIGINT between checkpoints: exit 130, the finished steps are saved, `--resume` does exactly the rest."""
    run = tmp_path / "run"
    arguments = (f"run.dir={run}", "eval.data=null", "checkpoint.every=1000", "learner.updates_per_batch=1")
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command("train.steps=400", *arguments), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, text=True
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
    assert f"interrupted after step {len(done)}, saved; continue with --resume" in said.replace("\n", " ")
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{len(done):06d}"]

    more = isrl(f"train.steps={len(done) + 1}", *arguments, "--resume")
    assert more.returncode == 0, more.stdout + more.stderr
    assert [step["policy/version"] for step in metrics(run)] == [*done, len(done) + 1]


OBJECTIVES = {
    "gdpo": (
        "objective={type: gdpo}",
        "rewards=[{name: psnr, type: pyiqa, attribute: fidelity}, {name: piqe, type: pyiqa, attribute: perceptual}]",
        "advantage={aggregation: attribute_aware, eps: 1.0e-8}", "data.prompt=a wall", "eval.data.prompt=a wall",
    ),
    "diffusion_dpo": ("objective={type: diffusion_dpo, sample_from: policy}",),
    "grpo": ("objective={type: grpo}", "rollout.sampler.solver=sde"),
}  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["gdpo", *(pytest.param(k, marks=pytest.mark.slow) for k in ("diffusion_dpo", "grpo"))]
)
def test_every_objective_trains_three_steps(kind: str, tmp_path: Path, tiny_sd21_folder: Path) -> None:
    """One-step policies by preference, flows by policy gradient, on the same roles; fresh ratios are exactly 1."""
    one_step = (
        () if kind == "grpo" else (f"policy={{type: naosd, path: {tiny_sd21_folder}, lora: {{rank: 4, alpha: 8}}}}",)
    )
    done = isrl(
        f"run.dir={tmp_path}/run", "train.steps=3", "learner.updates_per_batch=1", *one_step, *OBJECTIVES[kind],
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
        "rewards=[{name: lr_consistency, type: lr_consistency}]",
        f"policy={{type: naosd, path: {tiny_sd21_folder}, lora: {{rank: 4, alpha: 8}}}}", "data.path=skimage:coffee",
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
    from rl.sampling import draw

    from actors.evaluate import eval_seeds
    from rl.config.load import load_config
    from rl.data.source import TaskSource
    from rl.policies import load_policy
    from rl.policies.base import member_noise, to_uint8

    config = load_config(run / "config.yaml")
    assert config.eval.data is not None
    policy, found = load_policy(config.policy), {}
    for task in TaskSource(config.eval.data, 0).grid(config.eval.crops):
        with torch.no_grad():
            condition = policy.encode(task.lr, task.scale, prompt)
            noise = member_noise(eval_seeds(task.lr_id, 1), policy.latent_shape(condition), torch.device("cpu"))
            image = to_uint8(policy.decode(draw(policy, noise, [condition], config.rollout.sampler)))[0]
        found[task.lr_id] = image.numpy().astype(int)
    return found

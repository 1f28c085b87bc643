"""Every impossible combination fails at config time, in under a second, with what to write instead."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rl.config.load import ConfigError, load_config

ROOT = Path(__file__).parents[3]
MINIMAL = {"data": {"path": "skimage:camera"}, "rewards": [{"name": "a", "type": "pyiqa"}]}

REFUSALS = {
    "group of one": (
        ["rollout.group_size=1"],
        "rollout.group_size must be at least 2, got 1: a group of one has no relative advantage (LucidNFT uses 12)",
    ),
    "size of the backbone": (
        ["data.crop=100"],
        "data.crop must be divisible by 16 for policy 'flux2sr', got 100; write 96 or 112",
    ),
    "size of the evaluation": (
        ["eval.data={path: [x], crop: 72}"],
        "eval.data.crop must be divisible by 16 for policy 'flux2sr', got 72; write 64 or 80",
    ),
    "crop and scale": (["data.scale=3"], "data.crop must be divisible by data.scale 3, got 128"),
    "two scales": (["eval.data={path: [x], scale: 2}"], "eval.data.scale must equal data.scale 4, got 2"),
    "groups over ranks": (
        ["train.groups_per_step=3", "learner.ranks=2"],
        "train.groups_per_step must be divisible by learner.ranks 2, got 3: a group is never split over ranks",
    ),
    "updates over micro-batches": (
        ["learner.updates_per_batch=5"],
        "learner.updates_per_batch must divide the 36 micro-batches of a rank (groups x 9), got 5",
    ),
    "no timestep": (
        ["rollout.sampler.steps=1"],
        "objective.timestep_fraction 0.99 of 1 sampler steps leaves no timestep to train on; raise one of them",
    ),
    "equal rewards": (
        ["rewards=[{name: a, type: pyiqa}, {name: a, type: lr_consistency}]"],
        "rewards: names must differ, got ['a', 'a']; set `name` and `metric` apart",
    ),
    "no reward": (["rewards=[]"], "rewards: List should have at least 1 item"),
    "pairs without HR": (["data.kind=paired"], "data.kind 'paired' needs data.hr_path"),
    "HR without pairs": (["data.hr_path=x"], "data.hr_path is read only by data.kind 'paired', got kind 'hr'"),
    "reward without file": (["rewards.0.type=python"], "reward 'a': type 'python' needs file"),
    "file without python": (["rewards.0.file=x.py"], "file is read only by type 'python', got 'pyiqa'"),
    "policy on a GPU that workers do not get": (
        ["policy.device=cuda", "learner.gpus_per_rank=1"],
        "policy.device 'cuda' needs rollout.gpus_per_worker above 0, got 0; write rollout.gpus_per_worker=1",
    ),
    "policy on a GPU that the learner does not get": (
        ["policy.device=cuda", "rollout.gpus_per_worker=1"],
        "policy.device 'cuda' needs learner.gpus_per_rank above 0, got 0; write learner.gpus_per_rank=1",
    ),
    "GPUs for a policy on the CPU": (
        ["rollout.gpus_per_worker=0.5"],
        "rollout.gpus_per_worker must be 0 for policy.device 'cpu', got 0.5; write policy.device=cuda",
    ),
    "reward on a GPU that it does not get": (
        ["rewards.0.device=cuda"],
        "reward 'a': device 'cuda' needs gpus above 0, got 0; write gpus: 0.25",
    ),
    "GPU for a reward on the CPU": (
        ["rewards.0.gpus=0.25"],
        "reward 'a': gpus 0.25 needs device 'cuda', got 'cpu'; write device: cuda",
    ),
    "slash in a name": (["rewards.0.name=a/b"], "expected text without '/', because metric keys hold it, got 'a/b'"),
    "negative shift": (["rollout.sampler.shift=-1"], "expected a number above 0 or 'flux2', got -1"),
    "probabilities": (
        ["data.degradation={first: {resize_probabilities: [0.5, 0.5, 0.5]}}"],
        "resize_probabilities must be at least 0 and sum to 1, got [0.5, 0.5, 0.5]",
    ),
    "two sources of prompts": (
        ["data.prompt=a wall", "data.tagger={type: python, file: x.py}"],
        "data.tagger and data.prompt 'a wall' exclude each other, got both: remove one",
    ),
    "tagger and prompt files": (
        ["data.prompt_path=texts", "data.tagger={type: python, file: x.py}"],
        "data.tagger and data.prompt_path 'texts' exclude each other, got both: remove one",
    ),
    "HR tags without HR": (
        ["data.kind=lr", "data.tagger={type: python, file: x.py}"],
        "data.tagger.image 'hr' needs data with HR, data.kind 'lr' has none; write tagger.image: lr",
    ),
    "tagger without file": (["data.tagger.type=python"], "tagger: type 'python' needs file"),
    "CLIP without tags": (
        ["data.tagger={type: clip, path: clip}"],
        "tagger: type 'clip' needs path (a folder with a CLIP model) and tags (a text file with one tag per line), got "
        "path 'clip' and tags None",
    ),
    "CLIP's fields of a file": (
        ["data.tagger={type: python, file: x.py, top_k: 3}"],
        "tagger: top_k is read only by type 'clip', got 'python'",
    ),
    "a file of CLIP": (
        ["data.tagger={type: clip, path: x, tags: y, file: x.py}"],
        "tagger: file is read only by type 'python', got 'clip'",
    ),
    "a template without a place": (
        ["data.tagger={type: clip, path: x, tags: y, template: a photo}"],
        "tagger: template must hold {} once, where the tag goes, got 'a photo'",
    ),
    "CLIP on a GPU that it does not get": (
        ["data.tagger={type: clip, path: x, tags: y, device: cuda}"],
        "tagger: device 'cuda' needs gpus above 0, got 0; write gpus: 0.25",
    ),
    "GPU for CLIP on the CPU": (
        ["data.tagger={type: clip, path: x, tags: y, gpus: 0.5}"],
        "tagger: gpus 0.5 needs device 'cuda', got 'cpu'; write device: cuda",
    ),
    "one probability": (
        ["data.degradation={second: {sinc_probability: 2}}"],
        "sinc_probability must be between 0 and 1, got 2.0",
    ),
    "a falling range": (
        ["data.degradation={first: {blur_sigma: [3, 1]}}"],
        "blur_sigma must be [low, high] with 0 <= low <= high, got [3.0, 1.0]",
    ),
}
"""What is wrong -> overrides of a valid recipe, and what the message must hold."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    file.write_text(yaml.safe_dump(MINIMAL))
    return file


def test_the_recipe_without_overrides_is_fine(recipe: Path) -> None:
    assert load_config(recipe).train.groups_per_step == 4


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal_says_expected_got_and_instead(recipe: Path, case: str) -> None:
    overrides, message = REFUSALS[case]
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, overrides)
    assert message in str(caught.value)


PROGRAM = """
import sys, time
from pathlib import Path
from rl.config.load import ConfigError, load_config
try:
    load_config(Path(sys.argv[1]), sys.argv[2:])
except ConfigError as error:
    print(error)
print(time.process_time())
"""


@pytest.mark.parametrize("case", ["group of one", "updates over micro-batches", "equal rewards"])
def test_refusal_takes_under_a_second_of_a_fresh_process(recipe: Path, case: str) -> None:
    """Processor time of interpreter, imports, reading and checking, so that a busy machine does not matter."""
    overrides, message = REFUSALS[case]
    command = [sys.executable, "-c", PROGRAM, str(recipe), *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    *text, seconds = done.stdout.strip().splitlines()
    assert message in "\n".join(text)
    assert float(seconds) < 1.0


@pytest.mark.parametrize("module", ["rl.config.run", "rl.config.load", "rl.types", "actors.cli", "actors.preflight"])
def test_light_modules_import_nothing_heavy(module: str) -> None:
    """Neither a refusal nor `isrl --help` waits for torch."""
    heavy = ("torch", "ray", "deepspeed", "diffusers", "transformers", "peft", "pyiqa", "wandb")
    program = f"import sys, {module}; print(sorted(set({heavy}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""What makes a checkpoint another run's: any key but those that may change, and any byte of data and weights."""

import os
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from actors.same_run import MAY_CHANGE, RunIdentity
from rewards.sections import PyiqaSection
from rl.config.load import read_recipe, validate
from rl.config.offline import OfflineConfig
from rl.config.online import RunConfig

ROOT = Path(__file__).parents[2]
Identify = Callable[..., RunIdentity]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in "ab":
        noise = np.random.default_rng(ord(name)).integers(0, 256, (128, 128, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    folder = tmp_path / "policy"
    shutil.copytree(ROOT / "rl" / "policies" / "flux2sr" / "weights" / "mini", folder)
    return folder


@pytest.fixture
def identify(tmp_path: Path, photos: Path, policy: Path) -> Identify:
    def make(*overrides: str) -> RunIdentity:
        file = tmp_path / "recipe.yaml"
        file.write_text(
            "kind: online\nrewards: [{name: psnr_y, type: pyiqa}, {name: mine, type: python, file: FILE}]\n"
        )
        (tmp_path / "mine.py").touch()
        mine = f"rewards.1.file={tmp_path}/mine.py"
        raw = read_recipe(file, (f"data.path={photos}", f"policy.path={policy}", mine, *overrides))
        return RunIdentity.of(validate(RunConfig, raw, "test"))

    return make


def keys(now: RunIdentity, then: RunIdentity) -> dict[str, bool]:
    """Changed key -> whether it may."""
    return {change.key: change.allowed for change in now.changes(then)}


ALLOWED = [
    "train.steps=7", "checkpoint.keep=9", "monitor.sample_every=3", "run.dir=elsewhere", "run.name=other",
    "ray.object_store_mb=900", "rollout.workers=3", "rollout.cpus_per_worker=2", "rollout.threads=2",
    "rollout.deadline_s=5", "rewards.0.replicas=2", "rewards.0.retries=7", "rewards.0.batch_groups=2",
    "learner.zero_stage=0", "learner.threads=2", "learner.deadline_s=9", "fleet.strikes=9",
    "learner.optimizer.lr=0.1", "advantage.std_floor=0.5", "policy.gradient_checkpointing=true",
]  # fmt: skip
REFUSED = [
    "seed=1", "train.groups_per_step=2", "train.max_policy_lag=0", "objective.beta=0.3", "rollout.group_size=6",
    "rollout.sampler.steps=3", "rewards.0.weight=2.0", "rewards.1.name=other", "data.crop=64",
    "policy.lora.rank=8", "learner.ema_decay=0.5", "learner.updates_per_batch=3", "policy.dtype=bfloat16",
]  # fmt: skip


@pytest.mark.parametrize("override", ALLOWED)
def test_what_a_resumed_run_may_set_otherwise(override: str, identify: Identify) -> None:
    assert keys(identify(override), identify()) == {override.partition("=")[0]: True}


@pytest.mark.parametrize("override", REFUSED)
def test_everything_else_is_another_run(override: str, identify: Identify) -> None:
    found = keys(identify(override), identify())
    assert found and not any(found.values())


def test_a_change_says_both_values(identify: Identify) -> None:
    (change,) = identify("objective.beta=0.3").changes(identify("objective.beta=0.5"))
    assert str(change) == "objective.beta: 0.5 in the checkpoint, 0.3 now"
    more = identify("eval={data: {path: 'skimage:coffee'}, crops: 2}")
    gone = {change.key: str(change) for change in identify().changes(more)}
    assert gone["eval.crops"] == 'eval.crops: 2 in the checkpoint, "(no such key)" now'


def test_every_byte_and_name_of_the_data_counts(identify: Identify, photos: Path) -> None:
    """Changed with size and time kept; renamed; another order of folders; another image. A hidden file does not."""
    before = identify()
    photo = photos / "a.png"
    content, times = photo.read_bytes(), (photo.stat().st_atime_ns, photo.stat().st_mtime_ns)
    photo.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(photo, ns=times)
    assert keys(identify(), before) == {"what data.path holds": False}
    photo.write_bytes(content)
    assert keys(identify(), before) == {}
    photo.rename(photos / "z.png")
    assert keys(identify(), before) == {"what data.path holds": False}
    (photos / "z.png").rename(photo)
    (photos / ".thumbnails").mkdir()
    (photos / ".thumbnails" / "a.png").touch()
    assert keys(identify(), before) == {}
    both = [str(photos / "a.png"), str(photos / "b.png")]
    assert keys(identify(f"data.path={both[::-1]}"), identify(f"data.path={both}")) == {"what data.path holds": False}


def test_a_path_may_change_what_lies_there_may_not(identify: Identify, photos: Path, policy: Path) -> None:
    before = identify()
    moved = [shutil.copytree(path, path.with_name(f"moved {path.name}")) for path in (photos, policy)]
    paths = (f"data.path={moved[0]}", f"policy.path={moved[1]}")
    assert keys(identify(*paths), before) == {}
    weights = moved[1] / "transformer" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert keys(identify(*paths), before) == {"what policy.path holds": False}


def test_code_and_weights_of_rewards_count(identify: Identify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's file; downloaded weights once they are there: a checkpoint from before knows nothing of them."""
    before = identify()
    (tmp_path / "mine.py").write_text("def score(images, lr, hr, scale): ...")
    assert keys(identify(), before) == {"what rewards.1.file holds": False}
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    metric = "rewards.0={name: cnniqa, type: pyiqa}"
    absent = identify(metric)
    (file,) = PyiqaSection(name="cnniqa").weights() or ()
    file.path.parent.mkdir(parents=True)
    file.path.write_bytes(b"weights")
    found = identify(metric)
    file.path.write_bytes(b"others")
    assert keys(found, absent) == {}
    assert keys(identify(metric), found) == {"what rewards.0.weights holds": False}


def test_adapters_count(identify: Identify, tmp_path: Path) -> None:
    """As the start and as the reference."""
    files = []
    for value in (1, 2):
        folder = tmp_path / str(value)
        folder.mkdir()
        save_file({"w": np.full(3, value, np.float32)}, folder / "lora.safetensors")
        files.append(folder / "lora.safetensors")
    first, second = (identify(f"policy.lora.init_from={file}") for file in files)
    changed = {"what policy.lora.init_from holds": False, "what policy.reference holds": False}
    assert keys(second, first) == changed
    assert keys(second, identify()) == {"policy.lora.init_from": False}


def test_a_pool_counts(tmp_path: Path, write_pool: Callable[..., Path]) -> None:
    pool = write_pool(tmp_path / "pool", images=2)
    raw: dict[str, Any] = {
        "policy": {"type": "naosd"}, "objective": {"type": "gdpo"}, "scores": [{"name": "psnr"}],
        "pools": {"path": str(pool), "group_size": 2},
    }  # fmt: skip
    config = validate(OfflineConfig, raw, "test")
    before = RunIdentity.of(config)
    assert RunIdentity.of(config) == before == RunIdentity.from_json(before.to_json())
    (pool / "img" / "sr0_0.png").unlink()
    assert keys(RunIdentity.of(config), before) == {"what pools.path holds": False}


def test_every_pattern_is_a_key_of_a_recipe(identify: Identify, tmp_path: Path) -> None:
    """A key that was renamed would silently become one that may not change."""
    held_out = "eval={data: {path: 'skimage:coffee'}}"
    tagger = f"data.tagger={{type: python, file: {tmp_path}/mine.py}}"
    full = identify(held_out, tagger, "rollout.autoscale={max: 2}")
    lost = [pattern for pattern in MAY_CHANGE if not any(fnmatch(key, pattern) for key in full.config)]
    assert lost == []

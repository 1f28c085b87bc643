"""Relative input paths of a recipe, made absolute for workers that run in another directory."""

from pathlib import Path

import pytest

from rl.config.load import dump_config, validate
from rl.config.paths import absolute
from rl.config.run import RunConfig
from rl.policies import folders

RAW = {
    "data": {
        "kind": "paired",
        "path": ["skimage:camera", "photos/lr", "/elsewhere/lr"],
        "hr_path": "photos/hr",
        "tagger": {"type": "python", "file": "ram.py", "image": "lr"},
    },
    "policy": {"path": "weights/flux2", "prompt_embeds": "prompt.safetensors", "lora": {"init_from": "a.safetensors"}},
    "rewards": [
        {"name": "mine", "type": "python", "file": "mine.py"},
        {"name": "musiq", "type": "pyiqa", "options": {"pretrained_model_path": "weights/musiq.pth", "x": 1}},
        {"name": "niqe", "type": "pyiqa", "options": {"pretrained_model_path": "https://host/niqe.mat"}},
    ],
    "eval": {"data": {"path": "held_out", "tagger": {"type": "clip", "path": "clip", "tags": "/lists/tags.txt"}}},
}


def test_every_input_path_is_joined_to_the_root(tmp_path: Path) -> None:
    (tmp_path / "weights" / "flux2").mkdir(parents=True)
    (tmp_path / "weights" / "musiq.pth").touch()
    config = absolute(validate(RunConfig, RAW, "test"), tmp_path)
    at = str(tmp_path)
    assert config.data.path == ["skimage:camera", f"{at}/photos/lr", "/elsewhere/lr"]
    assert config.data.hr_path == f"{at}/photos/hr"
    assert config.eval.data is not None and config.eval.data.path == [f"{at}/held_out"]
    ours, held_out = config.data.tagger, config.eval.data.tagger
    assert ours is not None and (ours.file, ours.path, ours.tags, ours.image) == (f"{at}/ram.py", None, None, "lr")
    assert held_out is not None and (held_out.path, held_out.tags) == (f"{at}/clip", "/lists/tags.txt")
    assert config.policy.path == f"{at}/weights/flux2"
    assert config.policy.prompt_embeds == f"{at}/prompt.safetensors"
    assert config.policy.lora.init_from == f"{at}/a.safetensors"
    assert config.rewards[0].file == f"{at}/mine.py"
    assert config.rewards[1].options == {"pretrained_model_path": f"{at}/weights/musiq.pth", "x": 1}
    assert config.rewards[2].options == {"pretrained_model_path": "https://host/niqe.mat"}


def test_everything_else_stays_and_twice_is_once(tmp_path: Path) -> None:
    before = validate(RunConfig, RAW, "test")
    after = absolute(before, tmp_path)
    assert absolute(after, Path("/another")) == after
    assert (after.run, after.train, after.rollout, after.objective) == (
        before.run, before.train, before.rollout, before.objective,
    )  # fmt: skip
    assert str(tmp_path) in dump_config(after)


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    raw = {"data": {"path": "~/photos"}, "rewards": [{"name": "musiq", "type": "pyiqa"}]}
    assert absolute(validate(RunConfig, raw, "test"), tmp_path).data.path == ["/home/me/photos"]


def test_a_preset_is_a_name_even_where_a_folder_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    presets = tmp_path / "package"
    monkeypatch.setattr(folders, "EMBEDDED", presets)
    (tmp_path / "cwd" / "mini").mkdir(parents=True)
    raw = {"data": {"path": "x"}, "policy": {"path": "mini"}, "rewards": [{"name": "musiq", "type": "pyiqa"}]}
    config = validate(RunConfig, raw, "test")
    assert absolute(config, tmp_path / "cwd").policy.path == str(tmp_path / "cwd" / "mini")
    (presets / "flux2sr" / "weights" / "mini").mkdir(parents=True)
    assert absolute(config, tmp_path / "cwd").policy.path == "mini"
    assert absolute(config, tmp_path / "nowhere").policy.path == "mini"

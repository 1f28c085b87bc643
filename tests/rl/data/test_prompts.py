"""Prompts follow names, never positions."""

from pathlib import Path

import pytest

from rl.config.data import PhotoData
from rl.data.prompts import load_prompts
from rl.data.source import TaskSource
from rl.errors import MissingInput

NAMES = ("skimage:camera", "skimage:brick")


def config(**values: object) -> PhotoData:
    return PhotoData.model_validate({"path": list(NAMES), "crop": 64, **values})


def test_one_text_for_all_with_the_published_suffix() -> None:
    assert load_prompts(config(), NAMES) == dict.fromkeys(NAMES, "")
    assert load_prompts(config(prompt="a wall"), NAMES) == dict.fromkeys(NAMES, "a wall")
    found = load_prompts(config(prompt_suffix="clean, 8k"), NAMES)
    assert found == dict.fromkeys(NAMES, "clean, 8k")


def test_every_task_gets_the_text_of_its_own_image(tmp_path: Path) -> None:
    (tmp_path / "camera.txt").write_text("a man, a camera\n")
    (tmp_path / "brick.txt").write_text("bricks")
    source = TaskSource(config(prompt_path=str(tmp_path), prompt_suffix="8k"), 0)
    expected = {"skimage:camera": "a man, a camera, 8k", "skimage:brick": "bricks, 8k"}
    for task in [source.task(ordinal) for ordinal in range(6)]:
        assert task.prompt == expected[task.lr_id.partition("@")[0]]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "camera.txt").write_text("x")
    with pytest.raises(MissingInput, match=r"1 of 2 are missing: .*brick.txt"):
        TaskSource(config(prompt_path=str(tmp_path)), 0)


def test_both_kinds_at_once_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        config(prompt="x", prompt_path=str(tmp_path))

"""Relative input paths of a recipe, made absolute for workers that run in another directory."""

from pathlib import Path
from typing import Any

import pytest

from rl.config.base import InputPath
from rl.config.load import dump_config, validate
from rl.config.online import RunConfig
from rl.config.policy import policy_section
from rl.config.pretrain import PretrainSection

RAW: dict[str, Any] = {
    "data": {"kind": "paired", "path": ["skimage:camera", "photos/lr", "/elsewhere/lr"], "hr_path": "photos/hr"},
    "policy": {
        "path": "weights/flux2", "prompt_embeds": "prompt.safetensors", "reference": "ref.safetensors",
        "lora": {"init_from": "a.safetensors"},
    },
    "rewards": [{"name": "musiq", "type": "pyiqa"}],
    "eval": {"data": {"path": "held_out", "prompt_path": "texts"}},
}  # fmt: skip
NAOSD: dict[str, Any] = {
    **RAW, "policy": {"type": "naosd", "path": "sd", "merge": ["a.pkl", "/b.pkl"]}, "objective": {"type": "gdpo"},
}  # fmt: skip

NO_PATHS = {
    "TrainingSection.kind": "a choice", "PretrainSection.kind": "a choice",
    "RunSection.dir": "output", "PretrainSection.out": "output",
    "RunSection.name": "a name", "RewardSection.name": "a name", "ScoreSection.name": "a name",
    "CheckpointSection.best": "a name",
    "PolicySection.type": "a name of the registry", "ObjectiveSection.type": "a name of the registry",
    "ServerSection.type": "a name of the registry", "DataSection.kind": "a name of the registry",
    "SamplerSection.solver": "a name of the registry", "AdvantageSection.aggregation": "a name of the registry",
    "LoraSection.targets": "a name of the policy's table",
    "PyiqaSection.metric": "a name of pyiqa's", "PyiqaSection.options": "PyiqaSection.absolute joins its one path",
    "ServerSection.runtime_env": "Ray's own, whose paths Ray resolves in the driver",
    "PromptSection.prompt": "a text", "PromptSection.prompt_suffix": "a text", "ClipTaggerSection.template": "a text",
    "RayConfig.address": "an address",
    "MonitorConfig.project": "a name at W&B", "MonitorConfig.entity": "a name at W&B",
}  # fmt: skip
"""Fields that hold text and are not marked, by the section that declares them -> what the text is. A pretraining runs
in the user's own process and directory, so none of its fields has to be."""


def test_every_text_of_every_section_is_a_marked_path_or_said_not_to_be_one(every_field: list[Any]) -> None:
    unmarked = {
        _declared(field)
        for field in every_field
        if {str, object} & set(field.types())
        and not any(isinstance(mark, InputPath) for mark in field.marks)
        and not _only_in_pretraining(field)
    }
    assert unmarked <= set(NO_PATHS)


def _declared(field: Any) -> str:
    """`Section.field` of the first class that has it."""
    owner = [cls for cls in field.section.__mro__ if field.name in getattr(cls, "model_fields", {})][-1]
    return f"{owner.__name__}.{field.name}"


def _only_in_pretraining(field: Any) -> bool:
    from rl.config import pretrain

    return issubclass(field.section, PretrainSection) or hasattr(pretrain, field.section.__name__)


def test_every_input_path_is_joined_to_the_root(tmp_path: Path) -> None:
    (tmp_path / "weights" / "flux2").mkdir(parents=True)
    (tmp_path / "ref.safetensors").touch()
    config = validate(RunConfig, RAW, "test").absolute(tmp_path)
    at = str(tmp_path)
    assert config.data.path == ["skimage:camera", f"{at}/photos/lr", "/elsewhere/lr"]
    assert config.data.model_dump()["hr_path"] == f"{at}/photos/hr"
    assert config.eval is not None
    assert (config.eval.data.path, config.eval.data.prompt_path) == ([f"{at}/held_out"], f"{at}/texts")
    assert config.policy.path == f"{at}/weights/flux2"
    assert config.policy.prompt_embeds == f"{at}/prompt.safetensors"
    assert config.policy.reference == f"{at}/ref.safetensors"
    assert config.policy.lora.init_from == f"{at}/a.safetensors"
    naosd = validate(RunConfig, NAOSD, "test").absolute(tmp_path).policy.model_dump()
    assert (naosd["merge"], naosd["reference"]) == ([f"{at}/a.pkl", "/b.pkl"], "start")


def test_everything_else_stays_and_twice_is_once(tmp_path: Path) -> None:
    before = validate(RunConfig, RAW, "test")
    after = before.absolute(tmp_path)
    assert after.absolute(Path("/another")) == after
    assert (after.run, after.train, after.rollout, after.objective) == (
        before.run, before.train, before.rollout, before.objective,
    )  # fmt: skip
    assert str(tmp_path) in dump_config(after)
    assert validate(RunConfig, after.model_dump(mode="json"), "test") == after


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    raw = {"data": {"path": "~/photos"}, "rewards": [{"name": "musiq", "type": "pyiqa"}]}
    assert validate(RunConfig, raw, "test").absolute(tmp_path).data.path == ["/home/me/photos"]


def test_a_preset_is_a_name_even_where_a_folder_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = policy_section(path="mini")
    (tmp_path / "cwd" / "mini").mkdir(parents=True)
    monkeypatch.setattr(type(section), "presets", None)
    assert section.absolute(tmp_path / "cwd").path == str(tmp_path / "cwd" / "mini")
    monkeypatch.setattr(type(section), "presets", tmp_path / "package")
    assert section.absolute(tmp_path / "cwd").path == str(tmp_path / "cwd" / "mini")
    (tmp_path / "package" / "mini").mkdir(parents=True)
    assert section.absolute(tmp_path / "cwd").path == "mini"
    assert section.absolute(tmp_path / "nowhere").path == "mini"


@pytest.mark.parametrize("word", ["start", "base"])
def test_a_word_for_the_reference_stays_even_where_a_folder_has_it(word: str, tmp_path: Path) -> None:
    (tmp_path / word).mkdir()
    assert policy_section(reference=word).absolute(tmp_path).reference == word

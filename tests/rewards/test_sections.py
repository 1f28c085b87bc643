"""The unions of rewards and taggers: each type has the keys that it reads; a user's own section joins by its name."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import ValidationError

from rewards import build_reward, check_reward
from rewards.sections import (
    LrConsistencySection,
    NoiseSection,
    PyiqaSection,
    PythonRewardSection,
    SharpnessSection,
)
from rewards.taggers.sections import ClipTaggerSection, PythonTaggerSection
from rl.config.base import Section
from rl.config.open_union import OpenUnion, load
from rl.config.reward import REWARDS, AnyReward, RewardSection
from rl.config.tagger import TAGGERS, AnyTagger, TaggerSection


class Recipe(Section):
    rewards: list[AnyReward] = []
    tagger: AnyTagger | None = None


def recipe(reward: dict[str, Any]) -> RewardSection:
    return Recipe.model_validate({"rewards": [reward]}).rewards[0]


@pytest.mark.parametrize("registry, base", [(REWARDS, RewardSection), (TAGGERS, TaggerSection)])
def test_every_entry_of_the_registries_loads(registry: dict[str, str], base: type[Section]) -> None:
    for name, reference in registry.items():
        section = load(reference)
        assert issubclass(section, base) and section.model_fields["type"].default == name
        assert isinstance(load(section.builder), type)


def test_a_type_chooses_its_section_and_a_dump_reads_back() -> None:
    raw = [
        {"name": "musiq", "type": "pyiqa", "options": {"longer_side_lengths": 3}},
        {"name": "psnr", "type": "pyiqa", "metric": "psnr_y", "device": "cuda", "gpus": 0.5},
        {"name": "lr", "type": "lr_consistency", "cap_db": 40},
        {"name": "mine", "type": "python", "file": "mine.py", "gpus": 1},
        {"name": "sharp", "type": "sharpness", "map": False},
        {"name": "noise", "type": "noise"},
    ]
    tagger = {"type": "clip", "path": "clip", "tags": "tags.txt"}
    made = Recipe.model_validate({"rewards": raw, "tagger": tagger})
    kinds = [PyiqaSection, PyiqaSection, LrConsistencySection, PythonRewardSection, SharpnessSection, NoiseSection]
    assert [type(reward) for reward in made.rewards] == kinds
    assert type(made.tagger) is ClipTaggerSection
    assert Recipe.model_validate(made.model_dump(mode="json")) == made
    assert pickle.loads(pickle.dumps(made)) == made
    assert made.model_dump()["rewards"][2]["cap_db"] == 40


@pytest.mark.parametrize(
    "kind, needed, unread",
    [
        ("pyiqa", {}, {"file": "x.py"}),
        ("pyiqa", {}, {"cap_db": 40}),
        ("lr_consistency", {}, {"metric": "psnr"}),
        ("lr_consistency", {}, {"options": {"cap_db": 40}}),
        ("lr_consistency", {}, {"file": "x.py"}),
        ("sharpness", {}, {"cap_db": 40}),
        ("sharpness", {}, {"device": "cpu"}),
        ("noise", {}, {"options": {}}),
        ("python", {"file": "x.py"}, {"metric": "psnr"}),
        ("python", {"file": "x.py"}, {"options": {"a": 1}}),
        ("python", {"file": "x.py"}, {"device": "cpu"}),
    ],
)
def test_a_reward_refuses_keys_that_its_type_does_not_read(
    kind: str, needed: dict[str, Any], unread: dict[str, Any]
) -> None:
    accepted = {"name": "r", "type": kind, **needed}
    recipe(accepted)
    (key,) = unread
    with pytest.raises(ValidationError) as caught:
        recipe(accepted | unread)
    (error,) = caught.value.errors()
    assert (error["type"], error["loc"]) == ("extra_forbidden", ("rewards", 0, key))


CLIP = {"type": "clip", "path": "clip", "tags": "tags.txt"}
FILE = {"type": "python", "file": "x.py"}


@pytest.mark.parametrize(
    "accepted, unread",
    [(CLIP, {"file": "x.py"})]
    + [(FILE, {key: value}) for key, value in (*list(CLIP.items())[1:], ("template", "{}"), ("top_k", 3))]
    + [(FILE, {"threshold": 0.5}), (FILE, {"device": "cpu"})],
)
def test_a_tagger_refuses_keys_that_its_type_does_not_read(accepted: dict[str, Any], unread: dict[str, Any]) -> None:
    Recipe.model_validate({"tagger": accepted})
    (key,) = unread
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate({"tagger": accepted | unread})
    (error,) = caught.value.errors()
    assert (error["type"], error["loc"][-1]) == ("extra_forbidden", key)


@pytest.mark.parametrize(
    "raw, message",
    [
        ({"name": "r", "type": "pyiqua"}, "lr_consistency, sharpness, noise, python, or package.*:Class, got 'pyiqua'"),
        ({"name": "r"}, "got None"),
        ({"name": "r", "type": "nowhere.at_all:Mine"}, "'nowhere.at_all:Mine': No module named 'nowhere'"),
        ({"name": "r", "type": "rewards.sections:Mine"}, "has no attribute 'Mine'"),
        ({"name": "r", "type": "rewards.base:RewardError"}, "expected a class that extends RewardSection"),
        ({"name": "a/b", "type": "pyiqa"}, "expected text without '/', because metric keys hold it, got 'a/b'"),
        ({"name": "r", "type": "pyiqa", "device": "cuda"}, "reward 'r': device 'cuda' needs gpus above 0"),
        ({"name": "r", "type": "pyiqa", "gpus": 0.5}, "reward 'r': gpus 0.5 needs device 'cuda', got 'cpu'"),
        ({"name": "r", "type": "lr_consistency", "cap_db": 0}, "greater than 0"),
        ({"name": "r", "type": "python"}, "file\n  Field required"),
    ],
)  # fmt: skip
def test_refusals(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe(raw)


def test_a_template_has_one_place_for_the_tag() -> None:
    with pytest.raises(ValidationError, match="must hold {} once"):
        Recipe.model_validate({"tagger": {**CLIP, "template": "a photo"}})


def test_paths_become_absolute(tmp_path: Path) -> None:
    (tmp_path / "w.pth").touch()
    raw = [
        {"name": "a", "type": "python", "file": "mine.py"},
        {"name": "b", "type": "pyiqa", "options": {"pretrained_model_path": "w.pth", "net": "w.pth"}},
        {"name": "c", "type": "pyiqa", "options": {"pretrained_model_path": "https://host/niqe.mat"}},
        {"name": "d", "type": "pyiqa"},
    ]
    rewards = [reward.absolute(tmp_path) for reward in Recipe.model_validate({"rewards": raw}).rewards]
    assert [getattr(reward, "file", None) or getattr(reward, "options", None) for reward in rewards] == [
        f"{tmp_path}/mine.py",
        {"pretrained_model_path": f"{tmp_path}/w.pth", "net": "w.pth"},
        {"pretrained_model_path": "https://host/niqe.mat"},
        {},
    ]
    tagger = ClipTaggerSection(path="clip", tags="tags.txt").absolute(tmp_path)
    assert (tagger.path, tagger.tags) == (f"{tmp_path}/clip", f"{tmp_path}/tags.txt")
    assert PythonTaggerSection(file="x.py").absolute(tmp_path).file == f"{tmp_path}/x.py"


OWN = """
from typing import ClassVar
import numpy as np
from rl.config.reward import RewardSection

class BrightnessSection(RewardSection):
    builder: ClassVar[str] = "my_reward:Brightness"
    target: float = 0.5

    def check(self, *, has_hr, sr_side):
        if sr_side is not None and sr_side < 64:
            raise ValueError(f"needs sides of at least 64 pixels, got {sr_side}")

class Brightness:
    needs_hr = False

    def __init__(self, section):
        self.name, self.target = section.name, section.target

    def score(self, images, lr, hr, scale):
        return -np.abs(images.mean(axis=(1, 2, 3)) / 255 - self.target)
"""


def test_a_users_own_section_needs_no_registration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    (tmp_path / "my_reward.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    section = recipe({"name": "light", "type": "my_reward:BrightnessSection", "target": 0.25})
    with pytest.raises(ValueError, match="reward 'light': needs sides of at least 64 pixels, got 32"):
        check_reward(section, has_hr=False, sr_side=32)
    images = np.stack([np.full((3, 8, 8), value, np.uint8) for value in (0, 51, 255)])
    scores = build_reward(section).score(images, images[0], None, 1)
    np.testing.assert_allclose(scores, [-0.25, -0.05, -0.75])
    with pytest.raises(ValidationError, match="extra_forbidden"):
        recipe({"name": "light", "type": "my_reward:BrightnessSection", "metric": "psnr"})
    assert recipe(section.model_dump()) == section


def test_sections_are_read_without_torch() -> None:
    code = (
        "import sys; from pydantic import TypeAdapter; from rl.config.reward import AnyReward\n"
        "adapter = TypeAdapter(AnyReward)\n"
        "for kind in ('pyiqa', 'lr_consistency', 'noise'): adapter.validate_python({'name': 'r', 'type': kind})\n"
        "print([m for m in ('torch', 'pyiqa', 'ray', 'deepspeed') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_errors_inside_a_member_keep_their_place() -> None:
    """`OpenUnion` validates by the member's own class; the path of the outer section stands before the member's."""

    class Outer(Section):
        one: Annotated[RewardSection, OpenUnion(REWARDS, base=RewardSection)]

    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"one": {"name": "r", "type": "pyiqa", "replicas": 0, "weight": -1}})
    assert {error["loc"] for error in caught.value.errors()} == {("one", "replicas"), ("one", "weight")}

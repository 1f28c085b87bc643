"""A section of a user's own, named by `module:Class`, is a section like ours."""

import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rl.config.load import ConfigError, dump_config, load_config, load_recipe
from rl.config.online import RunConfig

OWN = '''
"""Sections that lie outside of the package."""
from typing import Annotated, ClassVar

from rl.config.base import InputPath
from rl.config.data import DataSection
from rl.config.objective import ObjectiveSection
from rl.config.policy import PolicySection


class Tiny(PolicySection):
    builder = "{module}:Model"
    size_multiple = 8
    prediction = "velocity"
    lora_targets: ClassVar[dict[str, tuple[str, ...]]] = {{"all": ("conv",), "some": ("conv1",)}}
    files = ("config.json",)
    trained = ("net",)
    tile_px = 64

    type: str = "{module}:Tiny"
    reads_text = False
    width: int = 4
    priors: Annotated[list[str], InputPath()] = []


class Mean(ObjectiveSection):
    builder = "{module}:MeanObjective"

    type: str = "{module}:Mean"
    power: float = 2.0

    def slots(self, sampler):
        return 3


class Microscope(DataSection):
    kind: str = "{module}:Microscope"
    plane: int = 0


class NoSection:
    pass
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that is on the path, with sections in it."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(OWN.format(module=name))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


@pytest.fixture
def load(recipe: Path) -> Callable[..., RunConfig]:
    return lambda *overrides: load_config(recipe, overrides)


def test_it_is_accepted_dumped_loaded_back_and_pickled(
    module: str, load: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = load(
        f"policy={{type: '{module}:Tiny', width: 6, path: weights}}", f"objective={{type: '{module}:Mean', power: 3}}",
        f"data={{kind: '{module}:Microscope', path: x, crop: 40, plane: 2}}", "learner.updates_per_batch=3",
    )  # fmt: skip
    assert [type(section).__name__ for section in (config.policy, config.objective, config.data)] == [
        "Tiny", "Mean", "Microscope",
    ]  # fmt: skip
    assert (config.policy.type, config.policy.model_dump()["width"], config.policy.lora.targets) == (
        f"{module}:Tiny", 6, "all",
    )  # fmt: skip
    assert (config.slots, config.micro_batches_per_update) == (3, 4)
    copy = tmp_path / "config.yaml"
    copy.write_text(dump_config(config))
    assert load_recipe(copy) == config == pickle.loads(pickle.dumps(config))
    assert yaml.safe_load(copy.read_text())["data"]["plane"] == 2


def test_its_facts_and_keys_are_checked_as_ours(module: str, load: Callable[..., RunConfig]) -> None:
    for overrides, message in (
        (["data.crop=36"], f"data.crop must be divisible by 8 for policy '{module}:Tiny', got 36; write 32 or 40"),
        (["policy.widht=3"], "policy.widht: unknown key; did you mean 'width'?"),
        (["policy.t_add=3"], f"policy.t_add: unknown key for policy type '{module}:Tiny'; read by naosd"),
        (["policy.lora.targets=none"], f"must be one of ['all', 'some'] for policy '{module}:Tiny', got 'none'"),
    ):
        with pytest.raises(ConfigError) as caught:
            load(f"policy.type={module}:Tiny", *overrides)
        assert message in str(caught.value)


def test_a_policy_without_text_needs_no_embedding_and_takes_no_prompt(
    module: str, load: Callable[..., RunConfig], tmp_path: Path
) -> None:
    (tmp_path / "config.json").touch()
    policy = f"policy={{type: '{module}:Tiny', path: {tmp_path}}}"
    config = load(policy)
    config.policy.check()
    config.policy.check_prompts("data", config.data)
    with pytest.raises(ConfigError, match=f"prompt_embeds: policy '{module}:Tiny' reads no text; remove it"):
        load(policy, "policy.prompt_embeds=x.safetensors")
    with pytest.raises(ValueError, match=f"data.prompt: policy '{module}:Tiny' reads no prompts; remove it"):
        config.policy.check_prompts("data", load(policy, "data.prompt=a wall").data)


def test_its_input_paths_are_made_absolute(module: str, load: Callable[..., RunConfig]) -> None:
    config = load(f"policy={{type: '{module}:Tiny', path: /weights, priors: [a.pt, /b.pt]}}").absolute(Path("/root"))
    assert config.policy.model_dump()["priors"] == ["/root/a.pt", "/b.pt"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nowhere_at_all:Tiny",
            "policy: 'nowhere_at_all:Tiny': No module named 'nowhere_at_all'; a module is found",
        ),
        ("{module}:Absent", "has no attribute 'Absent'; a module is found in the directory that isrl is started from"),
        ("{module}:NoSection", "expected a class that extends PolicySection, got <class '{module}.NoSection'>"),
        ("{module}:Mean", "expected a class that extends PolicySection, got <class '{module}.Mean'>"),
        (":Tiny", "Empty module name"),
        ("tiny", "policy: type must be one of flux2sr, naosd, or package.module:Class, got 'tiny'"),
        ("3", "policy: type must be one of flux2sr, naosd, or package.module:Class, got 3"),
    ],
)
def test_what_is_no_section_is_refused(module: str, load: Callable[..., RunConfig], name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(f"policy.type={name.format(module=module)}")
    assert message.format(module=module) in str(caught.value)

"""What is refused before a process starts, beyond what the configuration alone can tell."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.preflight import preflight
from rl.config.load import ConfigError

GOOD = "def tag(images): return ['a wall'] * len(images)\n"


@pytest.fixture
def refusal(tmp_path: Path) -> Callable[[Any], str]:
    """The message of preflight, or an empty text where it passes."""

    def message(config: Any) -> str:
        section = config.run.model_copy(update={"dir": str(tmp_path / "run")})
        try:
            preflight(config.model_copy(update={"run": section}), resume=False)
        except ConfigError as error:
            return str(error)
        return ""

    return message


@pytest.fixture
def tags(tmp_path: Path) -> Path:
    file = tmp_path / "tags.py"
    file.write_text(GOOD)
    return file


PROMPTS = {
    "data.prompt=a wall": "data.prompt",
    "data.prompt_path=texts": "data.prompt_path",
    "data.prompt_suffix=8k": "data.prompt_suffix",
    "data.tagger={type: python, file: TAGS}": "data.tagger",
    "eval.data={path: [skimage:camera], tagger: {type: python, file: TAGS}}": "eval.data.tagger",
}


@pytest.mark.parametrize("override", PROMPTS)
def test_prompts_need_a_policy_that_reads_them(
    override: str, refusal: Callable[[Any], str], run_config: Callable[..., Any], naosd_config: Callable[..., Any],
    tiny_flux2_folder: Path, tiny_sd21_folder: Path, tmp_path: Path, tags: Path,
) -> None:  # fmt: skip
    """flux2sr never does; naosd does with its text encoder, and does not with a cached embedding."""
    key = PROMPTS[override]
    override = override.replace("TAGS", str(tags))
    said = refusal(run_config(override))
    cached = tiny_flux2_folder / "prompt_embeds.safetensors"
    assert f"{key}: policy 'flux2sr' has one cached embedding for all images, {cached}" in said
    assert said.endswith("and reads no prompts; remove it")
    assert refusal(naosd_config(override)) == ""
    embeds = tmp_path / "embeds.safetensors"
    np.save(embeds, np.zeros(1))
    embeds.with_suffix(".safetensors.npy").rename(embeds)
    assert f"{key}: policy 'naosd' has one" in refusal(naosd_config(override, f"policy.prompt_embeds={embeds}"))


def test_several_prompts_are_named_together(refusal: Callable[[Any], str], run_config: Callable[..., Any]) -> None:
    said = refusal(run_config("data.prompt=a wall", "data.prompt_suffix=8k"))
    assert "data.prompt, data.prompt_suffix: policy 'flux2sr'" in said and said.endswith("remove them")
    assert refusal(run_config()) == ""


@pytest.mark.parametrize(
    ("tagger", "message"),
    [
        ("{type: python, file: nowhere.py}", "data.tagger: file 'nowhere.py' does not exist"),
        ("{type: python, file: WRONG}", "has no top-level tag(); expected `def tag(images)`"),
        ("{type: clip, path: nowhere, tags: LIST}", "data.tagger: path: expected a local folder with a CLIP model"),
        ("{type: clip, path: CLIP, tags: nowhere.txt}", "data.tagger: tags: file 'nowhere.txt' does not exist"),
        ("{type: clip, path: CLIP, tags: LIST}", ""),
    ],
)
def test_what_a_tagger_needs_has_to_be_there(
    tagger: str, message: str, refusal: Callable[[Any], str], naosd_config: Callable[..., Any], tiny_clip_folder: Path,
    tmp_path: Path, tags: Path,
) -> None:  # fmt: skip
    (tmp_path / "list.txt").write_text("sky\nwater\n")
    (tmp_path / "wrong.py").write_text("def tags(images): pass\n")
    places = {"LIST": tmp_path / "list.txt", "WRONG": tmp_path / "wrong.py", "CLIP": tiny_clip_folder}
    for name, path in places.items():
        tagger = tagger.replace(name, str(path))
    said = refusal(naosd_config(f"data.tagger={tagger}"))
    assert message in said and bool(message) == bool(said)

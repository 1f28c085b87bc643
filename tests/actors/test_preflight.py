"""What is refused before a process starts, beyond what the configuration alone can tell."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from actors.checkpoints import Checkpoints, ControllerState
from actors.preflight import preflight
from actors.same_run import RunIdentity
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
    "data.prompt_path=TEXTS": "data.prompt_path",
    "data.prompt_suffix=8k": "data.prompt_suffix",
    "data.tagger={type: python, file: TAGS}": "data.tagger",
    "eval={crops: 4, data: {path: [skimage:camera], tagger: {type: python, file: TAGS}}}": "eval.data.tagger",
}


@pytest.mark.parametrize("override", PROMPTS)
def test_prompts_need_a_policy_that_reads_them(
    override: str, refusal: Callable[[Any], str], run_config: Callable[..., Any], naosd_config: Callable[..., Any],
    tiny_flux2_folder: Path, tiny_sd21_folder: Path, tmp_path: Path, tags: Path,
) -> None:  # fmt: skip
    """flux2sr never does; naosd does with its text encoder, and does not with a cached embedding."""
    key = PROMPTS[override]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "camera.txt").write_text("a man")
    override = override.replace("TAGS", str(tags)).replace("TEXTS", str(tmp_path / "texts"))
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


def test_data_that_is_too_small_is_refused(
    refusal: Callable[[Any], str], run_config: Callable[..., Any], tmp_path: Path
) -> None:
    """By the images' sizes: crops of training and evaluation, and the number of held-out crops."""
    Image.new("RGB", (200, 100)).save(tmp_path / "wide.png")
    held_out = "eval.data={path: [skimage:coffee], crop: 128}"
    cases = {
        (f"data.path={tmp_path}",): "data.path: every image must be at least 128x128, too small: wide (200x100)",
        ("data.crop=1024",): "data.path: every image must be at least 1024x1024, too small: skimage:camera (512x512)",
        ("eval.data={path: [skimage:coffee], crop: 512}",): (
            "eval.data.path: every image must be at least 512x512, too small: skimage:coffee (600x400)"
        ),
        (held_out, "eval.crops=13"): "eval.crops: 13 asked, but the images hold only 12 crops of 128 px",
        (held_out, "eval.crops=12"): "",
    }
    for overrides, message in cases.items():
        said = refusal(run_config(*overrides))
        assert message in said and bool(message) == bool(said)


def test_pairs_and_prompt_files_have_to_be_whole(
    refusal: Callable[[Any], str], run_config: Callable[..., Any], naosd_config: Callable[..., Any], tmp_path: Path
) -> None:
    for folder, side in (("lr", 64), ("hr", 128)):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (side, side)).save(tmp_path / folder / "a.png")
    pairs = f"data={{kind: paired, path: {tmp_path}/lr, hr_path: {tmp_path}/hr, crop: 64}}"
    assert "data.pair 'a': expected HR 256x256, got 128x128" in refusal(run_config(pairs))
    (tmp_path / "hr" / "a.png").rename(tmp_path / "hr" / "b.png")
    assert "no HR image" in refusal(run_config(pairs))
    texts = f"data.prompt_path={tmp_path}/texts"
    assert f"data.prompt_path {tmp_path}/texts: expected one .txt per image, 1 of 1" in refusal(naosd_config(texts))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "camera.txt").write_text("a man")
    assert refusal(naosd_config(texts)) == ""


def test_a_run_dir_that_cannot_be_written_is_refused(run_config: Callable[..., Any], tmp_path: Path) -> None:
    """Under a file; nothing is made, where it can be written either."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"run.dir .*file/deep/run: cannot be written: Not a directory; name another"):
        preflight(run_config(f"run.dir={tmp_path}/file/deep/run"), resume=False)
    preflight(run_config(f"run.dir={tmp_path}/new/run"), resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_is_resumed_or_has_a_dir_of_its_own(run_config: Callable[..., Any], tmp_path: Path) -> None:
    """One command with --resume serves from the first start on; without it nothing is overwritten."""
    config = run_config(f"run.dir={tmp_path}/run")
    preflight(config, resume=True)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    preflight(config, resume=True)
    (tmp_path / "run" / "metrics.jsonl").touch()
    with pytest.raises(ConfigError, match="metrics.jsonl holds steps, but .*checkpoints no checkpoint to go on from"):
        preflight(config, resume=True)
    with pytest.raises(ConfigError, match="already holds a run; write run.dir=OTHER for a new one"):
        preflight(config, resume=False)
    save(config, tmp_path / "run", step=2)
    with pytest.raises(ConfigError, match="already holds a run; resume it with --resume, or write run.dir=OTHER"):
        preflight(config, resume=False)
    preflight(config, resume=True)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    with pytest.raises(ConfigError, match="already holds a run; resume it with --resume, or write run.dir=OTHER"):
        preflight(config, resume=False)


def save(config: Any, folder: Path, step: int) -> Path:
    """A checkpoint of this run without a learner's state."""
    state = ControllerState(step, {}, {}, {}, RunIdentity.of(config).to_json())
    checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint)
    return asyncio.run(checkpoints.save(state, [], 60))


def test_another_run_is_not_resumed(run_config: Callable[..., Any], tmp_path: Path) -> None:
    """Key, value in the checkpoint, value now and what to do; nothing in the folder changes."""
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (200, 200)).save(photos / "a.png")
    run = (f"run.dir={tmp_path}/run", f"data.path={photos}")
    checkpoint = save(run_config(*run), tmp_path / "run", step=5)
    preflight(run_config(*run, "rollout.workers=3", "train.steps=50", "learner.optimizer.lr=1.0e-5"), resume=True)
    Image.new("RGB", (200, 200), "white").save(photos / "a.png")
    before = sorted((tmp_path / "run").rglob("*"))
    with pytest.raises(ConfigError) as refused:
        preflight(run_config(*run, "objective.beta=0.3", "rollout.workers=3"), resume=True)
    lines = [line.strip() for line in str(refused.value).splitlines()]
    assert lines[:3] == [
        "this run cannot start:",
        f"{checkpoint} is of another run:",
        "objective.beta: 1.0 in the checkpoint, 0.3 now",
    ]
    assert lines[3].startswith('what data.path holds: "') and len(lines) == 5
    adapter = f"policy.lora.init_from={tmp_path}/run/lora/pytorch_lora_weights.safetensors"
    assert lines[4].startswith("set these as they were; or write run.dir=OTHER") and lines[4].endswith(adapter)
    assert sorted((tmp_path / "run").rglob("*")) == before
    with pytest.raises(ConfigError, match="train.steps: expected at least the 5 steps trained, got 4"):
        preflight(run_config(*run, "train.steps=4"), resume=True)


def test_a_damaged_checkpoint_is_not_resumed(run_config: Callable[..., Any], tmp_path: Path) -> None:
    config = run_config(f"run.dir={tmp_path}/run")
    save(config, tmp_path / "run", step=1)
    newest = save(config, tmp_path / "run", step=2)
    file = newest / "controller.json"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        ConfigError, match=rf"{file}: expected \d+ bytes .* to resume from step-000001, remove {newest}"
    ):
        preflight(config, resume=True)
    file.unlink()
    with pytest.raises(ConfigError, match=f"{file}: no such file; to resume from step-000001, remove {newest}"):
        preflight(config, resume=True)


def test_an_adapter_of_another_model_is_refused(
    refusal: Callable[[Any], str], run_config: Callable[..., Any], naosd_config: Callable[..., Any], tmp_path: Path
) -> None:
    """As a start and as a reference, from headers and shapes alone; rl/policies/test_stored.py has the whole table."""
    tensors = {f"unet.a.to_q.lora_{key}.weight": np.ones((4, 4), np.float32) for key in "AB"}
    save_file(tensors, file := tmp_path / "other.safetensors")
    for key in ("lora.init_from", "reference"):
        said = refusal(run_config(f"policy.{key}={file}"))
        assert f"policy.{key}: {file}: unet.a.to_q is no layer of this model under any known name" in said
    said = refusal(run_config(f"policy.lora.init_from={file}", f"policy.reference={file}"))
    assert "policy.lora.init_from: " in said and "policy.reference" not in said, "one file is named once"
    missing = refusal(naosd_config("policy.lora.init_from=nowhere", "policy.merge=[no.pkl]"))
    assert missing.splitlines()[1:] == [
        "  policy.merge: no such file no.pkl",
        "  policy.lora.init_from: no such file or folder nowhere",
    ]


OWN = """
from typing import Annotated, Literal
from rl.config.base import InputPath
from rl.policies.flux2sr.section import Flux2SRSection

class MySection(Flux2SRSection):
    type: Literal["preflight_own:MySection"] = "preflight_own:MySection"
    taste: Annotated[list[str], InputPath()] = []
"""


def test_inputs_of_a_users_own_section_are_looked_for(
    refusal: Callable[[Any], str], run_config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "preflight_own.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    said = refusal(run_config("policy.type=preflight_own:MySection", f"policy.taste=[nowhere, {tmp_path}]"))
    assert said.splitlines()[1:] == ["  policy.taste: no such file or folder nowhere"]

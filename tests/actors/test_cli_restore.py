"""`isrl restore`: what it refuses, prompts per image, and the best of several candidates."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rl.export import LORA_FILE

REFUSED = {
    "shift": (["shift=x"], "shift: expected a number above 0 or 'flux2', got 'x'"),
    "negative shift": (["shift=-2"], "shift: expected a number above 0 or 'flux2', got -2"),
    "no such option": (["--steps", "4"], "No such option: --steps"),
    "policy": (["--policy", "/nowhere"], "policy.path '/nowhere': expected an embedded preset"),
    "no lora": (["--lora", "/nowhere"], "/nowhere: no such LoRA file"),
    "colour": (["--colour", "lab"], "'lab' is not one of 'wavelet', 'adain', 'none'"),
    "scale": (["--scale", "9"], "less than or equal to 8"),
    "t_add": (["t_add=150"], "isrl restore, policy 'flux2sr': t_add: unknown key; remove it"),
    "merge": (["merge=[x.pkl]"], "isrl restore, policy 'flux2sr': merge: unknown key; remove it"),
    "steps": (["sampler.steps=0"], "sampler.steps: Input should be greater than or equal to 1 (got 0)"),
    "two prompts": (["--prompt", "a", "--prompt-path", "b"], "prompt and prompt_path exclude each other"),
    "prompt": (["--prompt", "a cat"], "--prompt: policy 'flux2sr' has one cached embedding for all images"),
    "prompt files": (["--prompt-path", "/nowhere"], "--prompt-path: policy 'flux2sr' has one cached embedding"),
    "no reward": (["--best-of", "4"], "--best-of 4 needs --reward NAME: candidates are picked by a reward"),
    "one candidate": (["--reward", "piqe"], "--reward needs --best-of N: candidates are picked by a reward"),
    "best of one": (["--best-of", "1", "--reward", "piqe"], "should be greater than or equal to 2"),
    "full reference": (
        ["--best-of", "2", "--reward", "psnr"],
        "--reward: reward 'psnr': 'psnr' compares with the HR image, but the data source has none",
    ),
    "no metric": (["--best-of", "2", "--reward", "piq"], "--reward: reward 'piq': pyiqa has no metric 'piq'; nearest:"),
    "too small": (["--best-of", "2", "--reward", "niqe"], "needs sides of at least 192 pixels"),
    "no reward file": (["--best-of", "2", "--reward", "no.py"], "reward 'no': file 'no.py' does not exist"),
    "two of a name": (["--best-of", "2", "--reward", "piqe", "--reward", "piqe.py"], "--reward: names must differ"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_restore_refuses_options(
    case: str, isrl: Callable[..., int], tmp_path: Path, mini_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, message = REFUSED[case]
    Image.new("RGB", (16, 16)).save(tmp_path / "in.png")
    assert isrl("restore", tmp_path / "in.png", tmp_path / "out.png", "--policy", mini_folder, *options) == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message in said and "Traceback" not in said


def test_restore_refuses_files(
    isrl: Callable[..., int], tmp_path: Path, mini_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, text, folder = tmp_path / "in.png", tmp_path / LORA_FILE, tmp_path / "photos"
    Image.new("RGB", (16, 16)).save(photo)
    text.write_text("not safetensors")
    folder.mkdir()
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (16, 16)).save(folder / name)
    cases = {
        (tmp_path / "absent.png", tmp_path / "out.png"): "absent.png: no such file or folder",
        (photo, tmp_path / "out.xyz"): "out.xyz: expected a folder or a file ending in .bmp",
        (photo, text / "deeper" / "out.png"): "cannot be written: Not a directory; name another folder",
        (folder, photo): "in.png: expected a folder, found a file",
        (folder, tmp_path / "out"): "two images differ only in their ending",
        (photo, tmp_path / "out.png", "--lora", text): "expected a safetensors file, got something else",
    }
    for arguments, message in cases.items():
        assert isrl("restore", *arguments, "--policy", mini_folder) == 2
        said = capsys.readouterr().err
        assert message in said and len(said.splitlines()) == 1


def test_restore_gives_every_image_its_prompt(isrl: Callable[..., int], tmp_path: Path, tiny_sd21_folder: Path) -> None:
    """Two equal images with different sidecar texts; t_add and the prompt both change the pixels."""
    photos, texts = tmp_path / "photos", tmp_path / "texts"
    photos.mkdir()
    texts.mkdir()
    grey = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
    for name, text in (("a", "abc"), ("b", "hgf")):
        Image.fromarray(grey).save(photos / f"{name}.png")
        (texts / f"{name}.txt").write_text(text)

    def restored(out: str, *options: object) -> dict[str, np.ndarray]:
        model = ("--type", "naosd", "--policy", tiny_sd21_folder, "--colour", "none")
        assert isrl("restore", photos, tmp_path / out, *model, *options) == 0
        return {file.stem: np.asarray(Image.open(file), int) for file in (tmp_path / out).iterdir()}

    prompted = restored("prompted", "--prompt-path", texts)
    assert prompted["a"].shape == (96, 80, 3) and np.abs(prompted["a"] - prompted["b"]).max() > 1
    fixed = restored("fixed", "--prompt", "abc")
    for name in ("a", "b"):
        np.testing.assert_array_equal(fixed[name], prompted["a"])
    noisier = restored("noisier", "t_add=900", "--prompt", "abc")
    assert np.abs(noisier["a"] - fixed["a"]).mean() > 1


def test_restore_refuses_missing_prompt_files(
    isrl: Callable[..., int], tmp_path: Path, tiny_sd21_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "in.png")
    model = ("--type", "naosd", "--policy", tiny_sd21_folder, "--prompt-path", "/nowhere")
    assert isrl("restore", tmp_path / "in.png", tmp_path / "out.png", *model) == 2
    assert "expected one .txt per image, 1 of 1 are missing" in capsys.readouterr().err


def test_best_of_keeps_the_candidate_that_the_reward_likes(
    isrl: Callable[..., int], tmp_path: Path, tiny_flux2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reward of a user's file is the brightness: the image kept is that of the seed with the highest."""
    (tmp_path / "bright.py").write_text("def score(images, lr, hr, scale): return images.mean(axis=(1, 2, 3))\n")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / "in.png")
    fixed = ("--policy", tiny_flux2_folder, "--colour", "none", "sampler.steps=2", "shift=1.0")
    files = {seed: tmp_path / f"{seed}.png" for seed in (5, 6, 7)}
    for seed, file in files.items():
        assert isrl("restore", tmp_path / "in.png", file, *fixed, "--seed", seed) == 0
    brightness = {seed: np.asarray(Image.open(file), float).mean() for seed, file in files.items()}
    assert len(set(brightness.values())) == 3

    rewards = ("--best-of", 3, "--seed", 5, "--reward", tmp_path / "bright.py")
    capsys.readouterr()
    assert isrl("restore", tmp_path / "in.png", tmp_path / "best.png", *fixed, *rewards) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "best.png"), str(tmp_path / "best.json")]
    said = json.loads((tmp_path / "best.json").read_text())
    picked = max(brightness, key=brightness.__getitem__)
    assert (said["image"], said["seed"]) == ("best.png", picked)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "best.png")), np.asarray(Image.open(files[picked])))
    scored = {row["seed"]: row["scores"]["bright"] for row in said["candidates"]}
    assert scored == pytest.approx(brightness)
    assert max(said["candidates"], key=lambda row: row["combined"])["seed"] == picked


def test_a_reward_that_cannot_score_ends_with_its_reason(
    isrl: Callable[..., int], tmp_path: Path, mini_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.py").write_text("def score(images, lr, hr, scale): return [float('nan')] * len(images)\n")
    Image.new("RGB", (16, 16)).save(tmp_path / "in.png")
    arguments = ("--policy", mini_folder, "sampler.steps=1", "--best-of", 2, "--reward", tmp_path / "bad.py")
    assert isrl("restore", tmp_path / "in.png", tmp_path / "out.png", *arguments) == 1
    assert "2 of 2 scores are not finite" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out.png").exists()

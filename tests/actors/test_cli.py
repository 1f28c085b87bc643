"""The command line: exit codes, messages, and what a refusal costs. No process is started here."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import actors.preflight
from actors import cli
from actors.controller import Outcome
from rl.errors import InputError, RunFailed
from rl.export import LORA_FILE

ROOT = Path(__file__).parents[2]


@pytest.fixture
def isrl(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs `isrl ARGUMENTS` in this process; returns the exit code."""

    def command(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["isrl", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as done:
            return int(done.code or 0)
        return 0

    return command


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    raw = {
        "run": {"dir": str(tmp_path / "run")},
        "data": {"path": "skimage:camera"},
        "rewards": [{"name": "lr_consistency", "type": "lr_consistency"}],
    }
    file.write_text(yaml.safe_dump(raw))
    return file


@pytest.fixture
def train(
    isrl: Callable[..., int], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[..., Any]], int]:
    """Runs `isrl train` with a stand-in for the run itself."""

    def command(run: Callable[..., Any]) -> int:
        monkeypatch.setattr(actors.preflight, "preflight", lambda *_, **__: None)
        monkeypatch.setitem(sys.modules, "actors.run", SimpleNamespace(run=run))
        return isrl("train", recipe)

    return command


def raising(error: BaseException, cause: BaseException | None = None) -> Callable[..., Any]:
    def run(*_: object, **__: object) -> Any:
        raise error from cause

    return run


def test_a_finished_run_is_0_and_an_interrupted_one_130(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(lambda *_, **__: Outcome(24, interrupted=False)) == 0
    assert train(lambda *_, **__: Outcome(7, interrupted=True)) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted after step 7, saved; continue with --resume"
    assert train(raising(KeyboardInterrupt())) == 130


def test_a_failed_run_is_1_and_its_last_line_says_why(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    cause = ValueError("the cause [of it]")
    assert train(raising(RunFailed("run demo: [gpu] out of memory; go on from step-000050 with --resume"), cause)) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") or "ValueError: the cause [of it]" in lines
    assert lines[-1] == "failed run demo: [gpu] out of memory; go on from step-000050 with --resume"


def test_input_is_2_without_a_traceback_and_a_program_error_keeps_its_own(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(raising(InputError("expected [low, high], got [3, 1]"))) == 2
    assert capsys.readouterr().err == "error expected [low, high], got [3, 1]\n"
    with pytest.raises(ValueError, match="a mistake in the program"):
        train(raising(ValueError("a mistake in the program")))


REFUSED = {
    "shift": (["--shift", "x"], "shift: expected a number above 0 or 'flux2', got 'x'"),
    "negative shift": (["--shift", "-2"], "shift: expected a number above 0 or 'flux2', got '-2'"),
    "policy": (["--policy", "/nowhere"], "policy.path '/nowhere': expected an embedded preset"),
    "no lora": (["--lora", "/nowhere"], "/nowhere: no such LoRA file"),
    "colour": (["--colour", "lab"], "'lab' is not one of 'wavelet', 'adain', 'none'"),
    "scale": (["--scale", "9"], "less than or equal to 8"),
    "t_add": (["--t-add", "150"], "--t-add is read only by --type naosd, got --type flux2sr"),
    "merge": (["--merge", "x.pkl"], "merge is read only by policy 'naosd', got policy 'flux2sr'"),
    "two prompts": (["--prompt", "a", "--prompt-path", "b"], "prompt and prompt_path exclude each other"),
    "no prompt file": (["--prompt-path", "/nowhere"], "expected one .txt per image, 1 of 1 are missing"),
    "prompt": (["--prompt", "a cat"], "prompt: got 'a cat', but flux2sr has one cached embedding"),
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
    noisier = restored("noisier", "--prompt", "abc", "--t-add", 900)
    assert np.abs(noisier["a"] - fixed["a"]).mean() > 1


def test_a_refusal_imports_nothing_heavy(recipe: Path) -> None:
    """`isrl train` with a mistake answers before torch or Ray are imported."""
    program = (
        "import sys; from actors import cli; sys.argv = ['isrl', 'train', sys.argv[1], sys.argv[2]]\n"
        "try: cli.main()\n"
        "except SystemExit as done: print(done.code, [m for m in ('torch', 'ray', 'pyiqa') if m in sys.modules])"
    )
    for mistake in ("train.stepz=3", "data.path=nowhere"):
        command = [sys.executable, "-c", program, str(recipe), mistake]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "2 []"
        assert done.stderr.startswith("error ")

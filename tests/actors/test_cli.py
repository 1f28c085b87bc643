"""The command line: exit codes, messages, and what a refusal costs. No process is started here."""

import json
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
from safetensors.numpy import load_file, save_file

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
        "kind": "online",
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
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "interrupted after step 7, which is saved; resume with --resume"
    assert train(raising(KeyboardInterrupt())) == 130


def test_a_failed_run_is_1_and_its_last_line_says_why(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    cause = ValueError("the cause [of it]")
    failed = "run demo: [gpu] out of memory; resume from step-000050 with --resume"
    assert train(raising(RunFailed(failed), cause)) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") or "ValueError: the cause [of it]" in lines
    assert lines[-1] == f"failed {failed}"


def test_input_is_2_without_a_traceback_and_a_program_error_keeps_its_own(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(raising(InputError("expected [low, high], got [3, 1]"))) == 2
    assert capsys.readouterr().err == "error expected [low, high], got [3, 1]\n"
    with pytest.raises(ValueError, match="a mistake in the program"):
        train(raising(ValueError("a mistake in the program")))


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


MINE = """
from typing import Literal
from rl.policies.flux2sr.section import Flux2SRSection

class MySection(Flux2SRSection):
    type: Literal["mine:MySection"] = "mine:MySection"
"""


def test_a_type_of_the_users_own_is_found_where_isrl_is_started(
    recipe: Path, tmp_path: Path, tiny_flux2_folder: Path
) -> None:
    """The console script, whose path does not begin with the current directory."""
    (tmp_path / "mine.py").write_text(MINE)
    isrl = Path(sys.executable).with_name("isrl")
    own = ("policy.type=mine:MySection", f"policy.path={tiny_flux2_folder}")
    plan = subprocess.run([isrl, "plan", recipe, *own], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert plan.returncode == 0 and "policy mine:MySection '" in plan.stdout
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    lost = subprocess.run([isrl, "plan", recipe, *own], cwd=elsewhere, capture_output=True, text=True, check=False)
    assert lost.returncode == 2 and "No module named 'mine'; a module is found in the directory" in lost.stderr


def test_train_and_pretrain_tell_a_recipe_of_the_other_kind(
    isrl: Callable[..., int], recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isrl("pretrain", recipe) == 2
    assert "got kind 'online'; run it with isrl train" in capsys.readouterr().err
    assert isrl("train", ROOT / "configs" / "pretrain_flux2sr_mini.yaml") == 2
    assert "got kind 'pretrain'; run it with isrl pretrain" in capsys.readouterr().err
    assert isrl("plan", recipe, "kind=online") == isrl("plan", ROOT / "configs" / "pretrain_flux2sr_mini.yaml") == 0


def test_export_writes_the_adapter_of_a_run_for_another_tool(
    isrl: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`RUN` or its file; an unknown format, a wrong ending and a run without an adapter are refused."""
    run, out = tmp_path / "run", tmp_path / "kohya.safetensors"
    adapter = {"A": np.ones((2, 8), np.float32), "B": np.ones((8, 2), np.float32)}
    (run / "lora").mkdir(parents=True)
    name = "unet.mid_block.attentions.0.proj_in.lora_{}.weight"
    save_file({name.format(key): value for key, value in adapter.items()}, run / "lora" / LORA_FILE)
    for source in (run, run / "lora" / LORA_FILE):
        assert isrl("export", source, "--format", "kohya", "--out", out) == 0
        assert capsys.readouterr().out == f"{out}\n"
        assert load_file(out)["lora_unet_mid_block_attentions_0_proj_in.alpha"] == 2
        out.unlink()
    refused = {
        (run, "--format", "a1111", "--out", out): "'a1111' is not one of 'diffusers', 'kohya', 'comfyui'",
        (run, "--out", tmp_path / "x.bin"): "expected a file that ends in .safetensors",
        (tmp_path / "no", "--out", out): "no such LoRA file",
        (run,): "Missing option '--out'",
    }
    for arguments, message in refused.items():
        assert isrl("export", *arguments) == 2
        assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())

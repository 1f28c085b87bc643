"""The command line: exit codes, messages, and what a refusal costs. No role of a run is started here.

`test_cli_restore.py` has `isrl restore`.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

import actors.preflight
from actors.controller import Outcome
from rl.errors import InputError, RunFailed
from rl.export import LORA_FILE

ROOT = Path(__file__).parents[2]


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

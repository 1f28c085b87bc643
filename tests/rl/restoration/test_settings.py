"""Where a restoration's settings come from: the adapter's header, the policy's facts, the options."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from rl.config.rollout import ODESection, OneStepSection
from rl.errors import InputError
from rl.policies import load_policy
from rl.policies.stored import stored_dtype
from rl.restoration.settings import Options, settings

MINE = """
from typing import Literal
from rl.policies.flux2sr.section import Flux2SRSection

class MySection(Flux2SRSection):
    tile_px = 256
    solvers = ("heun",)
    type: Literal["mine:MySection"] = "mine:MySection"
    grain: float = 0.5
"""


def test_facts_of_the_policy_where_there_is_no_adapter(tiny_flux2_folder: Path) -> None:
    """A preset's tile is what presets are trained at, a folder's what the model is."""
    preset, folder = settings(Options()), settings(Options(policy=str(tiny_flux2_folder)))
    assert (preset.policy.type, preset.policy.path, preset.tile_px, preset.scale) == ("flux2sr", "mini", 128, 4)
    assert (folder.tile_px, folder.sampler) == (1024, ODESection(solver="dpm2", steps=10))
    one_step = settings(Options(type="naosd"))
    assert (one_step.tile_px, one_step.sampler, one_step.policy.t_add) == (128, OneStepSection(), 250)  # type: ignore[attr-defined]


def test_an_adapter_brings_what_its_run_evaluated_with(
    exported: Callable[[Any], Path], run_config: Callable[..., Any], tiny_flux2_folder: Path
) -> None:
    config = run_config(
        "policy.shift=2.5", "policy.dtype=bfloat16", "rollout.sampler={solver: sde, steps: 6}", "objective.type=grpo",
        "data.scale=2", "data.crop=64", "policy.lora.rank=8", "policy.gradient_checkpointing=true",
    )  # fmt: skip
    file = exported(config)
    found = settings(Options(lora=file))
    assert found.policy == config.policy.model_copy(update={"lora": found.policy.lora, "gradient_checkpointing": False})
    assert (found.sampler, found.scale, found.tile_px) == (ODESection(solver="euler", steps=6), 2, 64)
    assert settings(Options(lora=file.parent)) == found, "a run's lora/ folder is as good as the file in it"
    over = settings(
        Options(lora=file, scale=3, tile_px=96, overrides=["shift=flux2", "dtype=float32", "sampler.steps=9"])
    )
    assert (over.policy.shift, over.policy.dtype, over.sampler.steps_taken) == ("flux2", "float32", 9)  # type: ignore[attr-defined]
    assert (over.scale, over.tile_px, over.sampler.solver) == (3, 96, "euler")


def test_a_one_step_adapter_brings_its_noise_level(
    exported: Callable[[Any], Path], naosd_config: Callable[..., Any]
) -> None:
    found = settings(Options(lora=exported(naosd_config("policy.t_add=300", "policy.t_diff=50", "data.crop=64"))))
    assert (found.policy.type, found.policy.t_add, found.policy.t_diff) == ("naosd", 300, 50)  # type: ignore[attr-defined]
    assert (found.sampler, found.tile_px) == (OneStepSection(), 64)


def test_another_base_than_the_adapters_is_refused(
    exported: Callable[[Any], Path], run_config: Callable[..., Any], tiny_flux2_folder: Path, tmp_path: Path
) -> None:
    """Presets are told apart by name, folders may have moved; and a file of an older isrl says its base alone."""
    file = exported(run_config())
    for options, asked in (({"type": "naosd"}, f"naosd:{tiny_flux2_folder}"), ({"policy": "mini"}, "flux2sr:mini")):
        with pytest.raises(InputError, match="trained on flux2sr:/.*asked to run on " + asked):
            settings(Options(lora=file, **options))
    moved = tmp_path / "moved"
    moved.symlink_to(tiny_flux2_folder)
    assert settings(Options(lora=file, policy=str(moved))).policy.path == str(moved)

    older, foreign = tmp_path / "older.safetensors", tmp_path / "foreign.safetensors"
    tensor = {"unet.a.lora_A.weight": np.zeros((1, 1), np.float32)}
    save_file(tensor, older, metadata={"isrl": json.dumps({"base": "naosd:mini"})})
    save_file(tensor, foreign)
    assert settings(Options(lora=older)).policy.type == "naosd"
    assert settings(Options(lora=foreign)).policy.type == "flux2sr"


def test_a_base_that_is_not_here_is_asked_for(
    exported: Callable[[Any], Path], run_config: Callable[..., Any], tiny_flux2_folder: Path, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    gone.symlink_to(tiny_flux2_folder)
    file = exported(run_config(path=gone))
    gone.unlink()
    with pytest.raises(InputError, match=r"policy.path '.*gone'.*; --policy FOLDER says where the weights are"):
        settings(Options(lora=file))
    assert settings(Options(lora=file, policy=str(tiny_flux2_folder))).policy.shift == 1.0  # type: ignore[attr-defined]


REFUSED = {
    "steps of one step": (
        {"type": "naosd", "overrides": ["sampler.steps=4"]},
        "'naosd':\n  sampler.steps: unknown key",
    ),
    "shift of one step": ({"type": "naosd", "overrides": ["shift=2"]}, "'naosd':\n  shift: unknown key"),
    "t_add of a flow": ({"overrides": ["t_add=250"]}, "'flux2sr':\n  t_add: unknown key"),
    "t_add": ({"type": "naosd", "overrides": ["t_add=1500"]}, "t_add: Input should be less than 1000 (got 1500)"),
    "a typo": ({"overrides": ["sampler.stepz=4"]}, "sampler.stepz: unknown key; did you mean 'steps'?"),
    "shift": ({"overrides": ["shift=-2"]}, "shift: expected a number above 0 or 'flux2', got -2"),
    "an sde": ({"overrides": ["sampler.solver=sde"]}, "makes groups for training; write sampler.solver=euler"),
    "varied": ({"type": "naosd", "overrides": ["sampler.t_add_range=[1, 9]"]}, "without keys that vary the members"),
    "another's": ({"overrides": ["sampler.solver=one_step"]}, "solver must be one of ['dpm2', 'euler', 'heun', 'sde']"),
    "an option": ({"overrides": ["path=x"]}, "path=x: 'path' is an option of isrl restore; write --policy"),
    "an adapter": ({"overrides": ["lora.rank=4"]}, "lora.rank=4: 'lora' is an option of isrl restore; write --lora"),
    "reference": ({"overrides": ["reference=base"]}, "'reference' is read by training alone; remove it"),
    "merge": ({"type": "naosd", "overrides": ["merge=[x.pkl]"]}, "policy.merge: no such file x.pkl"),
    "guidance": ({"overrides": ["guidance=2"]}, "has no guidance embedding and reads no guidance; remove it"),
    "type": ({"type": "flux"}, "--type: type must be one of flux2sr, naosd, or package.module:Class, got 'flux'"),
    "no equals": ({"overrides": ["shift"]}, "override 'shift': expected key=value"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_policy_does_not_read_is_refused_by_name(case: str) -> None:
    keys, message = REFUSED[case]
    with pytest.raises(InputError) as refused:
        settings(Options(**keys))
    assert message in str(refused.value)


def test_a_policy_of_the_users_own_brings_its_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_flux2_folder: Path
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    found = settings(Options(type="mine:MySection", policy=str(tiny_flux2_folder), overrides=["grain=0.25"]))
    older = tmp_path / "older.safetensors"
    save_file(
        {"a": np.zeros(1)}, older, metadata={"isrl": json.dumps({"restore": {"policy": {"type": "gone:Section"}}})}
    )
    with pytest.raises(
        InputError, match=f"--lora {older}: 'gone:Section': No module named 'gone'; a module is found in"
    ):
        settings(Options(lora=older))
    assert (found.policy.grain, found.tile_px, found.sampler.solver) == (0.25, 256, "heun")  # type: ignore[attr-defined]


def test_the_dtype_is_that_of_the_weights(tiny_flux2_folder: Path, tmp_path: Path) -> None:
    policy = load_policy(settings(Options(policy=str(tiny_flux2_folder))).policy)
    for component, model in (("transformer", policy.transformer), ("vae", policy.vae)):  # type: ignore[attr-defined]
        model.to(torch.bfloat16).save_pretrained(tmp_path / component)
    np.save(tmp_path / "x", np.zeros(1))
    (tmp_path / "x.npy").rename(tmp_path / "prompt_embeds.safetensors")
    options = Options(policy=str(tmp_path))
    assert settings(options).policy.dtype == "bfloat16"
    assert settings(Options(policy=str(tmp_path), overrides=["dtype=float32"])).policy.dtype == "float32"
    assert settings(Options(policy=str(tiny_flux2_folder))).policy.dtype == "float32"
    assert stored_dtype(settings(Options(type="naosd")).policy) == "float32", "half precision is no dtype of a policy"


def test_it_is_torch_free() -> None:
    program = (
        "import sys; from rl.restoration.settings import Options, settings; settings(Options(type='naosd'))\n"
        "print([m for m in ('torch', 'diffusers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

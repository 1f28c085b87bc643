"""`isrl pretrain` from photographs to a folder that loads, at two steps a stage."""

import json
from pathlib import Path

import pytest

from rl.config.load import load_pretrain_config
from rl.config.policy import policy_section
from rl.config.rollout import OneStepSection

ROOT = Path(__file__).resolve().parents[2]


def test_the_recipe_makes_a_preset_that_loads(
    tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import load_file

    from learner.pretraining import pretrain
    from rl.policies import load_policy

    monkeypatch.chdir(ROOT)
    config = load_pretrain_config(
        ROOT / "configs" / "pretrain_flux2sr_mini.yaml",
        [
            f"out={tmp_path}/mini", "vae.steps=2", "vae.batch=2", "pairs=8", "flow.steps=4", "flow.batch=4",
            "flow.image_every=4", "sampler_steps=2", "threads=1", "held_out=[skimage:coffee]",
            "photos=[{path: [skimage:astronaut]}]",
        ],
    )  # fmt: skip
    torch.manual_seed(5)
    folder = pretrain(config, "recipe.yaml threads=1")
    torch.set_flush_denormal(False)
    policy = load_policy(policy_section(path=str(folder)))
    assert sum(p.numel() for p in policy.modules["transformer"].parameters()) == 2_831_936
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["crops"] == 6
    # an untrained model is far worse than bicubic: the score has to say so
    assert scores["sample_psnr_y"] < scores["bicubic_psnr_y"] - 5
    assert 20 < scores["bicubic_psnr_y"] < 35
    card = (folder / "README.md").read_text()
    assert "`uv run isrl pretrain recipe.yaml threads=1`" in card and f"{scores['sample_psnr_y']:.2f}" in card
    dtypes = {t.dtype for t in load_file(next((folder / "transformer").glob("*.safetensors"))).values()}
    assert dtypes == {torch.float16}
    assert (folder / "contact_sheet.png").stat().st_size > 10_000


def test_the_naosd_recipe_makes_a_preset_that_loads_without_adapters(
    tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps a stage: the merged fp16 folder is a one-step policy without adapters and under 8 MB."""
    import torch

    from learner.pretraining import pretrain
    from rl.policies import load_policy
    from rl.policies.naosd.policy import NAOSD

    monkeypatch.chdir(ROOT)
    config = load_pretrain_config(
        ROOT / "configs" / "naosd_pretrain_mini.yaml",
        [
            f"out={tmp_path}/mini", "vae.steps=2", "vae.batch=2", "pairs=8", "teacher.steps=2", "teacher.batch=4",
            "student.steps=2", "student.batch=2", "threads=1", "held_out=[skimage:coffee]",
            "photos=[{path: [skimage:astronaut]}]",
        ],
    )  # fmt: skip
    folder = pretrain(config, "naosd.yaml")
    torch.set_flush_denormal(False)
    policy = load_policy(policy_section(type="naosd", path=str(folder)))
    assert isinstance(policy, NAOSD)
    assert not any("lora" in name for name in policy.unet.state_dict())
    size = sum(file.stat().st_size for name in ("unet", "vae") for file in (folder / name).iterdir())
    assert size < 8e6, f"the preset is {size / 1e6:.1f} MB"
    scores = json.loads((folder / "scores.json").read_text())
    # its VAE starts as an 8x average, so an untrained student is a blurred, noisy image, but not a random one
    assert scores["sample_psnr_y"] < scores["bicubic_psnr_y"] - 3.5 and scores["group_std_psnr_y"] > 0
    assert "VSD" in (folder / "README.md").read_text()
    # a base that is already there gives the same student
    again = pretrain(config.model_copy(update={"out": f"{tmp_path}/again", "base": f"{folder}/base"}), "naosd.yaml")
    torch.set_flush_denormal(False)
    for name in ("unet", "vae"):
        written = (next((path / name).glob("*.safetensors")).read_bytes() for path in (folder, again))
        assert len(set(written)) == 1
    assert not (again / "base").exists()


def test_naosd_is_distilled_from_a_stable_diffusion_folder_with_prompts(
    tmp_path: Path, tiny_sd21_folder: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real-size recipe's path on Stable Diffusion's real classes at tiny size: text encoder, one tag file per
    photograph, negative prompt, guidance 7.5, accumulation, bfloat16 autocast. The UNet and the VAE's encoder move,
    the decoder does not, and the folder keeps its text encoder."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from learner.pretraining import pretrain
    from rl.policies import load_policy

    monkeypatch.chdir(ROOT)
    lpips = shared_data / "weights" / "lpips"
    (tmp_path / "astronaut.txt").write_text("a woman, a space suit")
    config = load_pretrain_config(
        ROOT / "configs" / "naosd_pretrain.yaml",
        [
            f"base={tiny_sd21_folder}", f"out={tmp_path}/naosd", "device=cpu", "threads=1", "crop=64",
            "photos=[{path: [skimage:astronaut]}]", "held_out=[skimage:coffee]", f"prompts.prompt_path={tmp_path}",
            f"lpips={{backbone: {lpips}/squeezenet1_1_features.pth, heads: {lpips}/lin_v0.1_squeeze.pth}}",
            "student.steps=2", "student.lr=1e-2", "student.warmup_steps=1", "student.accumulate=2",
        ],
    )  # fmt: skip
    folder = pretrain(config, "naosd_pretrain.yaml")
    torch.set_flush_denormal(False)
    policy = load_policy(policy_section(type="naosd", path=str(folder)))
    assert policy.condition(torch.zeros(3, 16, 16, dtype=torch.uint8).numpy(), 4, "a wall").text is not None
    for kind, name in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")):
        before, after = (kind.from_pretrained(path, subfolder=name).state_dict() for path in (tiny_sd21_folder, folder))
        moved = {key for key in before if (before[key] - after[key]).abs().max() > 5e-4}
        assert any("conv_in" in key for key in moved) and any("conv1" in key for key in moved)
        assert not any(key.startswith("decoder") for key in moved)


def test_an_interrupted_student_resumes_to_the_same_weights(
    tmp_path: Path, tiny_sd21_folder: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four steps at once, and four steps interrupted after the third with a checkpoint after the second."""
    import torch

    from learner.pretraining import naosd, pretrain
    from rl.config.pretrain import FlowPretrain, NAOSDPretrain
    from rl.errors import InputError

    monkeypatch.chdir(ROOT)
    lpips = shared_data / "weights" / "lpips"

    def recipe(out: str, *more: str) -> FlowPretrain | NAOSDPretrain:
        return load_pretrain_config(
            ROOT / "configs" / "naosd_pretrain.yaml",
            [
                f"base={tiny_sd21_folder}", f"out={tmp_path}/{out}", "device=cpu", "threads=1", "crop=64",
                "photos=[{path: [skimage:astronaut]}]", "held_out=[skimage:coffee]", "prompts={prompt: a wall}",
                f"lpips={{backbone: {lpips}/squeezenet1_1_features.pth, heads: {lpips}/lin_v0.1_squeeze.pth}}",
                "student.steps=4", "student.accumulate=1", "student.checkpoint_every=2", *more,
            ],
        )  # fmt: skip

    whole = pretrain(recipe("whole"), "")
    step, done = naosd.Distillation.step, []

    def three_steps(self: naosd.Distillation) -> list[float]:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(step(self))
        return done[-1]

    monkeypatch.setattr(naosd.Distillation, "step", three_steps)
    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe("cut"), "")
    with pytest.raises(InputError, match=r"student: was .*lr.*, is .*another out, or delete the file"):
        pretrain(recipe("cut", "student.lr=1e-2"), "")
    done.clear()
    cut = pretrain(recipe("cut", "student.checkpoint_every=1"), "")
    torch.set_flush_denormal(False)
    assert len(done) == 2
    for name in ("unet", "vae"):
        assert len({next((path / name).glob("*.safetensors")).read_bytes() for path in (whole, cut)}) == 1
    assert not list(cut.glob("student_progress*"))


def test_held_out_photographs_are_in_no_training_set() -> None:
    config = load_pretrain_config(ROOT / "configs" / "pretrain_flux2sr_mini.yaml")
    trained = {path for photo_set in config.photos for path in photo_set.path}
    assert len(trained) == 20 and not trained & set(config.held_out)
    from rl.config.load import load_config

    quickstart = load_config(ROOT / "configs" / "quickstart.yaml")
    assert quickstart.eval is not None
    assert not (trained | set(quickstart.data.path)) & set(quickstart.eval.data.path)


def test_each_sample_is_noised_at_its_own_level(tiny_sd21_folder: Path) -> None:
    """The student's forward equals the policy's with the same noise and t_add 100 and 400; a range of them is drawn."""
    import torch

    from learner.pretraining.naosd import one_step
    from rl.policies import load_policy
    from rl.policies.base import LatentCondition
    from rl.policies.naosd.policy import NAOSD

    student = load_policy(policy_section(type="naosd", path=str(tiny_sd21_folder)))
    assert isinstance(student, NAOSD)
    lr, text = torch.rand(2, 3, 32, 32) * 2 - 1, student.prompts("a wall").expand(2, -1, -1)
    torch.manual_seed(0)
    x0 = one_step(student, lr, text, torch.tensor([100, 400]))
    torch.manual_seed(0)
    z = student.vae.encode(lr).latent_dist.mode() * student.vae.config.scaling_factor
    conditions = [LatentCondition(z[i : i + 1], text[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(x0, student.sample(torch.randn_like(z), conditions, OneStepSection(), levels=(100, 400)))


@pytest.mark.parametrize("range_", ["[400, 100]", "[-1, 100]", "[100, 1000]"])
def test_a_range_of_t_add_outside_the_schedule_is_refused(range_: str) -> None:
    with pytest.raises(ValueError, match="t_add_range: expected 0 <= low <= high < 1000, got"):
        load_pretrain_config(ROOT / "configs" / "naosd_pretrain_mini.yaml", [f"student.t_add_range={range_}"])

"""Flux2SR against diffusers' Flux2Pipeline, and what the system relies on: members and conditions never mix."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Pipeline
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from rl.config.policy import policy_section
from rl.config.rollout import ODESection
from rl.flow.schedule import flow_sigmas
from rl.policies import load_policy
from rl.policies.base import from_uint8, member_noise, to_uint8
from rl.policies.flux2sr.policy import REFERENCE_T, Flux2SR, patchify, position_ids, unpatchify
from rl.types import Enlargement, SRTask


def load(folder: Path, **settings: object) -> Flux2SR:
    policy = load_policy(policy_section(path=str(folder), **settings))
    assert isinstance(policy, Flux2SR)
    return policy


@pytest.fixture(scope="module")
def policy(tiny_flux2_folder: Path) -> Flux2SR:
    return load(tiny_flux2_folder)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_position_ids_are_the_pipelines() -> None:
    grid = torch.zeros(1, 8, 3, 5)
    assert torch.equal(position_ids(3, 5, 0), Flux2Pipeline._prepare_latent_ids(grid)[0])
    assert torch.equal(position_ids(3, 5, REFERENCE_T), Flux2Pipeline._prepare_image_ids([grid])[0])


def test_text_ids_are_the_pipelines(policy: Flux2SR) -> None:
    assert torch.equal(policy._text_ids, Flux2Pipeline._prepare_text_ids(policy._prompt)[0])


def test_patchify_is_the_pipelines_and_unpatchify_undoes_it() -> None:
    z = torch.arange(2 * 3 * 4 * 6).float().view(2, 3, 4, 6)
    assert torch.equal(patchify(z), Flux2Pipeline._patchify_latents(z))
    packed = randn(2, 12, 2, 3)
    assert torch.equal(unpatchify(packed), Flux2Pipeline._unpatchify_latents(packed))
    assert torch.equal(unpatchify(patchify(z)), z)


def test_normalise_is_the_pipelines_formula(policy: Flux2SR, tiny_flux2_folder: Path) -> None:
    """(z - mean) / sqrt(var + eps) with the VAE file's statistics, and encode_hr is it on the encoder's mode."""
    vae = AutoencoderKLFlux2.from_pretrained(tiny_flux2_folder, subfolder="vae")
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    z = randn(2, 16, 3, 4)
    torch.testing.assert_close(policy.normalise(z), (z - mean) / std)
    hr = np.stack([picture(32, 48), picture(32, 48, 1)])
    pixels = torch.from_numpy(hr).float() / 127.5 - 1.0
    with torch.no_grad():
        latents = Flux2Pipeline._patchify_latents(vae.encode(pixels).latent_dist.mode())
    torch.testing.assert_close(policy.encode_hr(hr), (latents - mean) / std)


@torch.no_grad()
def test_velocity_is_the_transformer_called_as_the_pipeline_calls_it(policy: Flux2SR) -> None:
    condition = policy.condition(picture(8, 12), 4)
    x, t = randn(2, 16, 2, 3), torch.tensor([0.3, 0.9])
    pack = Flux2Pipeline._pack_latents
    ids = [Flux2Pipeline._prepare_latent_ids(x)[:1], Flux2Pipeline._prepare_image_ids([x[:1]])]
    out = policy.transformer(
        hidden_states=torch.cat([pack(x), pack(condition.latents).expand(2, -1, -1)], dim=1),
        encoder_hidden_states=policy._prompt.expand(2, -1, -1),
        timestep=t,
        img_ids=torch.cat(ids, dim=1),
        txt_ids=Flux2Pipeline._prepare_text_ids(policy._prompt),
        guidance=None,
        return_dict=False,
    )[0]
    expected = torch.stack([tokens.T.reshape(16, 2, 3) for tokens in out[:, :6]])
    torch.testing.assert_close(policy.prediction(x, t, [condition]), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("guidance", [None, 2.5])
def test_sampling_equals_flux2_pipeline(
    flux2_folder: Callable[..., Path], tiny_flux2_folder: Path, guidance: float | None
) -> None:
    """The whole way, from a reference image to latents and pixels, against Flux2Pipeline.__call__: Euler, FLUX.2's
    shift, 5 steps; without and with a guidance embedding."""
    folder = tiny_flux2_folder if guidance is None else flux2_folder(guidance_embeds=True)
    policy = load(folder, guidance=guidance or 1.0)
    image = picture(80, 64)
    noise = randn(2, 16, 5, 4)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipeline = Flux2Pipeline(scheduler, policy.vae, None, None, policy.transformer)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        image=Image.fromarray(image.transpose(1, 2, 0)), prompt_embeds=policy._prompt.expand(2, -1, -1),
        latents=noise, num_inference_steps=5, guidance_scale=guidance or 1.0, output_type="pt",
    ).images  # fmt: skip
    condition = policy.condition(image, 1)
    torch.testing.assert_close(policy.levels(5, condition), flow_sigmas(5, shift="flux2", tokens=20))
    with torch.no_grad():
        x0 = policy.sample(noise, [condition], ODESection(solver="euler", steps=5))
        ours = (policy.decode(x0) / 2 + 0.5).clamp(0, 1)
    assert theirs.std() > 0.05
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("folder", ["tiny_flux2_folder", "mini_folder"])
def test_members_of_a_batch_are_independent(folder: str, request: pytest.FixtureRequest) -> None:
    """v of four members at four noise levels = v of each alone, to 1e-5."""
    policy = load(request.getfixturevalue(folder))
    condition = policy.condition(picture(16, 16), 4)
    x, t = randn(4, *policy.latent_shape(condition)), torch.tensor([0.1, 0.4, 0.7, 1.0])
    alone = [policy.prediction(x[i : i + 1], t[i : i + 1], [condition]) for i in range(4)]
    torch.testing.assert_close(policy.prediction(x, t, [condition]), torch.cat(alone), rtol=0, atol=1e-5)


@torch.no_grad()
def test_batched_conditions_equal_separate_calls_and_matter(policy: Flux2SR) -> None:
    """Two LR images with three members each: first run the members of the first, then those of the second."""
    first, second = policy.condition(picture(8, 8), 4), policy.condition(picture(8, 8, 1), 4)
    x, t = randn(6, 16, 2, 2), torch.linspace(0.1, 0.9, 6)
    together = policy.prediction(x, t, [first, second])
    apart = torch.cat([policy.prediction(x[:3], t[:3], [first]), policy.prediction(x[3:], t[3:], [second])])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5)
    assert (together - policy.prediction(x, t, [second, first])).abs().max() > 1e-3


def test_a_batch_that_does_not_divide_is_refused(policy: Flux2SR) -> None:
    condition = policy.condition(picture(8, 8), 4)
    with pytest.raises(ValueError, match="batch of 5 is not a multiple of 2 conditions"):
        policy.prediction(randn(5, 16, 2, 2), torch.zeros(5), [condition, condition])


@torch.no_grad()
def test_guidance_reaches_the_model(flux2_folder: Callable[..., Path]) -> None:
    """FLUX.2-dev has a guidance embedding: another value is another velocity, and without a value the call fails."""
    folder = flux2_folder(guidance_embeds=True)
    x, t = randn(1, 16, 2, 2), torch.tensor([0.5])
    velocities = []
    for guidance in (1.0, 4.0):
        policy = load(folder, guidance=guidance)
        velocities.append(policy.prediction(x, t, [policy.condition(picture(8, 8), 4)]))
    assert (velocities[0] - velocities[1]).abs().max() > 1e-3


@torch.no_grad()
def test_bfloat16_stays_near_float32(tiny_flux2_folder: Path) -> None:
    """Encode, velocity and decode in bfloat16 lie within 5 % (relative L2) of float32."""
    full, half = load(tiny_flux2_folder), load(tiny_flux2_folder, dtype="bfloat16")
    lr = picture(8, 8)
    x, t = randn(2, 16, 2, 2), torch.tensor([0.25, 0.75])
    latents = full.condition(lr, 4).latents, half.condition(lr, 4).latents
    velocities = full.prediction(x, t, [full.condition(lr, 4)]), half.prediction(x, t, [half.condition(lr, 4)])
    images = full.decode(x), half.decode(x)
    for exact, rounded in (latents, velocities, images):
        assert rounded.dtype == torch.bfloat16
        assert 0 < (exact - rounded.float()).norm() / exact.norm() < 0.05


@torch.no_grad()
@pytest.mark.parametrize("folder", ["tiny_flux2_folder", "mini_folder"])
def test_sizes_and_determinism(folder: str, request: pytest.FixtureRequest) -> None:
    """One latent cell is 16 output pixels; the same input gives the same bits, and another LR another condition."""
    policy = load(request.getfixturevalue(folder))
    lr = picture(8, 12)
    condition = policy.condition(lr, 4)
    channels, height, width = policy.latent_shape(condition)
    assert (height, width, channels) == (2, 3, policy.transformer.config.in_channels)
    assert condition.latents.shape == (1, channels, 2, 3)
    latents = randn(2, channels, height, width)
    assert policy.decode(latents).shape == (2, 3, 32, 48)
    assert policy.encode_hr(np.stack([picture(32, 48)] * 2)).shape == (2, channels, height, width)
    assert torch.equal(policy.condition(lr, 4).latents, condition.latents)
    assert torch.equal(policy.decode(latents), policy.decode(latents))
    assert not torch.equal(policy.condition(picture(8, 12, 1), 4).latents, condition.latents)


@pytest.mark.parametrize("enlargement", ["bicubic", "bilinear", "area"])
def test_the_condition_is_the_enlarged_image(policy: Flux2SR, enlargement: Enlargement) -> None:
    """condition(lr, 4) = encode_hr of the LR image enlarged before, in the way that the task says."""
    lr = np.full((3, 8, 8), 90, dtype=np.uint8)
    lr[:, :, 4:] = 160
    enlarged = torch.nn.functional.interpolate(from_uint8(torch.from_numpy(lr)[None]), scale_factor=4, mode=enlargement)
    with torch.no_grad():
        expected = policy._normalised_latents(enlarged.clamp(-1, 1))
    task = SRTask(0, "photo", lr, None, 4, 0, enlargement=enlargement)
    torch.testing.assert_close(policy.condition_of(task).latents, expected, rtol=1e-5, atol=1e-5)
    others = [policy.condition(lr, 4, enlargement=way).latents for way in ("bicubic", "bilinear", "area")]
    assert sum(torch.equal(policy.condition_of(task).latents, other) for other in others) == 1


def test_a_size_that_does_not_divide_is_refused_with_the_numbers(policy: Flux2SR) -> None:
    with pytest.raises(ValueError, match="divisible by 16, got 40x32"):
        policy.condition(picture(8, 10), 4)


def test_a_missing_folder_names_the_presets_and_the_place(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"policy.path '.*nowhere': expected an embedded preset \[.*\] or a local"
    ):
        load(tmp_path / "nowhere")


def test_a_missing_prompt_file_is_refused_before_any_weights_are_read(tiny_flux2_folder: Path, tmp_path: Path) -> None:
    """FLUX.2-dev's own folder has none; `folder` is what `isrl train` asks before it starts a process."""
    for part in ("transformer", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"policy.prompt_embeds: .*prompt_embeds.safetensors does not exist"):
        policy_section(path=str(tmp_path)).folder()
    with pytest.raises(FileNotFoundError, match=r"none.safetensors does not exist; encode one prompt"):
        policy_section(path=str(tiny_flux2_folder), prompt_embeds=str(tmp_path / "none.safetensors")).folder()


def test_a_prompt_of_another_width_is_refused_with_both_widths(tiny_flux2_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.safetensors"
    save_file({"prompt_embeds": torch.zeros(2, 9)}, file)
    with pytest.raises(ValueError, match=r"expected \[L, 12\], got \(2, 9\)"):
        load(tiny_flux2_folder, prompt_embeds=str(file))


@torch.no_grad()
def test_another_prompt_is_another_velocity(policy: Flux2SR, tiny_flux2_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.safetensors"
    save_file({"prompt_embeds": 2.0 * randn(5, 12)}, file)
    other = load(tiny_flux2_folder, prompt_embeds=str(file))
    x, t = randn(1, 16, 2, 2), torch.tensor([0.5])
    condition = policy.condition(picture(8, 8), 4)
    assert (policy.prediction(x, t, [condition]) - other.prediction(x, t, [condition])).abs().max() > 1e-3


def test_an_unknown_vae_class_is_refused_with_the_known_ones(tiny_flux2_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_flux2_folder, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "vae" / "config.json"
    config.write_text(config.read_text().replace("AutoencoderKLFlux2", "AutoencoderDC"))
    with pytest.raises(ValueError, match=r"expected one of \['AutoencoderKLFlux2', 'MiniVAE'\], got AutoencoderDC"):
        load(tmp_path)


def test_gradient_checkpointing_changes_memory_not_gradients(tiny_flux2_folder: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        policy = load(tiny_flux2_folder, gradient_checkpointing=checkpointing)
        policy.transformer.train()
        assert policy.transformer.is_gradient_checkpointing is checkpointing
        x = randn(1, 16, 2, 2).requires_grad_()
        policy.prediction(x, torch.tensor([0.5]), [policy.condition(picture(8, 8), 4)]).square().mean().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-8)


def test_the_base_is_frozen(policy: Flux2SR) -> None:
    assert not any(p.requires_grad for p in [*policy.transformer.parameters(), *policy.vae.parameters()])


def test_member_noise_depends_on_its_own_seed_alone() -> None:
    """Standard normal, equal for a seed whatever its neighbours are."""
    cpu = torch.device("cpu")
    many = member_noise([5, 6, 7], (16, 32, 32), cpu)
    assert torch.equal(many[1], member_noise([6], (16, 32, 32), cpu)[0])
    assert not torch.equal(many[0], many[1])
    assert abs(many.mean().item()) < 0.02 and abs(many.std().item() - 1) < 0.02


def test_uint8_there_and_back_is_exact() -> None:
    """All 256 values survive; outside [-1, 1] is clamped, and halves round instead of falling."""
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(values)), values)
    assert to_uint8(torch.tensor([-1.7, 1.7, 10.6 / 127.5 - 1, 0.0])).tolist() == [0, 255, 11, 128]

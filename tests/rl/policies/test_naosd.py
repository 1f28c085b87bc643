"""NAOSD against diffusers' own pieces, the published checkpoint layout, and the laws of its noise."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from rl.config.policy import policy_section
from rl.config.rollout import OneStepSection
from rl.errors import InputError, MissingInput
from rl.policies import load_policy
from rl.policies.lora import POLICY, Adapters
from rl.policies.naosd.policy import NAOSD
from rl.policies.naosd.published import merge_published
from rl.types import U8

SAMPLER = OneStepSection()
SCALED_LINEAR = {0: 0.99915, 100: 0.8942, 250: 0.6738}
"""abar of Stable Diffusion's schedule at three timesteps."""


def picture(height: int = 8, width: int = 8, seed: int = 0) -> U8:
    return np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def load(folder: Path, **values: object) -> NAOSD:
    policy = load_policy(policy_section(type="naosd", path=str(folder), **values))
    assert isinstance(policy, NAOSD)
    return policy


@pytest.fixture
def policy(tiny_sd21_folder: Path) -> NAOSD:
    return load(tiny_sd21_folder)


def test_the_schedule_is_stable_diffusions(policy: NAOSD) -> None:
    for t, abar in SCALED_LINEAR.items():
        assert float(policy.alphas_cumprod[t]) == pytest.approx(abar, abs=1e-4)


@torch.no_grad()
def test_one_step_equals_diffusers_scheduler_and_modules(policy: NAOSD, tiny_sd21_folder: Path) -> None:
    """add_noise at 250, the UNet at 100, DDPMScheduler's predicted x0, decode: the published forward."""
    vae = AutoencoderKL.from_pretrained(tiny_sd21_folder, subfolder="vae")
    unet = UNet2DConditionModel.from_pretrained(tiny_sd21_folder, subfolder="unet").eval()
    scheduler = DDPMScheduler.from_pretrained(tiny_sd21_folder, subfolder="scheduler")
    tokenizer = CLIPTokenizer.from_pretrained(tiny_sd21_folder, subfolder="tokenizer")
    encoder = CLIPTextModel.from_pretrained(tiny_sd21_folder, subfolder="text_encoder").eval()

    lr = picture()
    condition = policy.condition(lr, 4, "clean, 8k")
    pixels = torch.from_numpy(lr).float()[None] / 127.5 - 1
    enlarged = torch.nn.functional.interpolate(pixels, scale_factor=4, mode="bicubic").clamp(-1, 1)
    z = vae.encode(enlarged).latent_dist.mode() * vae.config.scaling_factor
    torch.testing.assert_close(condition.latents, z)
    tokens = tokenizer("clean, 8k", max_length=12, padding="max_length", truncation=True, return_tensors="pt")
    text = encoder(tokens.input_ids)[0]
    assert condition.text is not None
    torch.testing.assert_close(condition.text, text)

    eps = randn(3, *policy.latent_shape(condition))
    z_t = scheduler.add_noise(z.expand(3, -1, -1, -1), eps, torch.full((3,), 250))
    e = unet(z_t, 100, encoder_hidden_states=text.expand(3, -1, -1)).sample
    x0 = scheduler.step(e, 100, z_t, generator=torch.Generator().manual_seed(0)).pred_original_sample
    torch.testing.assert_close(policy.sample(eps, [condition], SAMPLER), x0, rtol=1e-5, atol=1e-5)
    image = vae.decode(x0 / vae.config.scaling_factor).sample
    torch.testing.assert_close(policy.decode(x0), image)


@torch.no_grad()
def test_a_batch_of_groups_equals_each_group_alone(policy: NAOSD) -> None:
    first, second = policy.condition(picture(seed=1), 4, "a"), policy.condition(picture(seed=2), 4, "b")
    eps = randn(4, *policy.latent_shape(first))
    together = policy.sample(eps, [first, second], SAMPLER)
    apart = torch.cat([policy.sample(eps[:2], [first], SAMPLER), policy.sample(eps[2:], [second], SAMPLER)])
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="a batch of 3 is not a multiple of 2 conditions"):
        policy.sample(eps[:3], [first, second], SAMPLER)


@torch.no_grad()
@pytest.mark.parametrize("t_add", [0, 150, 250, 350])
def test_the_noised_latent_has_the_schedules_variance(tiny_sd21_folder: Path, t_add: int) -> None:
    """Var(z~ | z) = 1 - abar at t_add, mean sqrt(abar) z."""
    policy = load(tiny_sd21_folder, t_add=t_add)
    abar = float(policy.alphas_cumprod[t_add])
    z, t = torch.full((200, 4, 16, 16), 2.0), torch.full((200,), float(t_add))
    assert torch.equal(policy.levels(1, None), torch.tensor([t_add, 0.0]))
    z_t = policy.noised(z, randn(200, 4, 16, 16), t)
    assert float(z_t.var()) == pytest.approx(1 - abar, rel=0.02)
    assert float(z_t.mean()) == pytest.approx(2 * abar**0.5, rel=0.01)


@torch.no_grad()
def test_prompts_reach_the_image_and_are_encoded_once(policy: NAOSD) -> None:
    plain, tagged = policy.condition(picture(), 4), policy.condition(picture(), 4, "fur")
    eps = randn(1, *policy.latent_shape(plain))
    assert (policy.sample(eps, [plain], SAMPLER) - policy.sample(eps, [tagged], SAMPLER)).abs().max() > 1e-6
    again = policy.condition(picture(), 4, "fur").text
    assert again is not None and tagged.text is not None and again.data_ptr() == tagged.text.data_ptr()


def test_sizes_times_and_files_are_refused_with_the_numbers(tiny_sd21_folder: Path, policy: NAOSD) -> None:
    with pytest.raises(ValueError, match="divisible by 8, got 36x32"):
        policy.condition(picture(8, 9), 4)
    with pytest.raises(ValueError, match="t_add\n.*less than 1000"):
        load(tiny_sd21_folder, t_add=1000)
    with pytest.raises(MissingInput, match="policy.merge: no such file /nowhere.pkl"):
        policy_section(type="naosd", path=str(tiny_sd21_folder), merge=["/nowhere.pkl"]).check()
    with pytest.raises(MissingInput, match="unet/config.json, vae/config.json, scheduler/scheduler_config.json"):
        load(tiny_sd21_folder / "unet")


def test_the_lora_covers_the_published_layers(policy: NAOSD) -> None:
    """Every attention, convolution, projection and feed-forward weight; not norms, not the time embedding."""
    names = set(Adapters(policy, POLICY).module_names())
    assert {"unet.conv_in", "unet.conv_out", "unet.mid_block.resnets.0.conv1"} <= names
    assert "unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj" in names
    assert "unet.up_blocks.0.resnets.0.conv_shortcut" in names
    assert not any("norm" in name or "time_emb" in name for name in names)


def published_file(folder: Path, target: Path, *, rank: int = 4, vae_part: bool = True) -> dict[str, Tensor]:
    """A checkpoint written as the published code writes it, from random adapters; returns the UNet's tensors."""
    state: dict[str, object] = {}
    parts = [("unet", UNet2DConditionModel.from_pretrained(folder, subfolder="unet"))]
    if vae_part:
        parts.append(("vae", AutoencoderKL.from_pretrained(folder, subfolder="vae")))
    for name, model in parts:
        conv = [n.removesuffix(".weight") for n, _ in model.named_parameters() if n.endswith("conv1.weight")]
        encoder = [n for n in conv if ("down_blocks" in n if name == "unet" else "encoder" in n)]
        if name == "unet":
            encoder.append("conv_in")
        others = [n for n in conv if n not in encoder and "decoder" not in n]
        sets = {"encoder": encoder, "decoder": [], "others": others if name == "unet" else []}
        for part, modules in sets.items():
            state[f"{name}_lora_{part}_modules"] = modules
            if modules:
                model.add_adapter(LoraConfig(r=rank, target_modules=modules), f"default_{part}")
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.data = 0.3 * randn(*parameter.shape, seed=len(key))
            elif key == "conv_in.base_layer.weight":
                parameter.data = parameter.data + 0.1
        state[f"rank_{name}"] = rank
        kept = {k: v for k, v in model.state_dict().items() if "lora" in k or (name == "unet" and "conv_in" in k)}
        state[f"state_dict_{name}"] = kept
    torch.save(state, target)
    found = state["state_dict_unet"]
    assert isinstance(found, dict)
    return found


@torch.no_grad()
def test_a_published_checkpoint_is_merged(tiny_sd21_folder: Path, tmp_path: Path) -> None:
    """W + alpha/r B A with PEFT's default alpha 8 at rank 4, conv_in replaced as a whole; no adapter stays."""
    file = tmp_path / "naosd.pkl"
    tensors = published_file(tiny_sd21_folder, file)
    base, merged = load(tiny_sd21_folder), load(tiny_sd21_folder, merge=[str(file)])
    layer = "mid_block.resnets.0.conv1"
    a = tensors[f"{layer}.lora_A.default_others.weight"]
    b = tensors[f"{layer}.lora_B.default_others.weight"]
    delta = 2.0 * torch.einsum("or,rikl->oikl", b[:, :, 0, 0], a)
    before, after = base.unet.get_submodule(layer).weight, merged.unet.get_submodule(layer).weight
    torch.testing.assert_close(after, before + delta, rtol=1e-5, atol=1e-6)
    assert (merged.unet.conv_in.weight - base.unet.conv_in.weight).mean() > 0.05
    assert set(merged.unet.state_dict()) == set(base.unet.state_dict())
    changed = [k for k, v in merged.vae.state_dict().items() if not torch.equal(v, base.vae.state_dict()[k])]
    assert changed and all(name.startswith("encoder.") for name in changed)


def test_files_of_another_layout_or_model_are_refused(tiny_sd21_folder: Path, tmp_path: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(tiny_sd21_folder, subfolder="unet")
    vae = AutoencoderKL.from_pretrained(tiny_sd21_folder, subfolder="vae")
    file = tmp_path / "x.pkl"
    torch.save({"weights": torch.zeros(1)}, file)
    with pytest.raises(InputError, match=r"expected state_dict_unet, rank_unet and module names, got \['weights'\]"):
        merge_published(unet, vae, file)
    torch.save({"state_dict_unet": Path("unet")}, file)
    with pytest.raises(InputError, match="expected tensors and plain values"):
        merge_published(unet, vae, file)
    published_file(tiny_sd21_folder, file, vae_part=False)
    state = torch.load(file)
    state["state_dict_unet"] = {f"x.{k}": v for k, v in state["state_dict_unet"].items()}
    torch.save(state, file)
    with pytest.raises(InputError, match="does not fit this UNet2DConditionModel"):
        merge_published(unet, vae, file)

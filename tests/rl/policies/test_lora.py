"""Adapters: where they go, what they start from, switching; `test_snapshots.py` has how one travels."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import Flux2Transformer2DModel
from safetensors.torch import save_file
from torch import Tensor, nn

from rl.config.online import RunConfig
from rl.config.policy import policy_section
from rl.errors import InputError
from rl.policies import load_policy
from rl.policies.base import Policy
from rl.policies.flux2sr.section import Flux2SRSection
from rl.policies.lora import (
    OLD,
    POLICY,
    REFERENCE,
    Adapters,
    copy_adapter,
    installed_digest,
    load_into,
    take_snapshot,
    target_modules,
)

Loads = Callable[..., Policy]
Velocity = Callable[[Policy], Tensor]
Randomise = Callable[[dict[str, nn.Parameter], int], None]


@pytest.mark.parametrize(
    ("targets", "modules", "values"),
    [
        ("attn_add", 8 * 8, 64 * 32 * (6144 + 6144)),
        ("attn_add_single", 8 * 8 + 48 * 2,
         64 * 32 * 12288 + 48 * 32 * ((6144 + 3 * 6144 + 2 * 18432) + (6144 + 18432 + 6144))),
        ("attn_add_ffn", 8 * 8 + 8 * 4, 64 * 32 * 12288 + 8 * 2 * 32 * ((6144 + 2 * 18432) + (18432 + 6144))),
    ],
)  # fmt: skip
def test_targets_on_flux2_dev(targets: str, modules: int, values: int) -> None:
    """FLUX.2-dev's published sizes (8 double and 48 single blocks, 48 heads of 128, ratio 3) on the meta device: the
    number of adapted layers and of trained values, rank 32."""
    with torch.device("meta"):
        backbone = Flux2Transformer2DModel(
            in_channels=128, num_layers=8, num_single_layers=48, attention_head_dim=128, num_attention_heads=48,
            joint_attention_dim=15360, mlp_ratio=3.0, axes_dims_rope=(32, 32, 32, 32), guidance_embeds=True,
        )  # fmt: skip
    section = policy_section(lora={"targets": targets})
    names = target_modules(backbone, section.lora_targets[targets])
    assert len(set(names)) == len(names) == modules
    adapters = Adapters(SimpleNamespace(section=section, modules={"transformer": backbone}), POLICY)
    parameters = adapters.parameters(POLICY)
    assert len(parameters) == 2 * modules and adapters.bound(POLICY) == modules
    assert sum(parameter.numel() for parameter in parameters.values()) == values


def test_target_that_matches_nothing_is_refused_by_name(load: Loads) -> None:
    policy = load()

    class Mistaken(Flux2SRSection):
        lora_targets = {"attn_add": ("attn.to_q", "attn.to_w")}

    mistaken = SimpleNamespace(section=Mistaken(path=policy.section.path), modules=policy.modules)
    with pytest.raises(ValueError, match=r"\['attn.to_w'\] match no Linear or Conv2d layer of \['transformer'\]"):
        Adapters(mistaken, POLICY)


def test_a_fresh_adapter_reproduces_the_base_exactly(load: Loads, velocity: Velocity) -> None:
    """B = 0: the same bits as without adapters, under every adapter and under none."""
    policy = load()
    base = velocity(policy)
    adapters = Adapters(policy, POLICY, OLD)
    assert torch.equal(velocity(policy), base)
    for adapter in (OLD, None):
        with adapters.using(adapter):
            assert torch.equal(velocity(policy), base)
    digests = {installed_digest(adapters.parameters(name)) for name in (POLICY, OLD)}
    assert len(digests) == 1, "all adapters start from the same values"


def test_adapter_adds_alpha_over_rank_times_b_a(load: Loads, velocity: Velocity, randomise: Randomise) -> None:
    """Adding (alpha / rank) B A to the base weights gives the adapter's velocity."""
    adapted, merged = load(alpha=6, targets="attn_add_single"), load()
    adapters = Adapters(adapted, POLICY)
    parameters = adapters.parameters(POLICY)
    randomise(parameters, 0)
    for name in adapters.module_names():
        a, b = (parameters[f"{name}.lora_{side}.weight"].detach() for side in "AB")
        merged.modules["transformer"].get_submodule(name.removeprefix("transformer.")).weight += 1.5 * b @ a
    torch.testing.assert_close(velocity(adapted), velocity(merged), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["flux2sr", "naosd"])
def test_a_trained_and_a_frozen_adapter_of_equal_values_compute_the_same_bits(
    policy: str, mini_folder: Path, tiny_sd21_folder: Path, randomise: Randomise
) -> None:
    """torch multiplies in another order where a weight requires a gradient and its input is not contiguous, as the text
    part of FLUX.2's attention and the projections of a small UNet are: ratios and KL of equal adapters would not be 1
    and 0."""
    folder = {"flux2sr": mini_folder, "naosd": tiny_sd21_folder}[policy]
    generator = torch.Generator().manual_seed(0)
    loaded = load_policy(policy_section(type=policy, path=str(folder), lora={"rank": 4, "alpha": 8}))
    adapters = Adapters(loaded, POLICY, OLD)
    randomise(adapters.parameters(POLICY), 3)
    copy_adapter(adapters.parameters(POLICY), adapters.parameters(OLD))
    assert not any(parameter.requires_grad for parameter in adapters.parameters(OLD).values())
    assert all(parameter.requires_grad for parameter in adapters.parameters(POLICY).values())
    condition = loaded.condition(np.arange(192, dtype=np.uint8).reshape(3, 8, 8), 4)
    x = torch.randn(4, *loaded.latent_shape(condition), generator=generator)
    found = []
    for name in (POLICY, OLD):
        with torch.no_grad(), adapters.using(name):
            found.append(loaded.prediction(x, loaded.levels(1, condition)[:1].expand(4), [condition]))
    assert torch.equal(*found)


def test_using_switches_and_restores(load: Loads, velocity: Velocity, randomise: Randomise) -> None:
    """Three different velocities, and the trained adapter is active again, also after an exception and nested."""
    policy = load()
    base = velocity(policy)
    adapters = Adapters(policy, POLICY, OLD)
    randomise(adapters.parameters(POLICY), 1)
    randomise(adapters.parameters(OLD), 2)
    trained = velocity(policy)
    with adapters.using(OLD):
        old = velocity(policy)
        with adapters.using(None):
            assert torch.equal(velocity(policy), base)
        assert torch.equal(velocity(policy), old)
    for one, other in ((trained, old), (trained, base), (old, base)):
        assert (one - other).abs().max() > 1e-3
    with pytest.raises(RuntimeError, match="inside"), adapters.using(None):
        raise RuntimeError("inside")
    assert torch.equal(velocity(policy), trained)


def test_using_leaves_requires_grad_alone(load: Loads) -> None:
    """DeepSpeed holds the trained parameters; PEFT's own `set_adapter` would flip their flags."""
    policy = load()
    adapters = Adapters(policy, POLICY, OLD)

    def flags() -> dict[str, bool]:
        named = policy.modules["transformer"].named_parameters()
        return {name: parameter.requires_grad for name, parameter in named}

    before = flags()
    assert sum(before.values()) == len(adapters.parameters(POLICY))
    for adapter in (OLD, None, POLICY):
        with adapters.using(adapter):
            assert flags() == before
    assert flags() == before


def test_adapters_may_sit_on_several_modules(load: Loads, randomise: Randomise) -> None:
    """A condition branch beside the transformer: names begin with the component, one switch serves both."""
    policy = load()
    branch = nn.ModuleDict({"attn": nn.ModuleDict({"to_q": nn.Linear(4, 4)})}).requires_grad_(False)
    both = SimpleNamespace(section=policy.section, modules={**policy.modules, "branch": branch})
    adapters = Adapters(both, POLICY, OLD)
    assert "branch.attn.to_q" in adapters.module_names()
    assert adapters.bound(OLD) == 8 + 1
    randomise(adapters.parameters(POLICY), 1)
    x, layer = torch.ones(1, 4), branch["attn"]["to_q"]
    trained = layer(x)
    with adapters.using(OLD):
        assert not torch.equal(layer(x), trained)
        with adapters.using(None):
            torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


@pytest.fixture
def start(load: Loads, tmp_path: Path, randomise: Randomise) -> tuple[Path, str]:
    """A LoRA file of random values and the digest of its tensors."""
    policy = load()
    saved = Adapters(policy, POLICY).parameters(POLICY)
    randomise(saved, 8)
    file, lora = tmp_path / "start.safetensors", policy.section.lora
    header = json.dumps({"transformer.r": lora.rank, "transformer.lora_alpha": lora.alpha})
    tensors = {name: parameter.detach().clone() for name, parameter in saved.items()}
    save_file(tensors, file, metadata={"lora_adapter_metadata": header})
    return file, installed_digest(saved)


def test_init_from_starts_every_adapter_and_is_the_reference(
    load: Loads, start: tuple[Path, str], randomise: Randomise
) -> None:
    file, digest = start
    adapters = Adapters(load(init_from=str(file)), POLICY, OLD)
    assert adapters.reference == REFERENCE and adapters.reference_digest() == digest
    for name in (POLICY, OLD, REFERENCE):
        assert installed_digest(adapters.parameters(name)) == digest
    randomise(adapters.parameters(POLICY), 9)
    assert adapters.reference_digest() == digest, "values are copied, not shared"
    assert not any(parameter.requires_grad for parameter in adapters.parameters(REFERENCE).values())


def test_the_reference_is_the_base_or_a_file_where_the_section_says_so(load: Loads, start: tuple[Path, str]) -> None:
    file, digest = start
    for section in ({"reference": "base"}, {"reference": "start"}):
        adapters = Adapters(load(section), POLICY)
        assert adapters.reference is None and adapters.reference_digest() is None
    started = Adapters(load({"reference": "base"}, init_from=str(file)), POLICY)
    assert started.reference is None and installed_digest(started.parameters(POLICY)) == digest
    named = Adapters(load({"reference": str(file)}), POLICY)
    assert named.reference_digest() == digest != installed_digest(named.parameters(POLICY))


def test_a_file_of_another_model_is_refused_by_name(load: Loads, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"transformer.x.lora_A.weight": torch.zeros(4, 32)}, file)
    with pytest.raises(InputError, match="other.safetensors: not an adapter of this policy"):
        Adapters(load(init_from=str(file)), POLICY)


def test_load_into_refuses_partial_files(load: Loads) -> None:
    parameters = Adapters(load(), POLICY).parameters(POLICY)
    with pytest.raises(ValueError, match=rf"a file: adapter misses .* \({len(parameters)}\)"):
        load_into(parameters, {}, source="a file")


def test_modules_without_the_adapter_say_so(load: Loads) -> None:
    with pytest.raises(ValueError, match=r"\['transformer'\]: no adapter 'old'"):
        Adapters(load(), POLICY).parameters(OLD)


def test_adapters_of_a_bfloat16_base_are_float32_and_take_gradients(run_config: Callable[..., RunConfig]) -> None:
    """An update of 1e-4 on a weight near 1 would vanish in bfloat16 (spacing 2^-8 = 0.0039)."""
    config = run_config("policy.dtype=bfloat16")
    policy = load_policy(config.policy)
    theta = Adapters(policy, POLICY).parameters(POLICY)
    assert {parameter.dtype for parameter in theta.values()} == {torch.float32}
    condition = policy.condition(np.full((3, 8, 8), 128, np.uint8), 4)
    x = torch.randn(2, *policy.latent_shape(condition), generator=torch.Generator().manual_seed(0))
    v = policy.prediction(x, torch.tensor([0.3, 0.7]), [condition])
    assert v.dtype == torch.bfloat16
    v.float().square().mean().backward()
    b = [parameter.grad for name, parameter in theta.items() if "lora_B" in name]
    assert all(grad is not None and grad.dtype == torch.float32 for grad in b)
    assert sum(float(grad.abs().sum()) for grad in b if grad is not None) > 0
    assert take_snapshot(theta, 0).dtype == "float32"

"""Adapters: where they go, switching, and how one travels (snapshot, digest, install)."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import Flux2Transformer2DModel
from safetensors.torch import save_file
from torch import Tensor

from rl.config.policy import LORA_TARGETS, LoraConfig, PolicyConfig
from rl.config.run import RunConfig
from rl.policies import load_policy
from rl.policies.flux2sr.policy import Flux2SR
from rl.policies.lora import (
    OLD,
    POLICY,
    SnapshotRefused,
    adapter_parameters,
    add_adapters,
    copy_adapter,
    install_snapshot,
    installed_digest,
    load_into,
    take_snapshot,
    target_modules,
    using,
)
from rl.types import adapter_digest

SMALL = LoraConfig(rank=4, alpha=8)


@pytest.fixture
def policy(tiny_flux2_folder: Path) -> Flux2SR:
    policy = load_policy(PolicyConfig(path=str(tiny_flux2_folder)))
    assert isinstance(policy, Flux2SR)
    policy.backbone.eval()
    return policy


@torch.no_grad()
def velocity(policy: Flux2SR) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 2, 2, generator=generator)
    condition = policy.encode(np.arange(192, dtype=np.uint8).reshape(3, 8, 8), 4)
    return policy.velocity(x, torch.tensor([0.3, 0.8]), [condition])


@torch.no_grad()
def randomise(parameters: dict[str, torch.nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters.values():
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


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
    names = target_modules(backbone, LORA_TARGETS[targets])
    assert len(set(names)) == len(names) == modules
    add_adapters(backbone, LoraConfig(targets=targets), (POLICY,))
    parameters = adapter_parameters(backbone, POLICY)
    assert len(parameters) == 2 * modules
    assert sum(parameter.numel() for parameter in parameters.values()) == values


def test_target_that_matches_nothing_is_refused_by_name(policy: Flux2SR) -> None:
    with pytest.raises(ValueError, match=r"\['attn.to_w'\] match no Linear or Conv2d layer of Flux2Transformer2DModel"):
        target_modules(policy.backbone, ("attn.to_q", "attn.to_w"))


def test_a_fresh_adapter_reproduces_the_base_exactly(policy: Flux2SR) -> None:
    """B = 0: the same bits as without adapters, under every adapter and under none."""
    base = velocity(policy)
    add_adapters(policy.backbone, SMALL, (POLICY, OLD))
    assert torch.equal(velocity(policy), base)
    for adapter in (OLD, None):
        with using(policy.backbone, adapter):
            assert torch.equal(velocity(policy), base)
    assert installed_digest(adapter_parameters(policy.backbone, POLICY)) == installed_digest(
        adapter_parameters(policy.backbone, OLD)
    ), "all adapters start from the same values"


def test_adapter_adds_alpha_over_rank_times_b_a(tiny_flux2_folder: Path) -> None:
    """Adding (alpha / rank) B A to the base weights gives the adapter's velocity."""
    adapted, merged = (load_policy(PolicyConfig(path=str(tiny_flux2_folder))) for _ in range(2))
    config = LoraConfig(rank=4, alpha=6, targets="attn_add_single")
    add_adapters(adapted.backbone, config, (POLICY,))
    parameters = adapter_parameters(adapted.backbone, POLICY)
    randomise(parameters, 0)
    for name in target_modules(merged.backbone, LORA_TARGETS["attn_add_single"]):
        a, b = (parameters[f"transformer.{name}.lora_{side}.weight"].detach() for side in "AB")
        merged.backbone.get_submodule(name).weight += 1.5 * b @ a
    torch.testing.assert_close(velocity(adapted), velocity(merged), rtol=1e-4, atol=1e-5)


def test_using_switches_and_restores(policy: Flux2SR) -> None:
    """Three different velocities, and the trained adapter is active again, also after an exception and nested."""
    base = velocity(policy)
    add_adapters(policy.backbone, SMALL, (POLICY, OLD))
    randomise(adapter_parameters(policy.backbone, POLICY), 1)
    randomise(adapter_parameters(policy.backbone, OLD), 2)
    trained = velocity(policy)
    with using(policy.backbone, OLD):
        old = velocity(policy)
        with using(policy.backbone, None):
            assert torch.equal(velocity(policy), base)
        assert torch.equal(velocity(policy), old)
    for one, other in ((trained, old), (trained, base), (old, base)):
        assert (one - other).abs().max() > 1e-3
    with pytest.raises(RuntimeError, match="inside"), using(policy.backbone, None):
        raise RuntimeError("inside")
    assert torch.equal(velocity(policy), trained)


def test_using_leaves_requires_grad_alone(policy: Flux2SR) -> None:
    """DeepSpeed holds the trained parameters; PEFT's own `set_adapter` would flip their flags."""
    add_adapters(policy.backbone, SMALL, (POLICY, OLD))
    for parameter in adapter_parameters(policy.backbone, OLD).values():
        parameter.requires_grad_(False)

    def flags() -> dict[str, bool]:
        return {name: parameter.requires_grad for name, parameter in policy.backbone.named_parameters()}

    before = flags()
    assert sum(before.values()) == len(adapter_parameters(policy.backbone, POLICY))
    for adapter in (OLD, None, POLICY):
        with using(policy.backbone, adapter):
            assert flags() == before
    assert flags() == before


def test_snapshot_installs_with_the_same_digest_and_effect(tiny_flux2_folder: Path) -> None:
    learner, worker = (load_policy(PolicyConfig(path=str(tiny_flux2_folder))) for _ in range(2))
    add_adapters(learner.backbone, SMALL, (POLICY,))
    add_adapters(worker.backbone, SMALL, (OLD,))
    source = adapter_parameters(learner.backbone, POLICY)
    randomise(source, 3)
    snapshot = take_snapshot(source, 7)
    target = adapter_parameters(worker.backbone, OLD)
    assert installed_digest(target) != snapshot.digest
    install_snapshot(target, snapshot)
    assert installed_digest(target) == snapshot.digest == adapter_digest(snapshot.tensors, "float32")
    assert (snapshot.version, snapshot.dtype) == (7, "float32")
    assert torch.equal(velocity(worker), velocity(learner))


def test_install_on_the_cpu_shares_memory(policy: Flux2SR) -> None:
    """No copy: the adapter's tensors begin at the snapshot's addresses, also for read-only arrays."""
    add_adapters(policy.backbone, SMALL, (POLICY, OLD))
    snapshot = take_snapshot(adapter_parameters(policy.backbone, POLICY), 0)
    for array in snapshot.tensors.values():
        array.flags.writeable = False
    target = adapter_parameters(policy.backbone, OLD)
    install_snapshot(target, snapshot)
    for name, parameter in target.items():
        assert parameter.data_ptr() == snapshot.tensors[name].ctypes.data


def test_bfloat16_adapter_keeps_its_bits(policy: Flux2SR) -> None:
    """bfloat16 travels as uint16 bits: same digest after install, same values, another digest than float32's."""
    add_adapters(policy.backbone, SMALL, (POLICY, OLD))
    source, target = (adapter_parameters(policy.backbone, name) for name in (POLICY, OLD))
    randomise(source, 4)
    wide = take_snapshot(source, 1)
    for parameter in [*source.values(), *target.values()]:
        parameter.data = parameter.data.bfloat16()
    snapshot = take_snapshot(source, 1)
    assert snapshot.dtype == "bfloat16"
    assert {array.dtype for array in snapshot.tensors.values()} == {np.dtype(np.uint16)}
    install_snapshot(target, snapshot)
    assert installed_digest(target) == snapshot.digest != wide.digest
    for name, parameter in target.items():
        assert parameter.dtype == torch.bfloat16 and torch.equal(parameter, source[name])


def test_digest_sees_every_part() -> None:
    """A name, a shape, a dtype, one bit: each changes the digest; the order of the dictionary does not."""
    a, b = np.arange(6, dtype=np.float32), np.ones((2, 2), np.float32)
    digest = adapter_digest({"a": a, "b": b}, "float32")
    assert digest == adapter_digest({"b": b, "a": a.copy()}, "float32")
    flipped = a.copy()
    flipped.view(np.uint8)[5] ^= 1
    others = [
        adapter_digest({"a": a, "c": b}, "float32"),
        adapter_digest({"a": a.reshape(2, 3), "b": b}, "float32"),
        adapter_digest({"a": a, "b": b}, "bfloat16"),
        adapter_digest({"a": flipped, "b": b}, "float32"),
        adapter_digest({"a": a}, "float32"),
    ]
    assert len({digest, *others}) == 6
    assert len(digest) == 32


def test_install_refuses_other_names_and_shapes(policy: Flux2SR) -> None:
    add_adapters(policy.backbone, SMALL, (OLD,))
    target = adapter_parameters(policy.backbone, OLD)
    snapshot = take_snapshot(target, 5)
    name = sorted(target)[0]
    missing = {key: array for key, array in snapshot.tensors.items() if key != name}
    with pytest.raises(SnapshotRefused, match=rf"snapshot 5: adapter misses \['{name}'\] \(1\)"):
        install_snapshot(target, replace(snapshot, tensors=missing))
    with pytest.raises(SnapshotRefused, match=r"has extra \['transformer.x'\] \(1\)"):
        install_snapshot(target, replace(snapshot, tensors={**snapshot.tensors, "transformer.x": np.zeros(1)}))
    a_name = next(key for key in target if key.endswith("lora_A.weight"))
    other_rank = {**snapshot.tensors, a_name: np.zeros((3, 32), np.float32)}
    with pytest.raises(SnapshotRefused, match=rf"snapshot 5: {a_name} is \(3, 32\) .*, the adapter has \(4, 32\)"):
        install_snapshot(target, replace(snapshot, tensors=other_rank))
    double = {key: array.astype(np.float64) for key, array in snapshot.tensors.items()}
    before = installed_digest(target)
    with pytest.raises(SnapshotRefused, match="torch.float64, the adapter has .* torch.float32"):
        install_snapshot(target, replace(snapshot, tensors=double))
    assert installed_digest(target) == before


def test_copy_adapter_copies_values_not_memory(policy: Flux2SR) -> None:
    add_adapters(policy.backbone, SMALL, (POLICY, OLD))
    source, target = (adapter_parameters(policy.backbone, name) for name in (POLICY, OLD))
    randomise(source, 5)
    copy_adapter(source, target)
    digest = installed_digest(target)
    assert digest == installed_digest(source)
    randomise(source, 6)
    assert installed_digest(target) == digest


def test_init_from_starts_every_adapter(policy: Flux2SR, tiny_flux2_folder: Path, tmp_path: Path) -> None:
    """A LoRA file goes into the policy and the behaviour adapter; another rank is refused with both shapes."""
    add_adapters(policy.backbone, SMALL, (POLICY,))
    saved = adapter_parameters(policy.backbone, POLICY)
    randomise(saved, 8)
    file = tmp_path / "start.safetensors"
    save_file({name: parameter.detach().clone() for name, parameter in saved.items()}, file)
    other = load_policy(PolicyConfig(path=str(tiny_flux2_folder)))
    add_adapters(other.backbone, LoraConfig(rank=4, alpha=8, init_from=str(file)), (POLICY, OLD))
    for name in (POLICY, OLD):
        assert installed_digest(adapter_parameters(other.backbone, name)) == installed_digest(saved)
    third = load_policy(PolicyConfig(path=str(tiny_flux2_folder)))
    with pytest.raises(ValueError, match=r"start.safetensors: .* has shape \(4, .*expected \(5, .*another rank"):
        add_adapters(third.backbone, LoraConfig(rank=5, alpha=8, init_from=str(file)), (POLICY,))


def test_load_into_refuses_partial_files(policy: Flux2SR) -> None:
    add_adapters(policy.backbone, SMALL, (POLICY,))
    parameters = adapter_parameters(policy.backbone, POLICY)
    with pytest.raises(ValueError, match=rf"a file: adapter misses .* \({len(parameters)}\)"):
        load_into(parameters, {}, source="a file")


def test_a_backbone_without_the_adapter_says_so(policy: Flux2SR) -> None:
    with pytest.raises(ValueError, match="Flux2Transformer2DModel has no adapter 'old'"):
        adapter_parameters(policy.backbone, OLD)


def test_adapters_of_a_bfloat16_base_are_float32_and_take_gradients(run_config: Callable[..., RunConfig]) -> None:
    """An update of 1e-4 on a weight near 1 would vanish in bfloat16 (spacing 2^-8 = 0.0039)."""
    config = run_config("policy.dtype=bfloat16")
    policy = load_policy(config.policy)
    add_adapters(policy.backbone, config.policy.lora, (POLICY,))
    theta = adapter_parameters(policy.backbone, POLICY)
    assert {parameter.dtype for parameter in theta.values()} == {torch.float32}
    condition = policy.encode(np.full((3, 8, 8), 128, np.uint8), 4)
    x = torch.randn(2, *policy.latent_shape(condition), generator=torch.Generator().manual_seed(0))
    v = policy.velocity(x, torch.tensor([0.3, 0.7]), [condition])
    assert v.dtype == torch.bfloat16
    v.float().square().mean().backward()
    b = [parameter.grad for name, parameter in theta.items() if "lora_B" in name]
    assert all(grad is not None and grad.dtype == torch.float32 for grad in b)
    assert sum(float(grad.abs().sum()) for grad in b if grad is not None) > 0
    assert take_snapshot(theta, 0).dtype == "float32"

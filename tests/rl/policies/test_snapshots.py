"""How an adapter travels: snapshot, digest, install."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rl.policies.base import Policy
from rl.policies.lora import (
    OLD,
    POLICY,
    Adapters,
    SnapshotRefused,
    copy_adapter,
    install_snapshot,
    installed_digest,
    take_snapshot,
)
from rl.types import adapter_digest

Loads = Callable[..., Policy]
Velocity = Callable[[Policy], Tensor]
Randomise = Callable[[dict[str, nn.Parameter], int], None]


def test_snapshot_installs_with_the_same_digest_and_effect(
    load: Loads, velocity: Velocity, randomise: Randomise
) -> None:
    learner, worker = load(), load()
    source, target = Adapters(learner, POLICY).parameters(POLICY), Adapters(worker, OLD).parameters(OLD)
    randomise(source, 3)
    snapshot = take_snapshot(source, 7)
    assert installed_digest(target) != snapshot.digest
    install_snapshot(target, snapshot)
    assert installed_digest(target) == snapshot.digest == adapter_digest(snapshot.tensors, "float32")
    assert (snapshot.version, snapshot.dtype) == (7, "float32")
    assert torch.equal(velocity(worker), velocity(learner))


def test_install_on_the_cpu_shares_memory(load: Loads) -> None:
    """No copy: the adapter's tensors begin at the snapshot's addresses, also for read-only arrays."""
    adapters = Adapters(load(), POLICY, OLD)
    snapshot = take_snapshot(adapters.parameters(POLICY), 0)
    for array in snapshot.tensors.values():
        array.flags.writeable = False
    target = adapters.parameters(OLD)
    install_snapshot(target, snapshot)
    for name, parameter in target.items():
        assert parameter.data_ptr() == snapshot.tensors[name].ctypes.data


def test_bfloat16_adapter_keeps_its_bits(load: Loads, randomise: Randomise) -> None:
    """bfloat16 travels as uint16 bits: same digest after install, same values, another digest than float32's."""
    adapters = Adapters(load(), POLICY, OLD)
    source, target = (adapters.parameters(name) for name in (POLICY, OLD))
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


def test_install_refuses_other_names_and_shapes(load: Loads) -> None:
    target = Adapters(load(), OLD).parameters(OLD)
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


def test_copy_adapter_copies_values_not_memory(load: Loads, randomise: Randomise) -> None:
    adapters = Adapters(load(), POLICY, OLD)
    source, target = (adapters.parameters(name) for name in (POLICY, OLD))
    randomise(source, 5)
    copy_adapter(source, target)
    digest = installed_digest(target)
    assert digest == installed_digest(source)
    randomise(source, 6)
    assert installed_digest(target) == digest

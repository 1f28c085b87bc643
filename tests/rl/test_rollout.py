"""RolloutWorker without Ray: same images whoever samples them, and never with an adapter it has not verified."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rl.config.online import RunConfig
from rl.policies.base import LatentCondition
from rl.policies.flux2sr.policy import Flux2SR
from rl.policies.naosd.policy import NAOSD
from rl.rollout import CanaryError, RolloutWorker, SnapshotRefused
from rl.seeding import member_seeds
from rl.types import LoraSnapshot, RolloutGroup, SRTask, adapter_digest

MEMBERS = 6


@pytest.fixture(scope="module")
def mini_config(mini_folder: Path) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"path": ["skimage:camera"], "crop": 64},
            "policy": {"path": str(mini_folder), "shift": 1.0, "lora": {"rank": 4, "alpha": 8}},
            "rollout": {"group_size": MEMBERS, "sampler": {"steps": 3}},
            "rewards": [{"name": "lr_consistency", "type": "lr_consistency"}],
        }
    )


@pytest.fixture(scope="module")
def snapshot(mini_config: RunConfig) -> LoraSnapshot:
    return random_snapshot(RolloutWorker(mini_config), 2)


@pytest.fixture(scope="module")
def worker(mini_config: RunConfig, snapshot: LoraSnapshot) -> RolloutWorker:
    worker = RolloutWorker(mini_config)
    worker.install(snapshot)
    return worker


def random_snapshot(worker: RolloutWorker, version: int, scale: float = 0.05) -> LoraSnapshot:
    rng = np.random.default_rng(version)
    tensors: dict[str, np.ndarray[Any, Any]] = {
        name: (scale * rng.standard_normal(parameter.shape)).astype(np.float32)
        for name, parameter in worker._adapter.items()
    }
    return LoraSnapshot(version, adapter_digest(tensors, "float32"), tensors, "float32")


def make_task(ordinal: int, seed: int = 0) -> SRTask:
    lr = np.random.default_rng(ordinal).integers(0, 256, (3, 16, 16), dtype=np.uint8)
    return SRTask(ordinal, f"photo@{ordinal}", lr, None, 4, seed)


def roll(worker: RolloutWorker, ordinal: int) -> RolloutGroup:
    return worker.rollout(make_task(ordinal), member_seeds(0, ordinal, MEMBERS))[1]


def assert_same_pictures(one: RolloutGroup, other: RolloutGroup) -> None:
    """Latents to 1e-5, pixels to one step of rounding."""
    np.testing.assert_allclose(one.latents, other.latents, rtol=0, atol=1e-5)
    assert np.abs(one.images.astype(int) - other.images.astype(int)).max() <= 1


def test_one_worker_and_two_workers_make_the_same_images(
    mini_config: RunConfig, snapshot: LoraSnapshot, worker: RolloutWorker
) -> None:
    """Groups 0 to 2 by one worker equal the same groups by another one that sees them in another order."""
    second = RolloutWorker(mini_config)
    second.install(snapshot)
    theirs = {ordinal: roll(second, ordinal) for ordinal in (2, 0)}
    for ordinal, group in theirs.items():
        assert_same_pictures(roll(worker, ordinal), group)
    assert np.abs(theirs[0].latents - theirs[2].latents).max() > 0.1


def test_micro_batches_change_nothing(mini_config: RunConfig, snapshot: LoraSnapshot, worker: RolloutWorker) -> None:
    """6 members as one batch equal 5 + 1."""
    rollout = mini_config.rollout.model_copy(update={"micro_batch": 5})
    small = RolloutWorker(mini_config.model_copy(update={"rollout": rollout}))
    small.install(snapshot)
    sizes: list[int] = []
    predict = small.policy.prediction
    small.policy.prediction = lambda x, t, c: sizes.append(len(x)) or predict(x, t, c)  # type: ignore[method-assign]
    assert_same_pictures(roll(small, 1), roll(worker, 1))
    assert set(sizes) == {5, 1}


def test_members_depend_on_their_own_seed(worker: RolloutWorker) -> None:
    """A member sampled beside others equals the member sampled alone; members of a group differ."""
    seeds = member_seeds(0, 4, MEMBERS)
    group = roll(worker, 4)
    _, alone = worker.rollout(make_task(4), seeds[3:4])
    np.testing.assert_allclose(alone.latents[0], group.latents[3], rtol=0, atol=1e-5)
    distance = np.abs(group.latents[:, None] - group.latents[None]).mean(axis=(2, 3, 4))
    assert (distance[~np.eye(MEMBERS, dtype=bool)] > 0.05).all()


def test_group_and_receipt_say_what_was_sampled(worker: RolloutWorker, snapshot: LoraSnapshot) -> None:
    seeds = member_seeds(0, 3, MEMBERS)
    receipt, group = worker.rollout(make_task(3), seeds)
    assert (group.ordinal, group.lr_id, group.member_seeds) == (3, "photo@3", seeds)
    assert (group.policy_version, group.digest) == (2, snapshot.digest)
    assert (receipt.ordinal, receipt.policy_version, receipt.digest) == (3, 2, snapshot.digest)
    assert receipt.images == MEMBERS and receipt.sample_s > 0
    assert group.images.shape == (MEMBERS, 3, 64, 64) and group.images.dtype == np.uint8
    assert group.latents.dtype == np.float32


def test_images_are_the_decoded_latents(worker: RolloutWorker) -> None:
    """What the rewards see is what the learner trains on."""
    group = roll(worker, 5)
    with torch.no_grad():
        pixels = worker.policy.decode(torch.from_numpy(group.latents))
    expected = (pixels.clamp(-1, 1).numpy() + 1) * 127.5
    assert np.abs(group.images - expected).max() <= 0.51


def test_one_adapter_only_another_image(run_config: Callable[..., RunConfig]) -> None:
    """The installed adapter reaches the images."""
    worker = RolloutWorker(run_config())
    worker.install(random_snapshot(worker, 1))
    before = roll(worker, 0)
    worker.install(random_snapshot(worker, 2, scale=0.3))
    after = roll(worker, 0)
    assert np.abs(before.latents - after.latents).max() > 1e-2


def test_an_evaluation_samples_with_its_own_sampler_and_no_trajectory(run_config: Callable[..., RunConfig]) -> None:
    """Of a run on SDE steps: Euler's steps, as a run samples that names them, with the pushed adapter."""
    worker = RolloutWorker(run_config("objective.type=grpo", "rollout.sampler.solver=sde"))
    plain = RolloutWorker(run_config("rollout.sampler.solver=euler"))
    snapshot = random_snapshot(worker, 1)
    worker.install(snapshot)
    plain.install(snapshot)
    seeds = member_seeds(0, 0, 4)
    _, trained = worker.rollout(make_task(0), seeds)
    _, evaluated = worker.rollout(make_task(0), seeds, training=False)
    _, euler = plain.rollout(make_task(0), seeds)
    assert trained.trajectory is not None and evaluated.trajectory is None
    np.testing.assert_array_equal(evaluated.latents, euler.latents)
    assert np.abs(evaluated.latents - trained.latents).max() > 0.1


def test_no_sampling_before_the_first_push(run_config: Callable[..., RunConfig]) -> None:
    with pytest.raises(SnapshotRefused, match="holds no verified adapter; push one before sampling"):
        roll(RolloutWorker(run_config()), 0)


def test_one_flipped_bit_is_refused_and_stops_sampling(run_config: Callable[..., RunConfig]) -> None:
    """A worker that held a good adapter refuses a tampered one by name, samples nothing, and recovers."""
    worker = RolloutWorker(run_config())
    good = random_snapshot(worker, 4)
    worker.install(good)
    name = sorted(good.tensors)[-1]
    tampered = good.tensors[name].copy()
    tampered.view(np.uint8).reshape(-1)[-1] ^= 1
    with pytest.raises(SnapshotRefused, match=rf"snapshot 4: claims digest {good.digest}, its tensors have [0-9a-f]+"):
        worker.install(replace(good, tensors={**good.tensors, name: tampered}))
    with pytest.raises(SnapshotRefused, match="no verified adapter"):
        roll(worker, 0)
    echo = worker.install(good)
    assert (echo.version, echo.digest) == (4, good.digest)
    assert len(roll(worker, 0).images) == MEMBERS


def test_a_partial_snapshot_is_refused_and_stops_sampling(run_config: Callable[..., RunConfig]) -> None:
    worker = RolloutWorker(run_config())
    good = random_snapshot(worker, 4)
    worker.install(good)
    name = sorted(good.tensors)[0]
    partial = {key: value for key, value in good.tensors.items() if key != name}
    with pytest.raises(SnapshotRefused, match=rf"snapshot 4: adapter misses \['{name}'\]"):
        worker.install(replace(good, tensors=partial))
    with pytest.raises(SnapshotRefused, match="no verified adapter"):
        roll(worker, 0)


def test_a_snapshot_of_another_rank_is_refused(run_config: Callable[..., RunConfig]) -> None:
    worker = RolloutWorker(run_config())
    other = random_snapshot(RolloutWorker(run_config("policy.lora.rank=5")), 1)
    with pytest.raises(SnapshotRefused, match=r"snapshot 1: .* is \(5, 32\) .* the adapter has \(4, 32\)"):
        worker.install(other)
    with pytest.raises(SnapshotRefused, match="no verified adapter"):
        roll(worker, 0)


def with_b(worker: RolloutWorker, version: int, b: float) -> LoraSnapshot:
    """A random adapter whose B is `b` times the drawn one."""
    drawn = random_snapshot(worker, version).tensors
    tensors = {name: np.float32(b if "lora_B" in name else 1) * value for name, value in drawn.items()}
    return LoraSnapshot(version, adapter_digest(tensors, "float32"), tensors, "float32")


@pytest.mark.parametrize("policy", ["run_config", "naosd_config"])
def test_the_echo_shows_whether_an_adapter_has_an_effect(policy: str, request: pytest.FixtureRequest) -> None:
    """0 for B = 0, whatever A is; above 0, and the same again, as soon as B is not 0; absent where it was not asked."""
    worker = RolloutWorker(request.getfixturevalue(policy)())
    assert worker.install(with_b(worker, 1, 0.0)).effect is None
    assert worker.install(with_b(worker, 1, 0.0), probe=True).effect == 0.0
    assert worker.install(with_b(worker, 2, 0.0), probe=True).effect == 0.0
    effects = [worker.install(with_b(worker, 1, 1.0), probe=True).effect for _ in range(2)]
    assert effects[0] == effects[1] and effects[0] is not None and effects[0] > 1e-7
    small = worker.install(with_b(worker, 1, 0.5), probe=True).effect
    assert small is not None and 0 < small < effects[0]


@pytest.mark.parametrize(("targets", "modules"), [("attn_add", 8), ("attn_add_single", 12), ("attn_add_ffn", 12)])
def test_the_echo_counts_the_layers_that_the_adapter_is_bound_to(
    run_config: Callable[..., RunConfig], targets: str, modules: int
) -> None:
    """The tiny model has one double block, of 8 attention and 4 feed-forward layers, and two single blocks of 2."""
    worker = RolloutWorker(run_config(f"policy.lora.targets={targets}"))
    assert worker.install(random_snapshot(worker, 1)).modules == modules


DEAF = {
    "the image is not read": (
        "condition",
        lambda real: lambda self, lr, *rest, **keys: real(self, 0 * lr, *rest, **keys),
    ),
    "the condition does not reach the model": (
        "prediction",
        lambda real: lambda self, x, t, conditions: real(self, x, t, [LatentCondition(0 * conditions[0].latents)]),
    ),
}


@pytest.mark.parametrize("case", DEAF)
def test_a_policy_that_ignores_its_image_is_refused_at_the_start(
    run_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    name, deafen = DEAF[case]
    RolloutWorker(run_config())
    monkeypatch.setattr(Flux2SR, name, deafen(getattr(Flux2SR, name)))
    with pytest.raises(CanaryError, match="policy 'flux2sr': another LR image does not change the output"):
        RolloutWorker(run_config())


def test_a_one_step_policy_that_ignores_its_image_is_refused(
    naosd_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = NAOSD.start
    monkeypatch.setattr(NAOSD, "start", lambda self, conditions, members: 0 * real(self, conditions, members))
    with pytest.raises(CanaryError, match="policy 'naosd': another LR image does not change the output"):
        RolloutWorker(naosd_config())


def test_echo_reports_recomputed_digest_and_times(run_config: Callable[..., RunConfig]) -> None:
    worker = RolloutWorker(run_config())
    snapshot = random_snapshot(worker, 9)
    echo = worker.install(snapshot)
    assert (echo.version, echo.digest) == (9, snapshot.digest)
    assert echo.load_s > 0 and echo.verify_s > 0
    assert worker.adapter_size == sum(array.size for array in snapshot.tensors.values())


def test_a_group_made_by_t_add_shares_its_noise(naosd_config: Callable[..., RunConfig]) -> None:
    """Members 0..4 at t_add 150, 200, ... 350 with the first member's noise: the one at 250 is the plain image of that
    noise, neighbours are nearer than the ends, and micro-batches change nothing."""
    choose = ("rollout.sampler={solver: one_step, t_add_range: [150, 350]}", "rollout.group_size=5", "data.crop=64")
    worker = RolloutWorker(naosd_config(*choose))
    snapshot = random_snapshot(worker, 1)
    seeds = member_seeds(0, 3, 5)
    worker.install(snapshot)
    _, group = worker.rollout(make_task(3), seeds)
    plain = RolloutWorker(naosd_config("data.crop=64"))
    plain.install(snapshot)
    _, at_250 = plain.rollout(make_task(3), seeds[:1])
    np.testing.assert_allclose(group.latents[2], at_250.latents[0], rtol=0, atol=1e-5)
    step = np.abs(np.diff(group.latents, axis=0)).mean(axis=(1, 2, 3))
    assert step.min() > 1e-3 and np.abs(group.latents[0] - group.latents[4]).mean() > 2 * step.max()
    parted = RolloutWorker(naosd_config(*choose, "rollout.micro_batch=2"))
    parted.install(snapshot)
    np.testing.assert_allclose(parted.rollout(make_task(3), seeds)[1].latents, group.latents, rtol=0, atol=1e-5)

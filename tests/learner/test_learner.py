"""One rank under real DeepSpeed (gloo, CPU) against plain PyTorch, and its state in a checkpoint."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import free_port, rank_environment
from safetensors.torch import save_file

from learner.engine import build_optimizer
from learner.finite import NotFinite
from learner.learner import Learner
from learner.state import Damaged, LearnerState
from rl.config.online import RunConfig
from rl.errors import InputError
from rl.objectives import build_objective
from rl.policies import load_policy
from rl.policies.lora import OLD, POLICY, Adapters
from rl.types import TrainGroup, adapter_digest

Batch = Callable[..., list[TrainGroup]]


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    """A process group of one; DeepSpeed joins it once per process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in rank_environment(0, 1, free_port()).items():
            patch.setenv(name, value)
        yield


@pytest.fixture
def config(run_config: Callable[..., RunConfig]) -> RunConfig:
    return run_config(
        "train.groups_per_step=2", "train.max_policy_lag=1", "learner.updates_per_batch=3", "learner.optimizer.lr=0.01"
    )


@pytest.fixture
def batch(make_group: Callable[..., TrainGroup]) -> Batch:
    """A batch of two groups of one version, whose ordinals are 2 seed and 2 seed + 1."""
    return lambda version, seed: [make_group(ordinal, version=version) for ordinal in (2 * seed, 2 * seed + 1)]


def bytes_of(adapter: dict[str, torch.Tensor]) -> str:
    return adapter_digest({name: value.detach().numpy() for name, value in adapter.items()}, "float32")


def plain_adamw(config: RunConfig, groups: list[TrainGroup]) -> dict[str, torch.Tensor]:
    """The same batch without DeepSpeed: mean over micro-batches, clip to 1, AdamW."""
    torch.manual_seed(config.seed)
    policy = load_policy(config.policy)
    adapters = Adapters(policy, POLICY, OLD)
    theta = adapters.parameters(POLICY)
    for parameter in adapters.parameters(OLD).values():
        parameter.requires_grad_(False)
    objective = build_objective(policy, adapters, config)
    optimizer = build_optimizer([*theta.values()], config.learner.optimizer)
    batches = objective.micro_batches(groups, 0)
    for _ in range(config.learner.updates_per_batch):
        for _ in range(config.micro_batches_per_update):
            (objective(next(batches)).total / config.micro_batches_per_update).backward()
        torch.nn.utils.clip_grad_norm_([*theta.values()], config.learner.optimizer.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
    return {name: parameter.detach().clone() for name, parameter in theta.items()}


def test_deepspeed_takes_the_steps_of_plain_adamw(config: RunConfig, batch: Batch) -> None:
    """3 updates of 2 micro-batches: the adapter agrees to 1e-6, after moving by about lr each update."""
    learner = Learner(config)
    start = {name: value.clone() for name, value in learner.ema.tensors.items()}
    report = learner.train(batch(0, seed=1))
    expected = plain_adamw(config, batch(0, seed=1))
    moved = max((expected[name] - start[name]).abs().max().item() for name in start)
    assert 0.01 < moved < 0.05
    for name, parameter in learner.theta.items():
        torch.testing.assert_close(parameter.detach(), expected[name], atol=1e-6, rtol=0)
    assert (report.version, report.updates) == (1, 3) and report.grad_norm > 0


def test_old_follows_with_the_published_ramp_and_snapshots_never_change(config: RunConfig, batch: Batch) -> None:
    """eta after 3 updates is min(0.001 * 3, 0.5) = 0.003; a snapshot keeps its bytes while training goes on."""
    learner = Learner(config)
    first = learner.snapshot()
    before = {name: value.clone() for name, value in learner.history[0].items()}
    learner.train(batch(0, seed=2))
    for name, value in learner.history[1].items():
        expected = 0.003 * before[name] + 0.997 * learner.theta[name].detach()
        torch.testing.assert_close(value, expected, atol=1e-7, rtol=0)
    second = learner.snapshot()
    learner.train(batch(1, seed=3))
    assert adapter_digest(first.tensors, first.dtype) == first.digest
    assert adapter_digest(second.tensors, second.dtype) == second.digest != first.digest


def test_a_group_that_is_too_old_is_refused(config: RunConfig, batch: Batch) -> None:
    """max_policy_lag 1: at version 3 a group of version 2 is trained on, one of version 1 is not."""
    learner = Learner(config)
    for version, seed in ((0, 4), (0, 5), (1, 6)):
        learner.train(batch(version, seed=seed))
    with pytest.raises(ValueError, match=r"group 14 was sampled with version 1, the learner's is 3"):
        learner.train(batch(1, seed=7))


@pytest.mark.parametrize(("anchor", "held", "kept"), [("newest", 1, [1]), ("behaviour", 0, [0, 1])])
def test_the_anchor_is_the_newest_adapter_or_the_behaviour(
    run_config: Callable[..., RunConfig], anchor: str, held: int, kept: list[int], batch: Batch
) -> None:
    """A group of version 0 at version 1: what the loss's `old` adapter holds, and the versions that have to be kept."""
    config = run_config("train.groups_per_step=2", "learner.optimizer.lr=0.01", f"objective.anchor={anchor}")
    learner = Learner(config)
    learner.train(batch(0, seed=4))
    assert sorted(learner.history) == kept
    versions = {version: bytes_of(adapter) for version, adapter in learner.history.items()}
    learner.train(batch(0, seed=5))
    assert bytes_of(dict(learner.adapters.parameters(OLD))) == versions[held]


def test_without_lag_both_anchors_are_the_same_training(run_config: Callable[..., RunConfig], batch: Batch) -> None:
    weights = []
    for anchor in ("newest", "behaviour"):
        learner = Learner(run_config("train.groups_per_step=2", f"objective.anchor={anchor}"))
        learner.train(batch(0, seed=4))
        learner.train(batch(1, seed=5))
        weights.append(bytes_of(dict(learner.theta)))
    assert weights[0] == weights[1]


@pytest.mark.parametrize("stage", [0, 2])
def test_what_is_not_finite_is_never_stepped(run_config: Callable[..., RunConfig], stage: int, batch: Batch) -> None:
    """One latent of the second group is infinite: named by its ordinal, and nothing has moved."""
    learner = Learner(run_config("train.groups_per_step=2", f"learner.zero_stage={stage}"))
    learner.train(batch(0, seed=1))
    before = [bytes_of(dict(learner.theta)), bytes_of(learner.ema.tensors), bytes_of(learner.history[1])]
    items = batch(1, seed=2)
    latents = items[1].group.latents.copy()
    latents[0, 0, 0, 0] = np.inf
    items[1] = replace(items[1], group=replace(items[1].group, latents=latents))
    with pytest.raises(NotFinite, match=r"rank\(s\) \[0\] is not finite on groups \[5\]; no optimiser step"):
        learner.train(items)
    assert [bytes_of(dict(learner.theta)), bytes_of(learner.ema.tensors), bytes_of(learner.history[1])] == before
    assert learner.version == 1 and sorted(learner.history) == [1]


def test_a_gradient_that_is_not_finite_under_a_finite_loss_is_never_stepped(config: RunConfig, batch: Batch) -> None:
    learner = Learner(config)
    before = bytes_of(dict(learner.theta))
    last = learner.policy.modules["transformer"].get_submodule("proj_out")
    last.register_full_backward_hook(lambda module, inputs, outputs: (inputs[0] * float("nan"),))
    with pytest.raises(
        NotFinite, match=r"a loss or gradient of learner rank\(s\) \[0\] is not finite on groups \[2, 3\]"
    ):
        learner.train(batch(0, seed=1))
    assert bytes_of(dict(learner.theta)) == before


def test_a_step_that_deepspeed_leaves_out_ends_the_run(config: RunConfig, batch: Batch) -> None:
    """Behind the learner's own look a gradient becomes NaN: DeepSpeed skips the step with a line in the log."""
    learner = Learner(config)
    before = bytes_of(dict(learner.theta))
    next(iter(learner.theta.values())).register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(NotFinite, match=r"the gradient over all ranks is not finite on groups \[2, 3\]"):
        learner.train(batch(0, seed=1))
    assert bytes_of(dict(learner.theta)) == before and learner.version == 0


def test_a_restored_learner_takes_the_same_next_step_bit_for_bit(config: RunConfig, batch: Batch) -> None:
    learner = Learner(config)
    learner.train(batch(0, seed=8))
    files = learner.save()
    learner.train(batch(1, seed=9))

    other = Learner(config)
    other.load(files)
    assert (other.version, other.updates) == (1, 3)
    other.train(batch(1, seed=9))
    assert bytes_of(dict(other.theta)) == bytes_of(dict(learner.theta))
    assert bytes_of(other.history[2]) == bytes_of(learner.history[2])
    assert bytes_of(other.ema.tensors) == bytes_of(learner.ema.tensors)


@pytest.mark.parametrize("stage", [0, 2])
def test_a_checkpoint_before_the_first_step_is_the_start(
    run_config: Callable[..., RunConfig], stage: int, batch: Batch
) -> None:
    """There are no moments yet; a learner that has trained on goes back to the first step's numbers."""
    learner = Learner(run_config("train.groups_per_step=2", f"learner.zero_stage={stage}"))
    files = learner.save()
    assert LearnerState.from_files(files).steps == {}
    ends = []
    for _ in range(2):
        learner.load(files)
        learner.train(batch(0, seed=8))
        ends.append(bytes_of(dict(learner.theta)))
    assert ends[0] == ends[1]


def test_a_checkpoint_that_changed_on_its_way_is_refused(config: RunConfig) -> None:
    learner = Learner(config)
    files = learner.save()
    flipped = files.contents["ema.safetensors"].copy()
    flipped[-1] ^= 1
    broken = replace(files, contents={**files.contents, "ema.safetensors": flipped})
    with pytest.raises(Damaged, match=r"ema.safetensors: expected \w{32}, got \w{32} of \d+ bytes"):
        learner.load(broken)
    lost = {name: content for name, content in files.contents.items() if name != "ema.safetensors"}
    with pytest.raises(Damaged, match="expected the files .*'ema.safetensors'"):
        learner.load(replace(files, contents=lost))


def test_a_checkpoint_of_another_rank_is_refused(config: RunConfig, run_config: Callable[..., RunConfig]) -> None:
    files = Learner(config).save()
    other = Learner(run_config("policy.lora.rank=2", "train.groups_per_step=2"))
    with pytest.raises(ValueError, match=r"the checkpoint: .* has shape \(4, \d+\), expected \(2, \d+\)"):
        other.load(files)


def test_a_bfloat16_base_trains_a_float32_adapter(run_config: Callable[..., RunConfig], batch: Batch) -> None:
    """The real-size setting: the frozen base in bfloat16, the adapter and AdamW in float32."""
    learner = Learner(run_config("policy.dtype=bfloat16", "train.groups_per_step=2", "learner.optimizer.lr=0.001"))
    before = {name: value.clone() for name, value in learner.ema.tensors.items()}
    report = learner.train(batch(0, seed=10))
    assert report.grad_norm > 0
    moved = [(learner.theta[name].detach() - before[name]).abs().max().item() for name in before]
    assert 0.0009 < max(moved) < 0.0011  # AdamW's first step is lr * sign(gradient)
    assert learner.snapshot().dtype == "float32"


def test_another_reference_is_refused_on_resume(
    config: RunConfig, run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """A checkpoint of a run whose reference is the base, resumed with an adapter file as the reference."""
    learner = Learner(config)
    files = learner.save()
    file = tmp_path / "other.safetensors"
    save_file({name: torch.ones_like(value) for name, value in learner.ema.tensors.items()}, file)
    other = Learner(run_config("train.groups_per_step=2", f"policy.reference={file}"))
    with pytest.raises(InputError, match=r"compares with the reference None, policy.reference is now \w{32}"):
        other.load(files)

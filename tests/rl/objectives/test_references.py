"""What losses compare with: the adapter that training began with, the base, or a file."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rl.config.online import RunConfig
from rl.metrics import Key
from rl.objectives.base import Loss, Objective
from rl.policies.lora import POLICY, installed_digest, take_snapshot
from rl.preferences import train_item
from rl.rollout import RolloutWorker
from rl.seeding import member_seeds
from rl.types import RolloutGroup, SRTask, TrainItem

Configure = Callable[..., RunConfig]
RUNS = {
    "nft": ("flux2sr", "objective={type: nft, kl_weight: 0.01}"),
    "grpo": ("flux2sr", "objective={type: grpo}", "rollout.sampler.solver=sde"),
    "gdpo": ("naosd",),
    "dpo": ("naosd", "objective.type=diffusion_dpo"),
    "gdpo on a flow": ("flux2sr", "objective={type: gdpo}"),
}
ADVANTAGES = np.array([-1.2, 0.1, 1.4, -0.3])


@pytest.fixture
def adapter_file(
    build: Callable[..., Objective[Any]], randomise: Callable[..., None], configure: Configure, tmp_path: Path
) -> Callable[..., tuple[str, str]]:
    """A file with a random rank-4 adapter of a run's policy, and the digest of its tensors."""

    def make(name: str, seed: int) -> tuple[str, str]:
        objective = build(configure(*RUNS[name]))
        randomise(objective, POLICY, seed)
        theta = objective.adapters.parameters(POLICY)
        file = tmp_path / f"{seed}.safetensors"
        component, lora = next(iter(theta)).partition(".")[0], objective.run_config.policy.lora
        header = json.dumps({f"{component}.r": lora.rank, f"{component}.lora_alpha": lora.alpha})
        tensors = {key: value.detach().clone() for key, value in theta.items()}
        save_file(tensors, file, metadata={"lora_adapter_metadata": header})
        return str(file), installed_digest(theta)

    return make


def rolled(worker: RolloutWorker, objective: Objective[Any]) -> tuple[SRTask, RolloutGroup]:
    theta = objective.adapters.parameters(POLICY)
    worker.install(take_snapshot({name: p.detach().clone() for name, p in theta.items()}, 0))
    lr = np.random.default_rng(0).integers(0, 256, (3, 16, 16), dtype=np.uint8)
    task = SRTask(0, "photo", lr, None, 4, 0)
    return task, worker.rollout(task, member_seeds(0, 0, 4))[1]


def first_loss(objective: Objective[Any]) -> Loss:
    """Of a group that a worker of the same run sampled with the learner's adapter."""
    config = objective.run_config
    task, group = rolled(RolloutWorker(config), objective)
    item: TrainItem = train_item(task, group, ADVANTAGES, pairs=config.objective.pairs)
    loss: Loss = objective(next(objective.micro_batches([item], 0)))
    return loss


@pytest.mark.parametrize("name", RUNS)
def test_training_from_an_adapter_starts_at_its_reference(
    build: Callable[..., Objective[Any]], configure: Configure, adapter_file: Callable[..., tuple[str, str]], name: str
) -> None:
    """`start`, the default: preference losses are ln 2 and KL is 0 on the adapter that was loaded."""
    file, digest = adapter_file(name, 7)
    objective = build(configure(*RUNS[name], f"policy.lora.init_from={file}"))
    assert objective.adapters.reference_digest() == digest
    loss = first_loss(objective)
    if Key.LOSS_MARGIN in loss.terms:
        assert loss.total.item() == pytest.approx(math.log(2), abs=1e-6)
        assert loss.terms[Key.LOSS_MARGIN].item() == 0.0
    else:
        assert loss.terms[Key.LOSS_KL].item() == 0.0


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("reference", ["base", "another file"])
def test_another_reference_is_compared_with(
    build: Callable[..., Objective[Any]],
    configure: Configure,
    adapter_file: Callable[..., tuple[str, str]],
    name: str,
    reference: str,
) -> None:
    """The base, or a file's adapter, which the run does not start from: no loss starts at ln 2 and no KL at 0."""
    file, _ = adapter_file(name, 7)
    other, digest = adapter_file(name, 8)
    named = "base" if reference == "base" else other
    objective = build(configure(*RUNS[name], f"policy.lora.init_from={file}", f"policy.reference={named}"))
    assert objective.adapters.reference_digest() == (None if reference == "base" else digest)
    loss = first_loss(objective)
    if Key.LOSS_MARGIN in loss.terms:
        assert abs(loss.total.item() - math.log(2)) > 1e-2
        assert loss.terms[Key.LOSS_DRIFT].item() > 1e-6
    else:
        assert loss.terms[Key.LOSS_KL].item() > 1e-6


def test_the_reference_is_the_files_own_prediction(
    build: Callable[..., Objective[Any]], configure: Configure, adapter_file: Callable[..., tuple[str, str]]
) -> None:
    """NFT's KL = mean (v_theta - v_file)^2, v_file from a policy that starts from that file."""
    file, _ = adapter_file("nft", 7)
    objective, of_file = (
        build(configure(*RUNS["nft"], f"policy.reference={file}")),
        build(configure(*RUNS["nft"], f"policy.lora.init_from={file}")),
    )
    task, group = rolled(RolloutWorker(objective.run_config), objective)
    item = train_item(task, group, ADVANTAGES, pairs=False)
    batch = next(objective.micro_batches([item], 0))
    with torch.no_grad():
        x_t = objective.policy.noised(batch.x0, batch.eps, batch.t)
        v, v_file = (o.policy.prediction(x_t, batch.t, [batch.condition]) for o in (objective, of_file))
    kl = objective(batch).terms[Key.LOSS_KL].item()
    assert kl == pytest.approx(float((v - v_file).square().mean()), rel=1e-5) and kl > 1e-6


@pytest.mark.parametrize("reference", ["start", "base"])
def test_groups_come_from_the_reference_where_the_objective_says_so(
    build: Callable[..., Objective[Any]],
    configure: Configure,
    adapter_file: Callable[..., tuple[str, str]],
    randomise: Callable[..., None],
    reference: str,
) -> None:
    """GDPO samples its groups with the reference, whatever adapter the worker was pushed; `sample_from: policy` does
    not."""
    file, _ = adapter_file("gdpo", 7)
    overrides = (f"policy.lora.init_from={file}", f"policy.reference={reference}")
    objective = build(configure(*RUNS["gdpo"], *overrides))
    worker = RolloutWorker(objective.run_config)
    before = rolled(worker, objective)[1].latents
    randomise(objective, POLICY, 9)
    np.testing.assert_array_equal(rolled(worker, objective)[1].latents, before)
    if reference == "base":
        bare = build(configure(*RUNS["gdpo"]))
        np.testing.assert_array_equal(rolled(RolloutWorker(bare.run_config), bare)[1].latents, before)
    live = RolloutWorker(configure(*RUNS["gdpo"], *overrides, "objective.sample_from=policy"))
    assert np.abs(rolled(live, objective)[1].latents - before).max() > 1e-3

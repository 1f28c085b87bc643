"""A group in micro-batches is the group: gradients, logged losses and the order of forward passes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rl.config.online import RunConfig
from rl.metrics import Key
from rl.objectives.base import Loss, Objective
from rl.policies.lora import OLD, POLICY, take_snapshot
from rl.preferences import train_item
from rl.rollout import RolloutWorker
from rl.seeding import member_seeds
from rl.spatial import grid
from rl.types import F64, SRTask, TrainItem

Configure = Callable[..., RunConfig]
SDE = "rollout.sampler.solver=sde"
MAP = "advantage.spatial=map"
RUNS = {
    "nft": ("flux2sr", "objective={type: nft, kl_weight: 0.01}"),
    "nft on one step": ("naosd", "objective={type: nft, kl_weight: 0.01, allow_one_step: true}"),
    "flow_grpo": ("flux2sr", "objective={type: grpo, clip: 0.01}", SDE),
    "guard": ("flux2sr", "objective={type: grpo, guard: true, kl_weight: 0, weight_by_dt: true}", SDE),
    "grpo on one step": ("naosd", "objective={type: grpo}", "rollout.sampler={solver: gaussian, std: 0.1}"),
    "gdpo": ("naosd", "objective={type: gdpo, draws: 2}"),
    "gdpo on a flow": ("flux2sr", "objective={type: gdpo, omega: 500}"),
    "gdpo, one noise": ("naosd", "objective={type: gdpo, noise: group}"),
    "dpo": ("naosd", "objective={type: diffusion_dpo}"),
    "nft, cells": ("flux2sr", "objective={type: nft, normaliser: cell}", MAP, "advantage.pool=3"),
    "flow_grpo, cells": ("flux2sr", "objective={type: grpo, clip: 0.01}", SDE, MAP),
    "guard, cells": ("flux2sr", "objective={type: grpo, guard: true, kl_weight: 0}", SDE, MAP, "advantage.pool=2"),
    "grpo on one step, cells": ("naosd", "objective={type: grpo}", "rollout.sampler={solver: gaussian, std: 0.1}", MAP),
    "gdpo, cells": ("naosd", "objective={type: gdpo, omega: 500}", MAP, "advantage.pool=3"),
    "gdpo, each cell judged": ("naosd", "objective={type: gdpo, judged: cell}", MAP, "advantage.pool=2"),
    "dpo, stitched latents": ("naosd", "objective={type: diffusion_dpo, stitched: latents}", MAP),
    "dpo, stitched pixels": ("naosd", "objective={type: diffusion_dpo, stitched: pixels}", MAP, "advantage.pool=2"),
}
ADVANTAGES = np.array([-1.2, 0.1, 1.4, -0.3])


def advantages(config: RunConfig) -> F64:
    """`[4]`, or a map of an image of 64 pixels that ranks the members of every cell in its own way."""
    if config.map_cell_px is None:
        return ADVANTAGES
    rows, columns = grid((64, 64), config.map_cell_px)
    rolled = [np.roll(ADVANTAGES, k) for k in range(rows * columns)]
    return np.stack(rolled, axis=1).reshape(4, rows, columns)


@pytest.fixture
def trained(
    build: Callable[..., Objective[Any]],
    randomise: Callable[..., None],
    configure: Configure,
) -> Callable[[str], tuple[Objective[Any], list[TrainItem]]]:
    """An objective whose policy has left anchor and reference, and a group of four that a worker sampled. The model is
    in float64: its predictions are those of any batch size, and what is left is the algebra."""

    def make(name: str) -> tuple[Objective[Any], list[TrainItem]]:
        config = configure(*RUNS[name])
        objective = build(config)
        randomise(objective, OLD, 1, 0.05)
        worker = RolloutWorker(config)
        worker.install(take_snapshot(objective.adapters.parameters(OLD), 0))
        lr = np.random.default_rng(0).integers(0, 256, (3, 16, 16), dtype=np.uint8)
        task = SRTask(0, "photo", lr, None, 4, 0)
        _, group = worker.rollout(task, member_seeds(0, 0, 4))
        randomise(objective, POLICY, 2, 0.06)
        for module in (*objective.policy.modules.values(), objective.policy.vae):
            module.double()
        objective.policy.dtype = torch.float64
        if config.policy.type == "flux2sr":
            objective.policy._prompt = objective.policy._prompt.double()
        return objective, [train_item(task, group, advantages(config), pairs=config.objective.pairs)]

    return make


def summed(objective: Objective[Any], items: list[TrainItem]) -> tuple[Tensor, dict[Key, float], list[Loss]]:
    """The gradient of all micro-batches in one vector, and their terms summed."""
    parameters = list(objective.adapters.parameters(POLICY).values())
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    terms: dict[Key, float] = {}
    losses = []
    for batch in objective.micro_batches(items, 0):
        loss = objective(batch)
        gradients = torch.autograd.grad(loss.total, parameters)
        total += torch.cat([gradient.flatten() for gradient in gradients]).double()
        for key, term in {Key.LOSS_TOTAL: loss.total, **loss.terms}.items():
            terms[key] = terms.get(key, 0.0) + term.item()
        losses.append(loss)
    return total, terms, losses


@pytest.mark.parametrize("name", RUNS)
def test_gradients_and_losses_are_the_whole_groups(
    trained: Callable[[str], tuple[Objective[Any], list[TrainItem]]],
    configure: Configure,
    name: str,
) -> None:
    """1, 2 and 3 members of 4 at a time: equal to 1e-6 of the gradient's norm, logged terms and largest values too."""
    objective, items = trained(name)
    whole, expected, losses = summed(objective, items)
    section = objective.run_config.objective
    # a ratio objective trains in the micro-batches that it sampled in
    key = "rollout.micro_batch" if section.likelihood else "learner.micro_batch"
    assert whole.norm() > 1e-4
    for size, parts in ((1, 4), (2, 2), (3, 2)):
        objective.run_config = configure(*RUNS[name], f"{key}={size}")
        gradient, terms, of_parts = summed(objective, items)
        assert len(of_parts) == len(losses) * (1 if section.pairs else parts)
        assert (gradient - whole).norm() <= 1e-6 * whole.norm()
        # losses are float32: what members of size 5 leave after they cancel is known to 1e-6
        assert terms == pytest.approx(expected, rel=1e-6, abs=1e-6)
        for term in losses[0].maxima:
            found, known = (max(float(loss.maxima[term]) for loss in run) for run in (of_parts, losses))
            assert found == pytest.approx(known, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", RUNS)
def test_frozen_forwards_run_before_the_policys_graph_exists(
    trained: Callable[[str], tuple[Objective[Any], list[TrainItem]]],
    configure: Configure,
    name: str,
) -> None:
    """Anchor and reference are forwarded without a graph and first, so that memory is never that of two forwards; one
    forward holds at most micro_batch members, a pair's two. All passes are the ones that the plan counts."""
    objective, items = trained(name)
    section = objective.run_config.objective
    key = "rollout.micro_batch" if section.likelihood else "learner.micro_batch"
    objective.run_config = configure(*RUNS[name], f"{key}=3")
    passes: list[tuple[bool, int]] = []
    (module,) = objective.policy.modules.values()
    module.register_forward_hook(
        lambda _, args, kwargs, out: passes.append((torch.is_grad_enabled(), len(out[0]))), with_kwargs=True
    )
    parts = objective.run_config.parts_per_group
    total = 0
    for batch in objective.micro_batches(items, 0):
        total += len(passes)
        passes.clear()
        objective(batch)
        graphs = [graph for graph, _ in passes]
        assert graphs == [*[False] * (len(graphs) - 1), True]
        total += len(passes)
        assert {size for _, size in passes} == {round(2 if section.pairs else 4 * batch.share)}
        assert max(size for _, size in passes) <= 3
        passes.clear()
    assert total == section.forwards(parts) * len(list(objective.micro_batches(items, 0)))

"""AdamW's state in and out of the optimiser; `test_resharding.py` has ZeRO's parts on several ranks."""

from collections.abc import Callable

import pytest
import torch
from harness import free_port, rank_environment
from torch import nn

from learner.learner import Learner
from learner.moments import gather_moments, install_moments
from rl.config.online import RunConfig


def adamw(parameters: dict[str, nn.Parameter]) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters.values(), lr=0.1, weight_decay=0.5)


def test_a_tensor_without_a_gradient_has_no_state_and_gets_none() -> None:
    """Such a tensor is not decayed either, now or after a resume; the others take the uninterrupted step."""

    def make() -> dict[str, nn.Parameter]:
        return {"used": nn.Parameter(torch.tensor([1.0, 2.0])), "unused": nn.Parameter(torch.tensor([3.0]))}

    def step(parameters: dict[str, nn.Parameter], optimizer: torch.optim.AdamW, k: int) -> None:
        parameters["used"].grad = torch.tensor([0.5, -0.25]) * k
        optimizer.step()

    whole = make()
    optimizer = adamw(whole)
    step(whole, optimizer, 1)
    moments = gather_moments(optimizer, whole)
    assert (moments.steps, list(moments.exp_avg), list(moments.exp_avg_sq)) == ({"used": 1}, ["used"], ["used"])

    resumed = {name: nn.Parameter(value.detach().clone()) for name, value in whole.items()}
    again = adamw(resumed)
    install_moments(again, resumed, moments)
    for parameters, each in ((whole, optimizer), (resumed, again)):
        step(parameters, each, 2)
    assert torch.equal(whole["used"], resumed["used"])
    assert resumed["unused"].item() == 3.0 and gather_moments(again, resumed).steps == {"used": 2}


def test_another_layout_than_zeros_is_noticed(
    run_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters that are no views into DeepSpeed's vector would get the moments of others."""
    for name, value in rank_environment(0, 1, free_port()).items():
        monkeypatch.setenv(name, value)
    learner = Learner(run_config("train.groups_per_step=2", "learner.zero_stage=2"))
    last = [*learner.theta][-1]
    learner.theta[last].data = learner.theta[last].data + 1
    with pytest.raises(RuntimeError, match=rf"1 of {len(learner.theta)} parameters, the first {last}, differ from"):
        learner.save()

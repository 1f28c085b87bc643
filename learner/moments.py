"""AdamW's state, whole for every parameter, under any ZeRO stage and any number of ranks.

Stage 0 steps every parameter on every rank. Stages 1 and 2 lay all parameters out in one vector, of which each
parameter is a view, and cut it into equal parts; rank r holds float32 master weights and moments of part r and steps
them alone. Gathering joins the parts, installing cuts them anew for the ranks there are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

Parameters = Mapping[str, nn.Parameter]


@dataclass(frozen=True, eq=False)
class Moments:
    """By the parameter's name; one that never had a gradient is missing. Gathered ones may be the optimiser's own."""

    exp_avg: dict[str, Tensor]
    exp_avg_sq: dict[str, Tensor]
    steps: dict[str, int]


def gather_moments(optimizer: Any, parameters: Parameters) -> Moments:
    """The whole state, on every rank; a collective.

    Args:
        optimizer: DeepSpeed's: torch's AdamW at stage 0, else a wrapper around one over this rank's part.
    """
    if isinstance(optimizer, torch.optim.AdamW):
        states = {name: optimizer.state[p] for name, p in parameters.items() if optimizer.state[p]}
        return _collected(states)
    vector = _Vector(optimizer)
    _check_layout(vector, parameters)
    if not vector.state:
        return Moments({}, {}, {})
    whole = {key: vector.joined(vector.state[key]) for key in ("exp_avg", "exp_avg_sq")}
    step = vector.state["step"]
    return _collected(
        {name: {"step": step, **{k: _cut(v, p) for k, v in whole.items()}} for name, p in parameters.items()}
    )


@torch.no_grad()
def install_moments(optimizer: Any, parameters: Parameters, moments: Moments) -> None:
    """Set the state, and the master weights from the parameters' current values; parameters must be set before."""
    states = {
        name: {
            "step": torch.tensor(float(moments.steps[name])),
            "exp_avg": moments.exp_avg[name].to(parameters[name].device, copy=True),
            "exp_avg_sq": moments.exp_avg_sq[name].to(parameters[name].device, copy=True),
        }
        for name in moments.steps
    }
    if isinstance(optimizer, torch.optim.AdamW):
        for name, p in parameters.items():
            optimizer.state[p] = states.get(name, {})
        return
    vector = _Vector(optimizer)
    vector.part.copy_(vector.own_part({name: p.detach() for name, p in parameters.items()}, parameters))
    vector.state.clear()
    if states:
        vector.state["step"] = torch.tensor(float(max(moments.steps.values())))
        for key in ("exp_avg", "exp_avg_sq"):
            vector.state[key] = vector.own_part({name: state[key] for name, state in states.items()}, parameters)


class _Vector:
    """All parameters in one vector, of which this rank steps one part."""

    def __init__(self, optimizer: Any) -> None:
        inner: torch.optim.AdamW = optimizer.optimizer
        (group,) = inner.param_groups
        self.part: nn.Parameter = group["params"][0]
        """This rank's master weights."""
        self.state: dict[str, Tensor] = inner.state[self.part]

    def joined(self, part: Tensor) -> Tensor:
        """The whole vector from every rank's part."""
        whole = part.new_empty(part.numel() * dist.get_world_size())
        dist.all_gather_into_tensor(whole, part.detach().contiguous())
        return whole

    def own_part(self, values: Mapping[str, Tensor], parameters: Parameters) -> Tensor:
        """This rank's part of the vector that holds `values`, zero where there are none."""
        whole = self.part.detach().new_zeros(self.part.numel() * dist.get_world_size())
        for name, value in values.items():
            _cut(whole, parameters[name]).copy_(value)
        return whole.view(dist.get_world_size(), -1)[dist.get_rank()].clone()


def _cut(whole: Tensor, parameter: nn.Parameter) -> Tensor:
    """Where `parameter` lies in the vector: it is a view into another vector of the same layout."""
    return whole.narrow(0, parameter.storage_offset(), parameter.numel()).view_as(parameter)


def _check_layout(vector: _Vector, parameters: Parameters) -> None:
    """Master weights joined and cut must be the parameters: DeepSpeed promises no layout."""
    whole = vector.joined(vector.part)
    strange = [name for name, p in parameters.items() if not torch.equal(_cut(whole, p), p.detach())]
    if strange:
        raise RuntimeError(
            f"{len(strange)} of {len(parameters)} parameters, the first {strange[0]}, differ from ZeRO's master "
            "weights: this version of DeepSpeed lays them out in another way; write learner.zero_stage=0"
        )


def _collected(states: Mapping[str, Mapping[str, Tensor]]) -> Moments:
    return Moments(
        {name: state["exp_avg"] for name, state in states.items()},
        {name: state["exp_avg_sq"] for name, state in states.items()},
        {name: int(state["step"]) for name, state in states.items()},
    )

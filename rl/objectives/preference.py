"""What preference losses on a group's errors share (GDPO, Diffusion-DPO): the errors, their change relative to the
reference, and training in micro-batches.

    e_i(net) = mean_{C,H,W} (net(z_t) - target)^2        a scalar per sample; policy and reference share z_t and eps
    d_i      = e_i(theta) - e_i(ref)
    inside   = - sum_i c_i d_i                           c_i: the objective's coefficients, from advantages or a pair
    L        = -log sigmoid(inside)

With an advantage per cell (`advantage.spatial: map`) e_i, d_i and c_i have one value per cell p, s_p is the cell's
share of the positions, and either the image is judged as a whole or each cell by itself:

    image    inside = - sum_p s_p sum_i c_i[p] d_i[p],       L = -log sigmoid(inside)
    cell     inside[p] = - sum_i c_i[p] d_i[p],              L = - sum_p s_p log sigmoid(inside[p])

At policy = reference both have the same value, ln 2, and the same gradient. Beyond it `image` weighs all cells by one
factor sigmoid(-inside), so a cell that is far ahead hides one that lags; `cell` weighs each by its own. With constant
coefficients `image` is the scalar loss.

A group's log-sigmoid is not a sum over its members. If a group is trained in micro-batches, a first pass without a
graph computes all errors. In the second pass dL/de_i = sigmoid(-inside) c_i weights each error's gradient; it reuses
the reference's errors from the first.

Latents are the group's images encoded again, as published: the policy is trained on the image that was scored,
including rounding and clamping.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rl.config.objective import Judged
from rl.flow.cells import WHOLE, Cells, over_cells
from rl.metrics import Key
from rl.objectives.base import Loss, MicroBatch, Objective
from rl.types import TrainItem


def sample_error(prediction: Tensor, target: Tensor, cells: Cells = WHOLE) -> Tensor:
    """e_i: `[B, C, h, w]` predictions and targets -> float64 `[B]`, or `[B, rows, columns]` of `cells`. Coefficients of
    thousands multiply the rounding of these means."""
    return cells.mean((prediction - target).square(), dtype=torch.float64)


def preference_loss(
    d: Tensor, coefficients: Tensor, shares: Tensor | None = None, judged: Judged = "image"
) -> tuple[Tensor, Tensor]:
    """(L, inside) of one group or pair; d and coefficients `[M]`, or `[M, rows, columns]` with `shares`
    `[rows, columns]`. `inside` is a scalar, or `[rows, columns]` where each cell is judged by itself."""
    inside = -(coefficients * d).sum(dim=0)
    if judged == "image":
        inside = over_cells(inside, shares)
        return -logsigmoid(inside), inside
    return over_cells(-logsigmoid(inside), shares), inside


@dataclass(frozen=True, eq=False)
class PreferenceBatch(MicroBatch):
    """M members of one group or pair, with one draw of their noise."""

    condition: Any
    z: Tensor
    """`[M, C, h, w]`, the images encoded again."""
    eps: Tensor
    """`[M, C, h, w]`"""
    t: Tensor
    """`[M]`"""
    coefficients: Tensor
    """`[M]`, or `[M, rows, columns]` per cell, the c_i."""
    known: "Known | None" = None
    """For a part of a group: results of the first pass."""


@dataclass(frozen=True, eq=False)
class Errors:
    """Errors of policy and reference on M members."""

    policy: Tensor
    """e(theta) `[M]` or `[M, rows, columns]`"""
    reference: Tensor
    """e(ref), likewise."""
    drift: Tensor
    """Scalar, the mean squared distance between their predictions."""

    @property
    def d(self) -> Tensor:
        return self.policy - self.reference


@dataclass(frozen=True, eq=False)
class Known:
    """Results of the first pass over a group that is trained in parts."""

    inside: Tensor
    """Of the whole group: scalar, or `[rows, columns]`."""
    loss: Tensor
    """Scalar, of the whole group."""
    errors: Errors
    """Of this part."""


class PreferenceObjective(Objective[PreferenceBatch]):
    """Both passes; a subclass makes whole batches, each a group or a pair with one draw of noise."""

    splits: bool = True
    """Whether a whole batch may be trained in parts; pairs are small enough not to need it."""
    cells: Cells = WHOLE
    """Of the errors and coefficients."""
    judged: Judged = "image"

    def whole(self, items: Sequence[TrainItem]) -> Iterator[PreferenceBatch]:
        """Draw-major: every update sees every group. `share` is the batch's weight within its group."""
        raise NotImplementedError

    def micro_batches(self, items: Sequence[TrainItem], version: int) -> Iterator[PreferenceBatch]:
        for batch in self.whole(items):
            parts = self.parts(len(batch.z)) if self.splits else [slice(0, len(batch.z))]
            if len(parts) == 1:
                yield batch
                continue
            smaller = [_part(batch, part) for part in parts]
            with torch.no_grad():
                errors = [self._errors(part) for part in smaller]
                loss, inside = self._loss(torch.cat([e.d for e in errors]), batch)
            for part, e in zip(smaller, errors, strict=True):
                yield replace(part, known=Known(inside, loss, e))

    def forward(self, batch: PreferenceBatch) -> Loss:
        e = self._errors(batch)
        if batch.known is None:
            value, inside = self._loss(e.d, batch)
            total = value * batch.share
        else:
            value, inside = batch.known.loss, batch.known.inside
            weighted = (torch.sigmoid(-inside) * batch.coefficients * e.policy).sum(dim=0)
            surrogate = over_cells(weighted, self.cells.shares(batch.z))
            # the value of the loss with the surrogate's gradient; its own value cancels before it can round
            total = value * batch.share + (surrogate - surrogate.detach())
        terms = {
            Key.LOSS_POLICY: value * batch.share,
            Key.LOSS_MARGIN: inside.mean() * batch.share,
            Key.LOSS_ERROR: e.policy.mean() * batch.share,
            Key.LOSS_DRIFT: e.drift * batch.share,
        }
        return Loss(total.float(), {key: term.detach() for key, term in terms.items()})

    def _loss(self, d: Tensor, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
        self.cells.check(batch.coefficients, batch.z)
        return preference_loss(d, batch.coefficients, self.cells.shares(batch.z), self.judged)

    def _errors(self, batch: PreferenceBatch) -> Errors:
        z_t = self.policy.noised(batch.z, batch.eps, batch.t)
        target = self.policy.target(batch.z, batch.eps, batch.t)
        known = batch.known.errors if batch.known is not None else None
        if known is None:
            with torch.no_grad(), self.adapters.using(self.adapters.reference):
                reference = self.policy.prediction(z_t, batch.t, [batch.condition]).float()
        prediction = self.policy.prediction(z_t, batch.t, [batch.condition]).float()
        e = sample_error(prediction, target, self.cells)
        if known is not None:
            return Errors(e, known.reference, known.drift)
        drift = (prediction.detach() - reference).square().mean()
        return Errors(e, sample_error(reference, target, self.cells), drift)


def _part(batch: PreferenceBatch, part: slice) -> PreferenceBatch:
    share = batch.share * (part.stop - part.start) / len(batch.z)
    return replace(
        batch, share=share, z=batch.z[part], eps=batch.eps[part], t=batch.t[part], coefficients=batch.coefficients[part]
    )

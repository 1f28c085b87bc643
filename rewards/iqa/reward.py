"""The adapter for every pyiqa metric, and the only place that imports pyiqa.

pyiqa's licence is PolyForm Noncommercial: use this type for non-commercial runs only. Weights come from pyiqa's own
downloads (`$TORCH_HOME/hub/pyiqa`, `HF_HOME`) or from a local file through `options: {pretrained_model_path: ...}`.
Left out: metrics that score sets of images, and gradients.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewards.base import Layer, LocalScores, RewardError, RewardInput, checked_scores, naming
from rewards.iqa.catalog import MetricFacts, has_map, metric_facts
from rewards.iqa.maps import MAPS
from rewards.pixels import unit_batch, unit_references
from rewards.sections import PyiqaSection
from rewards.weights import missing_text
from rl.types import F64, U8

_BATCH_TOLERANCE = 2e-3
"""How much a score may change, absolutely and relatively, when its neighbours in the batch change."""


class IqaReward:
    """A pyiqa metric as a reward: higher is better, uint8 in, float64 out, inputs never modified.

    Args:
        section: `metric_name`, `device` and `options` (passed to pyiqa's constructor) are read.

    Raises:
        ValueError: no such metric, or not a score per image.
        RewardError: pyiqa could not build it. Missing weights that cannot be downloaded are reported in one line.
    """

    def __init__(self, section: PyiqaSection) -> None:
        facts = metric_facts(section.metric_name)
        self.name = section.name
        self.needs_hr = facts.full_reference
        self.one_by_one = facts.one_by_one
        self._kind, self._has_map = facts.kind, has_map(facts, section.options)
        self._batch_verified = False
        self._sign = -1.0 if facts.lower_better else 1.0
        self._device = torch.device(section.device)
        self._metric = self._built(facts, section)

    def score(self, images: U8, lr: U8, hr: U8 | None, scale: int) -> F64:
        """Scores `[G]` of images `[G, 3, H, W]` against hr `[3, H, W]` (full-reference metrics only).

        Raises:
            RewardError: the metric failed, returned another shape, or a score is not finite.
        """
        return self.score_groups([RewardInput(images, lr, hr, scale)])[0]

    def score_groups(self, groups: Sequence[RewardInput]) -> list[F64]:
        """The scores of each group; all groups (equal H and W) form one batch."""
        counts = [len(group.images) for group in groups]
        with naming(self.name, "scoring"), torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            x = unit_batch([group.images for group in groups], self._device)
            y = unit_references(self._references(groups), counts, self._device) if self.needs_hr else None
            raw = self._sign * self._raw_scores(x, y)
        return _split(self.name, raw, counts)

    def score_locally(self, groups: Sequence[RewardInput]) -> Sequence[LocalScores | F64]:
        """The same with the metric's map, if `rewards/iqa/maps.py` has it."""
        if not self._has_map:
            return self.score_groups(groups)
        counts = [len(group.images) for group in groups]
        with naming(self.name, "scoring"), torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            x = unit_batch([group.images for group in groups], self._device)
            y = unit_references(self._references(groups), counts, self._device)
            # as pyiqa calls its network: another algorithm of cuDNN would change the score
            with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
                found = MAPS[self._kind](self._metric.net, x, y)
            scores = _split(self.name, self._sign * _float64(found.scores), counts)
            layers = [[*torch.split(layer, counts)] for layer in found.layers]
        return [
            LocalScores(column, tuple(Layer(_float64(layer[k]), found.inset) for layer in layers), found.finish)
            for k, column in enumerate(scores)
        ]

    def _built(self, facts: MetricFacts, section: PyiqaSection) -> Any:
        arguments = {**facts.protocol, **section.options}
        with naming(self.name, f"building pyiqa metric '{facts.pyiqa_name}'"):
            import pyiqa

            try:
                # pixels come from uint8, so pyiqa's range check (two passes over each batch) can only cost time
                return pyiqa.create_metric(facts.pyiqa_name, device=self._device, check_input_range=False, **arguments)
            except OSError as error:  # how downloads fail, by whichever library
                missing = [file for file in section.weights() or () if not file.found]
                if not missing:
                    raise
                why = str(error).partition("\n")[0]
                raise RewardError(self.name, f"weights could not be loaded ({why}): {missing_text(missing)}") from None

    def _references(self, groups: Sequence[RewardInput]) -> list[U8]:
        hrs = []
        for k, group in enumerate(groups):
            if group.hr is None or group.hr.shape != group.images.shape[1:]:
                got = None if group.hr is None else group.hr.shape
                raise RewardError(
                    self.name, f"full reference: expected hr of shape {group.images.shape[1:]}, got {got}", groups=(k,)
                )
            hrs.append(group.hr)
        return hrs

    def _raw_scores(self, x: Tensor, y: Tensor | None) -> F64:
        if self.one_by_one:
            return np.concatenate([self._call(x, y, slice(i, i + 1)) for i in range(len(x))])
        scores = self._call(x, y, slice(None))
        if self._batch_verified or len(x) == 1:
            return scores
        alone = self._call(x, y, slice(-1, None))[0]
        if abs(alone - scores[-1]) > _BATCH_TOLERANCE * (1 + abs(alone)):
            warnings.warn(
                f"reward '{self.name}': an image scores {alone:.6g} alone and {scores[-1]:.6g} in a batch of {len(x)}; "
                "this metric mixes images, so it is called image by image from now on (slower)",
                stacklevel=4,
            )
            self.one_by_one = True
            return self._raw_scores(x, y)
        self._batch_verified = True
        return scores

    def _call(self, x: Tensor, y: Tensor | None, part: slice) -> F64:
        x, y = x[part], None if y is None else y[part]
        if self.one_by_one:  # AFINE normalises both inputs in place
            x, y = x.clone(), None if y is None else y.clone()
        output = self._metric(x) if y is None else self._metric(x, y)
        if not isinstance(output, Tensor) or output.numel() != len(x):
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise RewardError(self.name, f"expected {len(x)} scores, one per image, got {got} from pyiqa")
        return _float64(output).reshape(-1)


def _float64(values: Tensor) -> F64:
    return np.asarray(values.detach().double().cpu().numpy(), dtype=np.float64)


def _split(name: str, raw: F64, counts: list[int]) -> list[F64]:
    columns, failed, reasons = [], [], []
    for k, part in enumerate(np.split(raw, np.cumsum(counts)[:-1])):
        try:
            columns.append(checked_scores(name, part, counts[k]))
        except RewardError as error:
            failed.append(k)
            reasons.append(error.reason)
    if failed:
        raise RewardError(name, "; ".join(reasons), groups=tuple(failed))
    return columns

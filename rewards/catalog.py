"""What is known of pyiqa's metrics without importing pyiqa (or torch): names, modes, directions, limits.

Names and modes come from pyiqa's own `default_model_configs.py`, a file without dependencies that is executed alone.
The tables beside it are what that file does not say; each entry was measured (pyiqa 0.1.16) or read in its source.
Left out: where weights lie, and what a metric costs.
"""

import difflib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PYIQA_RESERVED = ("as_loss", "device", "metric_mode", "loss_weight", "loss_reduction", "check_input_range")
"""Arguments of `create_metric` that the adapter sets itself."""

NOT_PER_IMAGE: Mapping[str, str] = {
    "fid": "it compares two folders of images; use a per-image metric",
    "sfid": "it compares two folders of images; use a per-image metric",
    "fid_dinov2": "it compares two folders of images; use a per-image metric",
    "inception_score": "it scores a set of images; use a per-image metric",
    "clipscore": "it needs a caption for each image; write a reward of type 'python' around it",
    "fgresq_pair": "it returns four values for a pair of images; use 'fgresq'",
}

MIN_SIDE: Mapping[str, tuple[int, str]] = {
    "ssim": (11, "its window has 11 pixels"),
    "ssimc": (11, "its window has 11 pixels"),
    "ms_ssim": (161, "it halves the image four times under an 11-pixel window"),
    "vif": (33, "its pyramid pads by 16 pixels"),
    "cw_ssim": (64, "its pyramid has four levels"),
    "niqe": (192, "below two 96-pixel blocks per side it scores only the top left block"),
    "niqe_matlab": (192, "below two 96-pixel blocks per side it scores only the top left block"),
    "liqe": (224, "it cuts patches of 224 pixels"),
    "liqe_mix": (224, "it cuts patches of 224 pixels"),
    "wadiqam_fr": (33, "it cuts patches of 32 pixels"),
    "wadiqam_nr": (33, "it cuts patches of 32 pixels"),
}

# dmm returns a distance (0 for equal images, no sign flip in its forward) and pyiqa 0.1.16 does not say so
_LOWER_BETTER_UNFLAGGED = frozenset({"dmm"})
# AFINE, QAlign and Compare2Score refuse or break on batches; LIQE's batched scores differ from its single ones
_ONE_BY_ONE = frozenset({"AFINE", "QAlign", "Compare2Score", "LIQE"})


@dataclass(frozen=True)
class MetricFacts:
    """One pyiqa metric."""

    name: str
    full_reference: bool
    lower_better: bool
    one_by_one: bool
    """The metric must be called with one image at a time."""
    side_multiple: int
    """Both sides must be multiples of it."""
    min_side: int
    why_min_side: str


def metric_facts(name: str) -> MetricFacts:
    """The facts of one metric.

    Raises:
        ValueError: pyiqa is not installed, has no such metric, or the metric is not a score per image.
    """
    configs = _pyiqa_configs()
    if name not in configs:
        near = difflib.get_close_matches(name.lower(), configs, n=5, cutoff=0.5)
        hint = f"nearest: {', '.join(near)}" if near else f"all names: {', '.join(configs)}"
        raise ValueError(f"pyiqa has no metric '{name}'; {hint}")
    if name in NOT_PER_IMAGE:
        raise ValueError(f"'{name}' is not a score per image: {NOT_PER_IMAGE[name]}")
    config = configs[name]
    options = config["metric_opts"]
    min_side, why = MIN_SIDE.get(name, (1, ""))
    return MetricFacts(
        name=name,
        full_reference=config["metric_mode"] == "FR",
        lower_better=config.get("lower_better", False) or name in _LOWER_BETTER_UNFLAGGED,
        # pyiqa aligns a single face where the model's name contains 'gfiqa'
        one_by_one=options["type"] in _ONE_BY_ONE or "gfiqa" in options.get("model_name", ""),
        side_multiple=32 if options["type"] == "AFINE" else 1,
        min_side=min_side,
        why_min_side=why,
    )


def metric_names() -> tuple[str, ...]:
    """pyiqa's metrics that score single images, in pyiqa's order."""
    return tuple(name for name in _pyiqa_configs() if name not in NOT_PER_IMAGE)


@cache
def _pyiqa_configs() -> Mapping[str, Any]:
    package = importlib.util.find_spec("pyiqa")
    if package is None or not package.submodule_search_locations:
        raise ValueError("pyiqa is not installed; `pip install 'pyiqa>=0.1.14'`, or use another reward type")
    path = Path(package.submodule_search_locations[0]) / "default_model_configs.py"
    spec = importlib.util.spec_from_file_location("_isrl_pyiqa_configs", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"pyiqa has no {path}; isrl reads its metric names there (pyiqa 0.1.14 to 0.1.16 have it)")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.DEFAULT_CONFIGS)

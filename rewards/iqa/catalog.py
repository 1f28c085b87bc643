"""Facts about pyiqa's metrics without importing pyiqa (or torch): names, modes, directions, limits, arguments.

Names, modes and arguments come from pyiqa's own files (`source.py`). The tables here add what those do not say; each
entry was measured (pyiqa 0.1.16) or read from its source. Left out: what a metric loads (`weights.py`), and its cost.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewards.iqa.source import architecture, default_configs

RESERVED = ("as_loss", "device", "metric_mode", "loss_weight", "loss_reduction", "check_input_range", "type")
"""Arguments of `create_metric` that the adapter sets itself."""

PROTOCOLS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "psnr_y": ("psnr", {"test_y_channel": True, "color_space": "ycbcr"}),
    "ssim_y": ("ssim", {"test_y_channel": True, "color_space": "ycbcr"}),
}
"""isrl's names for what papers report -> pyiqa's metric and the arguments that make it match their logs."""

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
# AFINE, QAlign and Compare2Score refuse or break on batches; LIQE scores batches differently from single images
_ONE_BY_ONE = frozenset({"AFINE", "QAlign", "Compare2Score", "LIQE"})


MAPPED = frozenset({"FSIM", "GMSD", "LPIPS", "PSNR", "SSIM", "STLPIPS", "VSI"})
"""pyiqa's classes with maps in `rewards/iqa/maps.py`."""

_FURTHER: Mapping[str, tuple[str, ...] | None] = {
    "PSNR": ("data_range", "eps", "color_space"),
    "Entropy": ("data_range", "eps", "color_space"),
    "CKDN": None,
}
"""Architecture -> which extra arguments it reads; None: any may be read. Architectures not listed ignore them all."""


@dataclass(frozen=True)
class MetricFacts:
    """One metric."""

    name: str
    """isrl's name for it."""
    pyiqa_name: str
    kind: str
    """pyiqa's class."""
    protocol: Mapping[str, Any]
    """Arguments that isrl's name implies."""
    defaults: Mapping[str, Any]
    """Arguments of that class as the metric sets them, including those of the protocol."""
    full_reference: bool
    lower_better: bool
    one_by_one: bool
    """The metric must be called with one image at a time."""
    side_multiple: int
    """Both sides must be multiples of this."""
    min_side: int
    why_min_side: str


def metric_facts(name: str) -> MetricFacts:
    """The facts of one metric.

    Raises:
        ValueError: pyiqa is not installed, has no such metric, or the metric is not a score per image.
    """
    configs = default_configs()
    pyiqa_name, protocol = PROTOCOLS.get(name, (name, {}))
    if pyiqa_name not in configs:
        names = [*PROTOCOLS, *configs]
        near = difflib.get_close_matches(name.lower(), names, n=5, cutoff=0.5)
        hint = f"nearest: {', '.join(near)}" if near else f"all names: {', '.join(names)}"
        papers = "; papers report psnr_y and ssim_y, pyiqa's psnry and ssim take full-range luma"
        raise ValueError(f"pyiqa has no metric '{name}'; {hint}{papers if set(near) & set(PROTOCOLS) else ''}")
    if name in NOT_PER_IMAGE:
        raise ValueError(f"'{name}' is not a score per image: {NOT_PER_IMAGE[name]}")
    config = configs[pyiqa_name]
    options = {**config["metric_opts"], **protocol}
    kind = options.pop("type")
    min_side, why = MIN_SIDE.get(pyiqa_name, (1, ""))
    return MetricFacts(
        name=name,
        pyiqa_name=pyiqa_name,
        kind=kind,
        protocol=protocol,
        defaults=options,
        full_reference=config["metric_mode"] == "FR",
        lower_better=config.get("lower_better", False) or name in _LOWER_BETTER_UNFLAGGED,
        # pyiqa aligns a single face if the model's name contains 'gfiqa'
        one_by_one=kind in _ONE_BY_ONE or "gfiqa" in options.get("model_name", ""),
        side_multiple=32 if kind == "AFINE" else 1,
        min_side=min_side,
        why_min_side=why,
    )


def has_map(facts: MetricFacts, options: Mapping[str, Any]) -> bool:
    """Whether `rewards/iqa/maps.py` says where the score comes from.

    It does not for LPIPS+, whose weights of places come from features, and for LPIPS without its layer weights.
    """
    values = {**facts.defaults, **options}
    return facts.kind in MAPPED and values.get("semantic_weight_layer", -1) < 0 and bool(values.get("lpips", True))


def check_options(facts: MetricFacts, options: Mapping[str, Any]) -> None:
    """Refuses options that the metric would not read; several of pyiqa's classes accept any name and ignore it.

    Raises:
        ValueError: names them and the options that the metric reads.
    """
    reserved = sorted(set(options) & set(RESERVED))
    if reserved:
        raise ValueError(f"options {reserved} are set by the reward itself; remove them")
    fixed = sorted(set(options) & set(facts.protocol))
    if fixed:
        raise ValueError(
            f"options {fixed} are fixed by '{facts.name}'; remove them, or write metric: {facts.pyiqa_name}"
        )
    found = architecture(facts.kind)
    further = _FURTHER.get(facts.kind, ()) if found is not None and found.open_ended else ()
    if found is None or further is None:
        return
    accepted = (*found.arguments, *further, "seed")
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise ValueError(f"options {unknown} are not read by '{facts.name}'; it reads {', '.join(accepted)}")

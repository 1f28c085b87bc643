"""Config-time refusals of rewards and taggers: torch-free, in milliseconds, before any process starts.

Left out: whether weights are on disk and whether a GPU is there; those fail when the reward is built.
"""

import ast
import json
from collections.abc import Sequence
from pathlib import Path

from rewards.catalog import PYIQA_RESERVED, metric_facts
from rewards.tags import read_tags
from rl.config.reward import RewardConfig
from rl.config.tagger import TaggerConfig

SCORE_ARGUMENTS = ("images", "lr", "hr", "scale")
TAG_ARGUMENTS = ("images",)
LR_CONSISTENCY_OPTIONS = ("cap_db",)
CLIP_FILES = (
    ("config.json",),
    ("processor_config.json", "preprocessor_config.json"),
    ("tokenizer.json", "vocab.json"),
    ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"),
)
"""What a CLIP folder holds; of each row one: names differ between transformers 4 and 5."""


def check_reward(config: RewardConfig, *, has_hr: bool, sr_side: int | None) -> None:
    """Refuses a reward that cannot work with the run's data.

    Args:
        has_hr: every LR image of the run comes with ground truth.
        sr_side: shorter side of the super-resolved images in pixels; None where sizes vary.

    Raises:
        ValueError: names the reward, what it needs, what it gets, and what to write instead.
    """
    try:
        if config.type == "pyiqa":
            _check_pyiqa(config, has_hr, sr_side)
        elif config.type == "lr_consistency":
            _check_lr_consistency(config)
        else:
            _check_python(config, has_hr)
    except ValueError as error:
        raise ValueError(f"reward '{config.name}': {error}") from error


def _check_pyiqa(config: RewardConfig, has_hr: bool, sr_side: int | None) -> None:
    facts = metric_facts(config.metric_name)
    reserved = sorted(set(config.options) & set(PYIQA_RESERVED))
    if reserved:
        raise ValueError(f"options {reserved} are set by the reward itself; remove them")
    if facts.full_reference and not has_hr:
        raise ValueError(
            f"'{facts.name}' compares with the HR image, but the data source has none; "
            "use a no-reference metric (musiq, clipiqa+, ...), 'lr_consistency', or data with HR"
        )
    if sr_side is None:
        return
    if sr_side < facts.min_side:
        raise ValueError(
            f"'{facts.name}' needs sides of at least {facts.min_side} pixels ({facts.why_min_side}), "
            f"got {sr_side}; use larger images or another metric"
        )
    if sr_side % facts.side_multiple:
        low = sr_side - sr_side % facts.side_multiple
        raise ValueError(
            f"'{facts.name}' needs sides that are multiples of {facts.side_multiple}, got {sr_side}; "
            f"use {low or facts.side_multiple} or {low + facts.side_multiple}"
        )


def _check_lr_consistency(config: RewardConfig) -> None:
    unknown = sorted(set(config.options) - set(LR_CONSISTENCY_OPTIONS))
    if unknown:
        raise ValueError(f"unknown options {unknown}; expected a subset of {list(LR_CONSISTENCY_OPTIONS)}")
    cap_db = config.options.get("cap_db", 60.0)
    if isinstance(cap_db, (bool, str)) or not cap_db > 0:
        raise ValueError(f"option cap_db: expected a positive number of dB, got {cap_db!r}")


def _check_python(config: RewardConfig, has_hr: bool) -> None:
    if config.options:
        raise ValueError(f"options are not read by type 'python', got {config.options}; write them into the file")
    path = Path(config.file or "").expanduser()
    tree = check_user_file(path, "score", SCORE_ARGUMENTS)
    if not has_hr and _needs_hr(tree):
        raise ValueError(f"{path} says NEEDS_HR = True, but the data source has no HR; use data with HR")


def signature(function: str, arguments: Sequence[str]) -> str:
    """How a user's file has to define `function`."""
    return f"def {function}({', '.join(arguments)})"


def check_user_file(path: Path, function: str, arguments: Sequence[str]) -> ast.Module:
    """The syntax tree of a user's file, which is not run.

    Raises:
        ValueError: it is missing, is not Python, or has no top-level `function` that takes `arguments`.
    """
    if not path.is_file():
        raise ValueError(f"file '{path}' does not exist (looked from {Path.cwd()}); give the path of a Python file")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except SyntaxError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from error
    expected = signature(function, arguments)
    defined = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function]
    if not defined:
        raise ValueError(f"{path} has no top-level {function}(); expected `{expected}`")
    accepted = defined[-1].args
    got = [argument.arg for argument in (*accepted.posonlyargs, *accepted.args)]
    if len(got) < len(arguments) and accepted.vararg is None:
        raise ValueError(f"{path}, line {defined[-1].lineno}: expected `{expected}`, got `{signature(function, got)}`")
    return tree


def _needs_hr(tree: ast.Module) -> bool:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if "NEEDS_HR" in names:
                return bool(node.value.value)
    return False


def check_tagger(where: str, config: TaggerConfig) -> None:
    """Refuses a tagger whose files are not there or cannot be what they should be.

    Args:
        where: the section of the data, which begins the message.

    Raises:
        ValueError: names the section, what was expected and what was found.
    """
    try:
        if config.type == "clip":
            _check_clip(config)
        else:
            check_user_file(Path(config.file or "").expanduser(), "tag", TAG_ARGUMENTS)
    except ValueError as error:
        raise ValueError(f"{where}.tagger: {error}") from error


def _check_clip(config: TaggerConfig) -> None:
    folder = Path(config.path or "").expanduser()
    missing = [" or ".join(names) for names in CLIP_FILES if not any((folder / name).is_file() for name in names)]
    if missing:
        raise ValueError(
            f"path: expected a local folder with a CLIP model as transformers saves it, {folder} lacks "
            f"{', '.join(missing)}"
        )
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind != "clip":
        raise ValueError(f"path: expected model_type 'clip' in {folder}/config.json, got {kind!r}")
    read_tags(Path(config.tags or "").expanduser())

"""Config-time refusals of rewards: torch-free, in milliseconds, before any process starts.

Left out: whether weights are on disk and whether a GPU is there; those fail when the reward is built.
"""

import ast
from pathlib import Path

from rewards.catalog import PYIQA_RESERVED, metric_facts
from rl.config.reward import RewardConfig

SCORE_ARGUMENTS = ("images", "lr", "hr", "scale")
LR_CONSISTENCY_OPTIONS = ("cap_db",)


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
    if not path.is_file():
        raise ValueError(f"file '{path}' does not exist (looked from {Path.cwd()}); give the path of a Python file")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except SyntaxError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from error
    _check_score_function(tree, path)
    if not has_hr and _needs_hr(tree):
        raise ValueError(f"{path} says NEEDS_HR = True, but the data source has no HR; use data with HR")


def _check_score_function(tree: ast.Module, path: Path) -> None:
    expected = f"def score({', '.join(SCORE_ARGUMENTS)})"
    defined = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "score"]
    if not defined:
        raise ValueError(f"{path} has no top-level score(); expected `{expected}`")
    arguments = defined[-1].args
    got = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    if len(got) < len(SCORE_ARGUMENTS) and arguments.vararg is None:
        raise ValueError(f"{path}, line {defined[-1].lineno}: expected `{expected}`, got `def score({', '.join(got)})`")


def _needs_hr(tree: ast.Module) -> bool:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if "NEEDS_HR" in names:
                return bool(node.value.value)
    return False

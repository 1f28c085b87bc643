"""Everything that can be refused before a process starts: data, weights, rewards, prompts, the run directory."""

from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from actors.checkpoints import CHECKPOINTS_DIR, newest_checkpoint
from rewards import check_reward, check_tagger
from rl.config.data import DataSection
from rl.config.load import ConfigError
from rl.config.policy import PolicySection, reference_file
from rl.config.run import RunConfig
from rl.data.photos import check_sources
from rl.metrics import METRICS_FILE

_P = ParamSpec("_P")


def preflight(config: RunConfig, *, resume: bool) -> None:
    """Raise `ConfigError` with every problem found, one line each."""
    problems: list[str] = []
    checks = [("data", config.data)] + ([("eval.data", config.eval.data)] if config.eval else [])
    for where, data in checks:
        problems += _try(_check_data, where, data)
        problems += _try(config.policy.check_prompts, where, data)
        if data.tagger is not None:
            problems += _try(check_tagger, where, data.tagger)
        for reward in config.rewards:
            problems += _try(check_reward, reward, has_hr=data.has_hr, sr_side=data.crop)
    problems += _try(_check_run_dir, Path(config.run.dir), resume=resume)
    problems += _try(_check_policy, config.policy)
    if problems:
        raise ConfigError("\n".join(["this run cannot start:", *dict.fromkeys(problems)]))


def _try(check: Callable[_P, None], *args: _P.args, **kwargs: _P.kwargs) -> list[str]:
    try:
        check(*args, **kwargs)
    except (ValueError, FileNotFoundError) as error:
        return [f"  {error}"]
    return []


def _check_data(where: str, data: DataSection) -> None:
    try:
        check_sources(data.path)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{where}.path: {error}") from error


def _check_run_dir(folder: Path, *, resume: bool) -> None:
    checkpoint = newest_checkpoint(folder / CHECKPOINTS_DIR)
    if resume and checkpoint is None:
        raise ValueError(
            f"--resume: {folder}/{CHECKPOINTS_DIR} holds no checkpoint; start anew, without --resume and with a "
            "run.dir that holds no run"
        )
    if not resume and (folder / METRICS_FILE).exists():
        go_on = "continue it with --resume, or " if checkpoint else ""
        raise ValueError(f"run.dir {folder} already holds a run; {go_on}write run.dir=OTHER for a new one")


def _check_policy(policy: PolicySection) -> None:
    policy.check()
    for key, value in (("lora.init_from", policy.lora.init_from), ("reference", reference_file(policy))):
        if value is not None and not Path(value).expanduser().exists():
            raise ValueError(f"policy.{key}: no such file {value}")

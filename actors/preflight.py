"""Everything that can be refused before a process starts: data, weights, rewards, prompts, the run directory."""

from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from actors.checkpoints import CHECKPOINTS_DIR, newest_checkpoint
from rewards import check_reward, check_tagger
from rl.config.data import DataConfig
from rl.config.load import ConfigError
from rl.config.policy import PolicyConfig
from rl.config.run import RunConfig
from rl.data.photos import check_sources
from rl.metrics import METRICS_FILE

_P = ParamSpec("_P")


def preflight(config: RunConfig, *, resume: bool) -> None:
    """Raise `ConfigError` with every problem found, one line each."""
    problems: list[str] = []
    checks = [("data", config.data)] + ([("eval.data", config.eval.data)] if config.eval.data else [])
    for where, data in checks:
        problems += _try(_check_data, where, data)
        problems += _try(_check_prompts, where, data, config.policy)
        if data.tagger is not None:
            problems += _try(check_tagger, where, data.tagger)
        for reward in config.rewards:
            problems += _try(check_reward, reward, has_hr=data.has_hr, sr_side=data.crop)
    problems += _try(_check_run_dir, Path(config.run.dir), resume=resume)
    problems += _try(_check_policy, config)
    if problems:
        raise ConfigError("\n".join(["this run cannot start:", *dict.fromkeys(problems)]))


def _try(check: Callable[_P, None], *args: _P.args, **kwargs: _P.kwargs) -> list[str]:
    try:
        check(*args, **kwargs)
    except (ValueError, FileNotFoundError) as error:
        return [f"  {error}"]
    return []


def _check_data(where: str, data: DataConfig) -> None:
    try:
        check_sources(data.path + ([data.hr_path] if data.hr_path else []))
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{where}.path: {error}") from error


def _check_prompts(where: str, data: DataConfig, policy: PolicyConfig) -> None:
    """A policy with one cached embedding has nothing that could read a prompt."""
    from rl.policies.folders import WITH_TEXT_ENCODER, preset_folder, prompt_file

    file = prompt_file(preset_folder(policy) or Path(policy.path).expanduser(), policy)
    given = [f"{where}.{key}" for key in ("prompt", "prompt_path", "prompt_suffix", "tagger") if getattr(data, key)]
    if given and (policy.type not in WITH_TEXT_ENCODER or file.is_file()):
        raise ValueError(
            f"{', '.join(given)}: policy '{policy.type}' has one cached embedding for all images, {file}, and reads no "
            f"prompts; remove {'it' if len(given) == 1 else 'them'}"
        )


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


def _check_policy(config: RunConfig) -> None:
    from rl.policies.folders import policy_folder

    policy_folder(config.policy)
    init = config.policy.lora.init_from
    if init is not None and not Path(init).expanduser().is_file():
        raise ValueError(f"policy.lora.init_from: no such file {init}")

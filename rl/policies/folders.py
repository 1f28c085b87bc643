"""Where a policy's weights are; torch-free, so that a missing folder is refused before any process starts."""

from pathlib import Path

from rl.config.policy import PolicyConfig
from rl.errors import MissingInput

EMBEDDED = Path(__file__).parent


def policy_folder(config: PolicyConfig) -> Path:
    """The folder with the weights: an embedded preset by name, else a local diffusers folder."""
    folder = preset_folder(config) or Path(config.path).expanduser()
    if not all((folder / part / "config.json").is_file() for part in ("transformer", "vae")):
        names = sorted(p.name for p in _presets(config).glob("*/"))
        raise MissingInput(
            f"policy.path '{config.path}': expected an embedded preset {names} or a local diffusers folder with "
            f"transformer/config.json and vae/config.json, found neither (looked in {folder.absolute()})"
        )
    prompt = prompt_file(folder, config)
    if not prompt.is_file():
        raise MissingInput(
            f"policy.prompt_embeds: expected a safetensors file with `prompt_embeds [L, D]`, {prompt} does not exist; "
            "encode one prompt with the model's text encoder and write policy.prompt_embeds=FILE"
        )
    return folder


def preset_folder(config: PolicyConfig) -> Path | None:
    """The embedded weights that `policy.path` names, or None where it is a local folder."""
    folder = _presets(config) / config.path
    is_name = Path(config.path).name == config.path
    return folder if is_name and folder.is_dir() else None


def _presets(config: PolicyConfig) -> Path:
    return EMBEDDED / config.type / "weights"


def prompt_file(folder: Path, config: PolicyConfig) -> Path:
    """The cached prompt embedding: the configured file, else the one in the policy's folder."""
    return Path(config.prompt_embeds).expanduser() if config.prompt_embeds else folder / "prompt_embeds.safetensors"

"""Where a policy's weights are; torch-free, so that a missing folder is refused before any process starts."""

from pathlib import Path

from rl.config.policy import PolicyConfig, PolicyType
from rl.errors import MissingInput

EMBEDDED = Path(__file__).parent
FILES: dict[PolicyType, tuple[str, ...]] = {
    "flux2sr": ("transformer/config.json", "vae/config.json"),
    "naosd": ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"),
}
TEXT_FILES = ("text_encoder/config.json", "tokenizer/vocab.json")
WITH_TEXT_ENCODER = frozenset[PolicyType]({"naosd"})
"""Policies that can encode prompts; the others need one cached embedding."""


def policy_folder(config: PolicyConfig) -> Path:
    """The folder with the weights: an embedded preset by name, else a local diffusers folder."""
    folder = preset_folder(config) or Path(config.path).expanduser()
    if not all((folder / file).is_file() for file in FILES[config.type]):
        names = sorted(p.name for p in _presets(config).glob("*/"))
        raise MissingInput(
            f"policy.path '{config.path}': expected an embedded preset {names} or a local diffusers folder with "
            f"{', '.join(FILES[config.type])}, found neither (looked in {folder.absolute()})"
        )
    for file in config.merge:
        if not Path(file).expanduser().is_file():
            raise MissingInput(f"policy.merge: no such file {file}")
    prompt = prompt_file(folder, config)
    has_encoder = all((folder / file).is_file() for file in TEXT_FILES)
    if not prompt.is_file() and not (config.type in WITH_TEXT_ENCODER and has_encoder):
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

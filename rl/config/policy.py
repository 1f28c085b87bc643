"""The base of all policy sections, and their registry. A policy's own section lives in its folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from rl.config.base import InputPath, Section
from rl.config.open_union import OpenUnion
from rl.errors import MissingInput

if TYPE_CHECKING:
    from rl.config.data import DataSection

Prediction = Literal["velocity", "noise"]
Layout = Literal["flux2", "unet"]
REFERENCES = ("start", "base")
"""Values of `policy.reference` that are not files."""


class LoraSection(Section):
    """The trained adapter. LucidNFT: rank 32; alpha 64 is DiffusionNFT's value (LucidNFT's is unpublished)."""

    rank: int = Field(32, ge=1)
    alpha: float = Field(64.0, gt=0)
    targets: str = ""
    """One of the policy's `lora_targets`; if unset, the first."""
    init_from: Annotated[str | None, InputPath()] = None
    """Adapter to start from, a file or a PEFT folder; it keeps its strength, whatever `rank` and `alpha` are."""


class PolicySection(Section):
    """Which generator, and where its weights are. The class variables are facts that the rest of the code reads.

    Your own policy extends this class; a recipe selects it by `type: package.module:Class`.
    """

    builder: ClassVar[str]
    """`module:Class` of the policy; its `from_folder(folder, section)` loads it."""
    size_multiple: ClassVar[int]
    """Output sides must be divisible by this."""
    cell_px: ClassVar[int]
    """Side in output pixels of one position of the latent grid on which objectives train."""
    prediction: ClassVar[Prediction]
    """What the backbone predicts: the velocity of a flow, or the noise of a DDPM."""
    one_step: ClassVar[bool] = False
    """One model call produces the image."""
    solvers: ClassVar[tuple[str, ...]] = ("dpm2", "euler", "heun", "sde")
    """Supported values of `rollout.sampler.solver`; the first is the default."""
    lora_targets: ClassVar[dict[str, tuple[str, ...]]]
    """Name -> layer-name suffixes; the first set is the default."""
    files: ClassVar[tuple[str, ...]]
    """Files that its folder must contain."""
    trained: ClassVar[tuple[str, ...]]
    """Components that get adapters, named as in diffusers' pipeline and in the folder. They are the keys of the
    policy's `modules` and the prefixes of the adapter's tensor names."""
    layout: ClassVar[Layout | None] = None
    """Naming scheme of its layers in kohya and ComfyUI (`rl.policies.lora_keys`); None where they have none."""
    reads_text: ClassVar[bool] = True
    """It is conditioned on a prompt: its folder has a text encoder or a cached embedding."""
    text_files: ClassVar[tuple[str, ...]] = ()
    """Files in its folder that let it encode prompts; empty where it never can."""
    tile_px: ClassVar[int]
    """Best tile side in output pixels: the side that the model was trained at."""
    presets: ClassVar[Path | None] = None
    """Folder with embedded weights, one subfolder per preset."""
    preset_tile_px: ClassVar[int] = 128

    type: str
    path: Annotated[str, InputPath(may_be_name=True)] = "mini"
    """`mini` for embedded weights, or a local diffusers folder."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    gradient_checkpointing: bool = False
    prompt_embeds: Annotated[str | None, InputPath()] = None
    """A safetensors file with `prompt_embeds [L, D]`; the default is the file in the policy's folder."""
    lora: LoraSection = LoraSection()
    reference: Annotated[str, InputPath(may_be_name=True)] = "start"
    """What preference and KL terms compare against: `start`, the adapter that training starts from (`lora.init_from`,
    else the base); `base`, adapters off; or an adapter file."""

    @model_validator(mode="before")
    @classmethod
    def _default_targets(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        lora = raw.get("lora", {})
        if isinstance(lora, dict) and not lora.get("targets"):
            return {**raw, "lora": {**lora, "targets": next(iter(cls.lora_targets))}}
        return raw

    @model_validator(mode="after")
    def _text_is_read(self) -> Self:
        if self.prompt_embeds is not None and not self.reads_text:
            raise ValueError(f"prompt_embeds: policy '{self.type}' reads no text; remove it")
        return self

    @model_validator(mode="after")
    def _targets_are_known(self) -> Self:
        if self.lora.targets not in self.lora_targets:
            raise ValueError(
                f"lora.targets must be one of {list(self.lora_targets)} for policy '{self.type}', "
                f"got '{self.lora.targets}'"
            )
        return self

    def absolute(self, root: Path) -> Self:
        """Names of presets and references stay, even where `root` has a file or folder of that name."""
        names = {} if self.preset_folder() is None else {"path": self.path}
        if self.reference in REFERENCES:
            names["reference"] = self.reference
        return super().absolute(root).model_copy(update=names)

    def preset_folder(self) -> Path | None:
        """The embedded weights that `path` names, or None where it is a local folder."""
        if self.presets is None or Path(self.path).name != self.path:
            return None
        folder = self.presets / self.path
        return folder if folder.is_dir() else None

    def folder(self) -> Path:
        """The folder with the weights.

        Raises:
            MissingInput: a file is missing; the message names it.
        """
        folder = self.preset_folder() or Path(self.path).expanduser()
        if not all((folder / file).is_file() for file in self.files):
            names = [] if self.presets is None else sorted(p.name for p in self.presets.glob("*/"))
            raise MissingInput(
                f"policy.path '{self.path}': expected an embedded preset {names} or a local diffusers folder with "
                f"{', '.join(self.files)}, found neither (looked in {folder.absolute()})"
            )
        if self.reads_text and not self.prompt_file(folder).is_file() and not self.encodes_prompts(folder):
            raise MissingInput(
                f"policy.prompt_embeds: expected a safetensors file with `prompt_embeds [L, D]`, "
                f"{self.prompt_file(folder)} does not exist; encode one prompt with the model's text encoder and write "
                "policy.prompt_embeds=FILE"
            )
        return folder

    def prompt_file(self, folder: Path) -> Path:
        """The cached prompt embedding: the configured file, else the one in the policy's folder."""
        return Path(self.prompt_embeds).expanduser() if self.prompt_embeds else folder / "prompt_embeds.safetensors"

    def encodes_prompts(self, folder: Path) -> bool:
        """Whether prompts are read: there is a text encoder and no cached embedding to replace it."""
        has_encoder = bool(self.text_files) and all((folder / file).is_file() for file in self.text_files)
        return has_encoder and not self.prompt_file(folder).is_file()

    def check(self) -> None:
        """Raise `InputError` where the policy's files contradict the section. Torch-free; called before anything
        starts."""
        self.folder()

    def check_prompts(self, where: str, data: "DataSection") -> None:
        """Refuse prompts for a policy that reads no text or has one cached embedding."""
        folder = self.preset_folder() or Path(self.path).expanduser()
        given = [f"{where}.{key}" for key in ("prompt", "prompt_path", "prompt_suffix", "tagger") if getattr(data, key)]
        if given and not self.encodes_prompts(folder):
            cached = f"has one cached embedding for all images, {self.prompt_file(folder)}, and "
            raise ValueError(
                f"{', '.join(given)}: policy '{self.type}' {cached if self.reads_text else ''}reads no prompts; "
                f"remove {'it' if len(given) == 1 else 'them'}"
            )


def reference_file(section: PolicySection) -> str | None:
    """The file of the reference adapter; None where the reference is the base with adapters off."""
    return {"base": None, "start": section.lora.init_from}.get(section.reference, section.reference)


POLICIES: dict[str, str] = {
    "flux2sr": "rl.policies.flux2sr.section:Flux2SRSection",
    "naosd": "rl.policies.naosd.section:NAOSDSection",
}
POLICY_UNION = OpenUnion(POLICIES, base=PolicySection, default="flux2sr")
AnyPolicy = Annotated[PolicySection, POLICY_UNION]
"""A recipe's `policy`."""


def policy_section(**keys: Any) -> PolicySection:
    """The section that a recipe with these keys under `policy` would have."""
    section = POLICY_UNION.validate(keys)
    assert isinstance(section, PolicySection)
    return section

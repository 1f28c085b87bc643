"""NAOSD's section of a recipe, with the policy's facts. Torch-free."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from rl.config.base import InputPath
from rl.config.policy import PolicySection
from rl.errors import MissingInput

UNET_ATTN = ("to_q", "to_k", "to_v", "to_out.0")
UNET_ALL = (
    *UNET_ATTN, "conv", "conv1", "conv2", "conv_in", "conv_out", "conv_shortcut", "proj_in", "proj_out",
    "ff.net.0.proj", "ff.net.2",
)  # fmt: skip


class NAOSDSection(PolicySection):
    """GDPO-SR's one-step model on Stable Diffusion 2.1's classes (arXiv 2603.16769). Its folder has unet/, vae/,
    scheduler/, and text_encoder/ with tokenizer/ or a cached embedding.

    LoRA targets: `unet_all` is GDPO-SR's set: attention, convolutions, projections and feed-forwards.
    """

    builder = "rl.policies.naosd.policy:NAOSD"
    size_multiple = 8
    cell_px = 8
    prediction = "noise"
    one_step = True
    solvers = ("one_step", "gaussian")
    lora_targets: ClassVar[dict[str, tuple[str, ...]]] = {"unet_all": UNET_ALL, "unet_attn": UNET_ATTN}
    files = ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json")
    trained = ("unet",)
    layout = "unet"
    text_files = ("text_encoder/config.json", "tokenizer/vocab.json")
    tile_px = 512
    presets: ClassVar[Path | None] = Path(__file__).parent / "weights"

    type: Literal["naosd"] = "naosd"
    t_add: int = Field(250, ge=0, lt=1000)
    """DDPM timestep at which the LR latents are noised; more noise gives more detail and less fidelity."""
    t_diff: int = Field(100, ge=0, lt=1000)
    """Timestep at which the UNet is called."""
    merge: Annotated[list[str], InputPath()] = []
    """Published NAOSD and GDPO-SR files (.pkl) to merge into the folder's weights, in this order."""

    def check(self) -> None:
        super().check()
        for file in self.merge:
            if not Path(file).expanduser().is_file():
                raise MissingInput(f"policy.merge: no such file {file}")

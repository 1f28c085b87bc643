"""Flux2SR's section of a recipe, with the policy's facts. Torch-free."""

import contextlib
import json
import math
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator

from rl.config.policy import PolicySection
from rl.errors import InputError

ATTN_ADD = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
)
SINGLE = ("attn.to_qkv_mlp_proj", "attn.to_out")
FFN = ("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out")


def _shift(value: object) -> object:
    """A number may arrive as text from the command line; one rule, so that an error is one line."""
    number = math.nan
    if isinstance(value, int | float | str):
        with contextlib.suppress(ValueError):
            number = float(value)
    if value != "flux2" and not number > 0:
        raise ValueError(f"expected a number above 0 or 'flux2', got {value!r}")
    return value if value == "flux2" else number


Shift = Annotated[float | Literal["flux2"], BeforeValidator(_shift)]


class Flux2SRSection(PolicySection):
    """FLUX.2 with the LR image as reference tokens (FoA-SR, arXiv 2606.10275). Its folder has transformer/ and vae/.

    LoRA targets: FoA-SR's default (`attn_add`) and its ablation (`attn_add_ffn`); `attn_add_single` adds the fused
    projections of FLUX.2's single blocks, which the paper neither includes nor excludes.
    """

    builder = "rl.policies.flux2sr.policy:Flux2SR"
    size_multiple = 16
    cell_px = 16
    prediction = "velocity"
    lora_targets: ClassVar[dict[str, tuple[str, ...]]] = {
        "attn_add": ATTN_ADD,
        "attn_add_single": ATTN_ADD + SINGLE,
        "attn_add_ffn": ATTN_ADD + FFN,
    }
    files = ("transformer/config.json", "vae/config.json")
    trained = ("transformer",)
    layout = "flux2"
    tile_px = 1024
    presets: ClassVar[Path | None] = Path(__file__).parent / "weights"

    type: Literal["flux2sr"] = "flux2sr"
    shift: Shift = "flux2"
    """exp(mu) of the resolution shift of the noise schedule, or FLUX.2's empirical mu from token count and steps."""
    guidance: float | None = None
    """Input of the transformer's guidance embedding (FLUX.2-dev), 1 if unset; FoA-SR samples at 1.0. Refused where the
    transformer has none."""

    def check(self) -> None:
        folder = self.folder()
        facts = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
        if self.guidance is not None and not facts.get("guidance_embeds", True):
            raise InputError(
                f"policy.guidance: the transformer in {folder} has no guidance embedding and reads no guidance; "
                "remove it"
            )

"""Merge LoRA files into models of ComfyUI with ComfyUI's own code, for `test_lora_loaders.py`.

    python run_comfyui.py CHECKOUT JOB.json

JOB is a list of models, each with `kind`, `config` (of ComfyUI's model class), `files` and a folder `out`. It writes
`base.safetensors`, the random weights under ComfyUI's names; for each file `NAME.safetensors`, the merged weights; and
`report.json` with ComfyUI's map of LoRA names and, for each file, its warnings, such as of a name it does not know.
It runs in a process of its own, because ComfyUI reads the command line and sets torch's globals when it is imported.
"""

import copy
import json
import logging
import sys
from pathlib import Path
from typing import Any

CHECKOUT, JOB = sys.argv[1:3]
sys.argv = sys.argv[:1]
sys.path.insert(0, CHECKOUT)

from comfy.cli_args import args  # noqa: E402

args.cpu = True

import comfy.lora  # noqa: E402
import comfy.lora_convert  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

CLASSES = {"flux2": comfy.supported_models.Flux2, "unet": comfy.supported_models.SD20}


class Complaints(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def build(kind: str, config: dict[str, Any]) -> Any:
    settings = CLASSES[kind](copy.deepcopy(config))
    settings.set_inference_dtype(torch.float32, None)
    model = settings.get_model({}, "", device="cpu")
    generator = torch.Generator().manual_seed(0)
    for _, parameter in sorted(model.diffusion_model.named_parameters()):
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def write(model: Any, file: Path) -> None:
    save_file({name: value.clone().contiguous() for name, value in model.state_dict().items()}, file)


def merge(model: Any, names: dict[str, Any], file: str, target: Path) -> list[str]:
    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    tensors = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(file))
    patches = comfy.lora.load_lora(tensors, names)
    patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    applied = patcher.add_patches(patches, 1.0)
    patcher.patch_model()
    write(model, target)
    patcher.unpatch_model()
    logging.getLogger().removeHandler(complaints)
    return complaints.lines + [f"not applied: {key}" for key in set(patches) - set(applied)]


def rows(target: Any) -> str:
    """`weight`, or `weight[start:stop]` where a name is a part of its rows."""
    if isinstance(target, str):
        return target
    name, part = target[0], target[1]
    return name if part is None else f"{name}[{part[1]}:{part[1] + part[2]}]"


for entry in json.loads(Path(JOB).read_text()):
    out = Path(entry["out"])
    out.mkdir(parents=True, exist_ok=True)
    model = build(entry["kind"], entry["config"])
    write(model, out / "base.safetensors")
    names = comfy.lora.model_lora_keys_unet(model, {})
    lines = {name: merge(model, names, file, out / f"{name}.safetensors") for name, file in entry["files"].items()}
    report = {"names": {name: rows(target) for name, target in names.items()}, "complaints": lines}
    (out / "report.json").write_text(json.dumps(report))

"""Which files a pyiqa metric loads when it is built, and whether they are on this machine. Torch-free.

File names come from the URL tables in pyiqa's own files; the tables here say which of them an architecture uses, and
its backbone. `tests/rewards/test_weights_of_pyiqa.py` compares them with what pyiqa requests when each metric is built.
Left out: whether a file is complete, and backbones that no pyiqa metric uses by default.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from rewards.iqa.catalog import MetricFacts
from rewards.iqa.source import WEIGHTS_REPO, architecture, hub_url, table
from rl.config.reward import WeightFile

OWN_FILE = "pretrained_model_path"
"""The argument through which most pyiqa metrics take a local file with their own weights."""

_WITHOUT = frozenset(
    {"CW_SSIM", "Entropy", "FSIM", "GMSD", "MAD", "MS_SSIM", "NLPD", "PIQE", "PSNR", "SSIM", "VIF", "VSI"}
)  # fmt: skip

_OWN: Mapping[str, tuple[str, ...]] = {
    "AFINE": ("{url_key}",), "AHIQ": ("pipal",), "ARNIQA": ("{regressor_dataset}",),
    "BRISQUE": ("brisque_{version}", "url"), "CFANet": ("{model_name}",), "CKDN": ("url",),
    "CLIPIQA": ("{model_type}",), "CNNIQA": ("{pretrained}",), "DBCNN": ("{pretrained}", "koniq"), "DISTS": ("url",),
    "FGResQ": ("fgresq",), "HyperNet": ("resnet50-koniq",), "ILNIQE": ("ilniqe",), "LAIONAes": ("url",),
    "LIQE": ("{pretrained}", "koniq"), "LPIPS": ("{version}_{net}",), "MANIQA": ("{train_dataset}",),
    "MUSIQ": ("{pretrained}", "ava"), "MetaIQA": ("meta-infer-ready",),
    "NIMA": ("{base_model_name}-{train_dataset}",), "NIQE": ("niqe_{version}", "url"), "NRQM": ("url",),
    "PAQ2PIQ": ("url",), "PieAPP": ("url",), "QualiCLIP": ("{model_type}",), "STLPIPS": ("{net}_{variant}",),
    "TReS": ("{train_dataset}",), "UNIQUE": ("mix",), "URanker": ("uranker",), "WaDIQaM": ("{model_name}",),
}  # fmt: skip
"""Architecture -> keys of its file's `default_model_urls`; the first one present is used. `pretrained: false` drops the
file, `pretrained_model_path` replaces it."""

_FACES = ("https://github.com/xinntao/facexlib/releases/download/v0.1.0/detection_Resnet50_Final.pth",
          "https://github.com/xinntao/facexlib/releases/download/v0.2.2/parsing_parsenet.pth")  # fmt: skip


def _topiq(options: Mapping[str, Any]) -> tuple[str, ...]:
    backbone = str(options["semantic_model_name"])
    faces = _FACES if "gfiqa" in str(options["model_name"]) else ()
    if "swin" in backbone:
        return (f"torch:{backbone}", *faces)
    if "clip" in backbone:
        return (f"clip:{backbone.replace('clip_', '')}", *faces)
    return (f"timm:{backbone}", *faces) if options["backbone_pretrain"] else faces


def _lpips(options: Mapping[str, Any]) -> tuple[str, ...]:
    # pyiqa reads pnet_rand for this backbone alone
    return () if options["net"] == "squeeze" and options["pnet_rand"] else (f"torch:{options['net']}",)


def _fgresq(options: Mapping[str, Any]) -> tuple[str, ...]:
    degradation = options["pretrained"] and options["degradation_model_path"] is None
    names = [f"hub:{options[key]}" for key in ("clip_model", "task_clip_model")]
    return (*names, "key:degradation") if degradation else tuple(names)


_BESIDE: Mapping[str, tuple[str, ...] | Callable[[Mapping[str, Any]], tuple[str, ...]]] = {
    "AFINE": ("openai:{clip_backbone}",), "AHIQ": ("timm:resnet50", "timm:vit_base_patch8_224"),
    "ARNIQA": ("torch:resnet50", "checkpoints:ARNIQA"), "CFANet": _topiq, "CKDN": ("torch:resnet50-2015",),
    "CLIPIQA": ("clip:{backbone}",), "Compare2Score": ("hub:q-future/Compare2Score",),
    "DBCNN": ("torch:vgg16", "key:scnn"), "DISTS": ("torch:vgg16",), "DMM": ("torch:vgg16",),
    "DeepDC": ("torch:vgg19",), "FGResQ": _fgresq, "HyperNet": ("timm:{base_model_name}",),
    "LAIONAes": ("openai:ViT-L/14",), "LIQE": ("clip:{backbone}",), "LPIPS": _lpips, "MACLIP": ("clip:{backbone}",),
    "MANIQA": ("timm:vit_base_patch8_224",), "MS_SWD_learned": ("pyiqa:msswd_weights.pth",),
    "NIMA": ("timm:{base_model_name}",), "PAQ2PIQ": ("torch:{backbone}",),
    "PI": ("pyiqa:NRQM_model.mat", "pyiqa:niqe_modelparameters.mat"), "QAlign": ("hub:q-future/one-align",),
    "QReAlign": ("hub:{model}",), "QualiCLIP": ("clip:{backbone}", "key:qualiclip"), "TReS": ("torch:{network}",),
    "UNIQUE": ("torch:resnet34",),
}  # fmt: skip
"""Architecture -> what it loads besides its own file, as `kind:name`."""

_PYTORCH = "https://download.pytorch.org/models"
_TORCH = {
    "alex": f"{_PYTORCH}/alexnet-owt-7be5be79.pth", "resnet18": f"{_PYTORCH}/resnet18-f37072fd.pth",
    "resnet34": f"{_PYTORCH}/resnet34-b627a593.pth", "resnet50": f"{_PYTORCH}/resnet50-0676ba61.pth",
    "resnet50-2015": f"{_PYTORCH}/resnet50-19c8e357.pth", "squeeze": f"{_PYTORCH}/squeezenet1_1-b8a52dc0.pth",
    "vgg": f"{_PYTORCH}/vgg16-397923af.pth", "vgg16": f"{_PYTORCH}/vgg16-397923af.pth",
    "vgg19": f"{_PYTORCH}/vgg19-dcbb9e9d.pth",
    "swin_base_patch4_window12_384":
        "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_base_patch4_window12_384_22kto1k.pth",
}  # fmt: skip
"""Backbones in PyTorch's hub, by pyiqa's names, with their URLs."""
_TIMM = {
    "inception_resnet_v2": "inception_resnet_v2.tf_in1k", "resnet50": "resnet50.a1_in1k", "vgg16": "vgg16.tv_in1k",
    "vit_base_patch8_224": "vit_base_patch8_224.augreg2_in21k_ft_in1k",
}  # fmt: skip
"""timm's architecture names -> the weights that timm uses by default."""


def weight_files(facts: MetricFacts, options: Mapping[str, Any]) -> tuple[WeightFile, ...] | None:
    """What `facts.name` loads with these options; empty if it needs nothing, None for an architecture that is not in
    the tables here."""
    found = architecture(facts.kind)
    if facts.kind in _WITHOUT:
        return ()
    if found is None or facts.kind not in {*_OWN, *_BESIDE}:
        return None
    values = {**found.arguments, **facts.defaults, **options}
    urls = found.tables.get("default_model_urls", {})
    beside = _BESIDE.get(facts.kind, ())
    names = beside(values) if callable(beside) else tuple(name.format_map(values) for name in beside)
    own = _own_file(facts.kind, values, urls, settable=OWN_FILE in found.arguments)
    files = [*own, *(file for name in names if (file := _file(name, urls)) is not None)]
    return tuple({file.path: file for file in reversed(files)}.values())[::-1]


def _own_file(kind: str, values: Mapping[str, Any], urls: Mapping[str, str], *, settable: bool) -> list[WeightFile]:
    given = values.get(OWN_FILE)
    if isinstance(given, str):
        return [_downloaded(given, _hub() / "pyiqa") if "://" in given else _local(Path(given).expanduser())]
    if not values.get("pretrained", True) or not values.get("lpips", True):
        return []
    keys = [key for template in _OWN.get(kind, ()) if (key := template.format_map(values)) in urls]
    return [_downloaded(urls[keys[0]], _hub() / "pyiqa", OWN_FILE if settable else "")] if keys else []


def _file(source: str, urls: Mapping[str, str]) -> WeightFile | None:
    """The file behind `kind:name`, or a URL; None if the name (an option's value) is not known here."""
    kind, _, name = source.partition(":")
    if kind == "timm":
        return _cached(f"timm/{_TIMM[name]}") if name in _TIMM else None
    if kind == "hub":
        repo = table("qrealign_arch.py", "MODELS").get(name, name)
        return None if Path(repo).expanduser().is_dir() else _cached(repo)
    clips = table("clip_model.py", "_MODELS")
    url, folder = {
        "key": (urls.get(name), _hub() / "pyiqa"),
        "checkpoints": (urls.get(name), _hub() / "checkpoints"),
        "pyiqa": (hub_url(WEIGHTS_REPO, name), _hub() / "pyiqa"),
        "torch": (_TORCH.get(name), _hub() / "checkpoints"),
        "clip": (clips.get(name), _hub() / "clip"),
        "openai": (clips.get(name), Path.home() / ".cache" / "clip"),
        "https": (source, _hub() / "pyiqa"),
    }[kind]
    return None if url is None else _downloaded(url, folder)


def _local(path: Path) -> WeightFile:
    return WeightFile(path.name, "", path, path.is_file(), OWN_FILE)


def _downloaded(url: str, folder: Path, option: str = "") -> WeightFile:
    name = os.path.basename(urlparse(url).path)
    return WeightFile(name, url, folder / name, (folder / name).is_file(), option)


def _cached(repo: str) -> WeightFile:
    """A repository in Hugging Face's cache; found if a snapshot of it holds weights."""
    path = _hugging_face() / f"models--{repo.replace('/', '--')}"
    weights = [file for end in ("safetensors", "bin") for file in path.glob(f"snapshots/*/*.{end}")]
    return WeightFile(repo, hub_url(repo), path, any(file.exists() for file in weights))


def _hub() -> Path:
    """`torch.hub.get_dir()`."""
    return Path(os.environ.get("TORCH_HOME", _cache() / "torch")).expanduser() / "hub"


def _hugging_face() -> Path:
    home = Path(os.environ.get("HF_HOME", _cache() / "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", os.environ.get("HUGGINGFACE_HUB_CACHE", home / "hub"))).expanduser()


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()

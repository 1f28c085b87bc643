"""The tables of `rewards/iqa/weights.py` against pyiqa: each metric is built, and what it asks for is written down."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rewards.iqa.catalog import NOT_PER_IMAGE, metric_facts
from rewards.iqa.weights import weight_files

RECORD = '''
import json, os, sys
from unittest.mock import MagicMock
import scipy.io, timm.models._builder, torch, torchvision.models._api, transformers.utils.hub

class Anything(dict):
    """Stands in for the contents of a file."""
    __getitem__ = lambda self, key: Anything()
    __contains__ = lambda self, key: True
    __iter__ = lambda self: iter((torch.zeros(1), torch.zeros(1)))
    items = lambda self: []

asked = []
def note(path, answer=None):
    asked.append(str(path))
    return answer

def hub(url, model_dir=None, *rest, **more):
    folder = model_dir or os.path.join(torch.hub.get_dir(), "checkpoints")
    return note(os.path.join(folder, os.path.basename(url)), Anything())

def timm_weights(model, pretrained_cfg=None, **more):
    found = pretrained_cfg or model.pretrained_cfg
    found = found if isinstance(found, dict) else vars(found)
    note(found["hf_hub_id"]) if found["hf_hub_id"] else hub(found["url"])

def transformers_file(repo, *rest, **more):
    note(repo)
    raise OSError(repo)

torch.hub.download_url_to_file = lambda url, path, *rest, **more: note(path)
torch.hub.load_state_dict_from_url = hub
torchvision.models._api.WeightsEnum.get_state_dict = lambda self, *rest, **more: hub(self.url)
timm.models._builder.load_pretrained = timm_weights
torch.load = scipy.io.loadmat = lambda *rest, **more: Anything()
torch.jit.load = lambda *rest, **more: torch.nn.Identity()
torch.nn.Module.load_state_dict = lambda self, *rest, **more: ([], [])

import pyiqa, pyiqa.archs.clip_model, pyiqa.archs.afineclip_model, clip
for module in [module for name, module in list(sys.modules.items()) if name.startswith("transformers")]:
    for name in {"cached_file", "cached_files"} & set(vars(module)):
        setattr(module, name, transformers_file)
beside = lambda name: note(os.path.join(torch.hub.get_dir(), "clip", name.replace("/", "-") + ".pt"), MagicMock())
at_home = lambda name: note(os.path.expanduser("~/.cache/clip/" + name.replace("/", "-") + ".pt"), (MagicMock(), None))
pyiqa.archs.clip_model.load = lambda name, *rest, **more: beside(name)
pyiqa.archs.afineclip_model.load = clip.load = lambda name, *rest, **more: at_home(name)

found = {}
for name in pyiqa.list_models():
    asked.clear()
    try:
        pyiqa.create_metric(name, device="cpu")
        whole = True
    except BaseException:
        whole = False  # some constructors look into what they load
    found[name] = (sorted(set(asked)), whole)
json.dump(found, open(sys.argv[1], "w"))
'''


@pytest.mark.slow
def test_the_tables_name_what_pyiqa_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 s. Where a constructor ends early, what it asked for until then has to be in the tables."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    subprocess.run([sys.executable, "-c", RECORD, str(tmp_path / "asked.json")], check=True, capture_output=True)
    asked = json.loads((tmp_path / "asked.json").read_text())
    compared = 0
    for metric in set(asked) - set(NOT_PER_IMAGE):
        paths, whole = asked[metric]
        files = weight_files(metric_facts(metric), {})
        assert files is not None, metric
        named = {file.name if "models--" in str(file.path) else str(file.path) for file in files}
        assert set(paths) <= named, metric
        assert not whole or set(paths) == named, metric
        compared += whole
    assert compared > 50

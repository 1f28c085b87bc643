"""Weights of a metric: which files, whether they are there, and a refusal before the run where they cannot be had."""

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from rewards import RewardError, build_reward, check_weights, weights_texts
from rewards.iqa import source
from rewards.iqa.catalog import metric_facts
from rewards.iqa.weights import weight_files
from rewards.sections import LrConsistencySection, PyiqaSection, PythonRewardSection
from rewards.weights import unreachable
from rl.errors import InputError, MissingInput

MUSIQ = "musiq_koniq_ckpt-e95806b9.pth"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of PyTorch, Hugging Face and CLIP."""
    for key in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "HF_ENDPOINT"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Sets the host of pyiqa's files; the tables of URLs are read anew."""

    def use(url: str) -> None:
        monkeypatch.setenv("HF_ENDPOINT", url)
        source.architecture.cache_clear()

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield use
    source.architecture.cache_clear()


@pytest.fixture
def closed() -> str:
    """The URL of a port on which nothing listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{found.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def refusing() -> Iterator[str]:
    """The URL of a server that answers 404 to everything."""

    class NotFound(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), NotFound)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


PYIQA, TORCH, CLIP = "torch/hub/pyiqa", "torch/hub/checkpoints", "torch/hub/clip"
FILES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "psnr_y": ({}, []),
    "gmsd": ({}, []),
    "musiq": ({}, [f"{PYIQA}/{MUSIQ}"]),
    "musiq-ava": ({}, [f"{PYIQA}/musiq_ava_ckpt-e8d3f067.pth"]),
    "niqe": ({}, [f"{PYIQA}/niqe_modelparameters.mat"]),
    "niqe_matlab": ({}, [f"{PYIQA}/niqe_matlab_params.mat"]),
    "lpips": ({}, [f"{PYIQA}/LPIPS_v0.1_alex-df73285e.pth", f"{TORCH}/alexnet-owt-7be5be79.pth"]),
    "lpips-vgg": ({"version": "0.0"}, [f"{PYIQA}/LPIPS_v0.0_vgg-b9e42362.pth", f"{TORCH}/vgg16-397923af.pth"]),
    "dists": ({"pretrained": False}, [f"{TORCH}/vgg16-397923af.pth"]),
    "clipiqa+": ({}, [f"{PYIQA}/CLIP-IQA%2B_learned_prompts-603f3273.pth", f"{CLIP}/RN50.pt"]),
    "laion_aes": ({}, [f"{PYIQA}/sac%2Blogos%2Bava1-l14-linearMSE.pth", ".cache/clip/ViT-L-14.pt"]),
    "maniqa": ({}, [f"{PYIQA}/ckpt_koniq10k.pt", "hf/hub/models--timm--vit_base_patch8_224.augreg2_in21k_ft_in1k"]),
    "topiq_fr": ({"backbone_pretrain": False}, [f"{PYIQA}/cfanet_fr_kadid_res50-2c4cc61d.pth"]),
    "qrealign-lite": ({}, ["hf/hub/models--q-future--Q-ReAlign-Lite-4B"]),
}  # fmt: skip


@pytest.mark.parametrize("metric", FILES)
def test_what_a_metric_loads(metric: str, home: Path) -> None:
    options, expected = FILES[metric]
    files = weight_files(metric_facts(metric), options)
    assert files is not None
    assert [str(file.path.relative_to(home)) for file in files] == expected
    assert not any(file.found for file in files)


def test_a_file_is_found_where_pyiqa_puts_it(home: Path) -> None:
    section = PyiqaSection(name="maniqa")
    vit = home / "hf/hub/models--timm--vit_base_patch8_224.augreg2_in21k_ft_in1k"
    for path in (home / PYIQA / "ckpt_koniq10k.pt", vit / "snapshots" / "1" / "model.safetensors"):
        assert not all(file.found for file in section.weights() or ())
        path.parent.mkdir(parents=True)
        path.touch()
    assert all(file.found for file in section.weights() or ())
    check_weights([section], probe_s=0.0)
    assert weights_texts([section]) == {"maniqa": "weights found"}


def test_a_local_file_takes_the_place_of_the_download(home: Path) -> None:
    own = home / "mine.pth"
    section = PyiqaSection(
        name="lpips", options={"net": "squeeze", "pnet_rand": True, "pretrained_model_path": str(own)}
    )
    with pytest.raises(
        MissingInput, match=r"reward 'lpips': mine.pth is not at .*mine.pth \(no such file\); put it there"
    ):
        check_weights([section])
    own.touch()
    check_weights([section], probe_s=0.0)


def test_an_unknown_architecture_is_not_judged() -> None:
    assert PythonRewardSection(name="r", file="x.py").weights() is None
    assert weights_texts([PythonRewardSection(name="r", file="x.py")]) == {
        "r": "weights: not known before its server is built"
    }
    assert weights_texts([LrConsistencySection(name="lr")]) == {"lr": "no weights"}


def test_a_server_with_an_environment_of_its_own_is_not_judged(home: Path) -> None:
    section = PyiqaSection(name="musiq", runtime_env={"env_vars": {"TORCH_HOME": "/elsewhere"}})
    check_weights([section], probe_s=0.0)
    assert "not known" in weights_texts([section])["musiq"]


def test_the_mirror_of_the_environment_is_used(home: Path, endpoint: Any) -> None:
    endpoint("https://mirror.example/")
    (file,) = PyiqaSection(name="musiq").weights() or ()
    assert file.url == f"https://mirror.example/chaofengc/IQA-PyTorch-Weights/resolve/main/{MUSIQ}"


def test_a_host_that_answers_at_all_is_reached(refusing: str, closed: str, silent: str, endpoint: Any) -> None:
    urls = [f"{host}/weights.pth" for host in (refusing, closed, silent)]
    start = time.perf_counter()
    reasons = unreachable(urls, 0.5)
    assert time.perf_counter() - start < 1.5
    assert set(reasons) == set(urls[1:])
    assert "refused" in reasons[urls[1]]
    assert "timed out" in reasons[urls[2]] or "no answer" in reasons[urls[2]]
    assert unreachable([], 0.5) == {}


def test_the_refusal_is_quick_and_says_everything(home: Path, closed: str, endpoint: Any) -> None:
    endpoint(closed)
    sections = [PyiqaSection(name="psnr_y"), PyiqaSection(name="quality", metric="musiq"), PyiqaSection(name="niqe")]
    start = time.perf_counter()
    with pytest.raises(InputError) as caught:
        check_weights(sections)
    assert time.perf_counter() - start < 2.0
    first, quality, niqe = str(caught.value).splitlines()
    url = f"{closed}/chaofengc/IQA-PyTorch-Weights/resolve/main/{MUSIQ}"
    assert first == "weights are not on this machine and cannot be downloaded:"
    where = f"{MUSIQ} is not at {home}/{PYIQA}/{MUSIQ} and could not be had from {url} (127.0.0.1:"
    assert quality.startswith(f"    reward 'quality' (metric 'musiq'): {where}") and "refused" in quality
    advice = "put it there, write options: {pretrained_model_path: FILE}, or use another metric"
    assert quality.endswith(advice) and niqe.endswith(advice)
    assert weights_texts(sections)["quality"].startswith(f"weights MISSING here, and no download: {MUSIQ} (127.0.0.1:")


def test_a_download_that_works_is_left_to_the_server(home: Path, refusing: str, endpoint: Any) -> None:
    endpoint(refusing)
    section = PyiqaSection(name="musiq")
    check_weights([section])
    assert weights_texts([section]) == {"musiq": f"weights will be downloaded: {MUSIQ}"}


def test_a_metric_that_is_none_is_refused_as_by_check_reward() -> None:
    with pytest.raises(ValueError, match=r"reward 'r' \(metric 'musiqq'\): pyiqa has no metric 'musiqq'"):
        check_weights([PyiqaSection(name="r", metric="musiqq")])


def test_a_download_that_fails_in_the_server_is_one_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.error

    import pyiqa

    def offline(*arguments: Any, **options: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(pyiqa, "create_metric", offline)
    with pytest.raises(RewardError) as caught:
        build_reward(PyiqaSection(name="musiq"))
    text = str(caught.value)
    assert text.startswith(
        "reward 'musiq': weights could not be loaded (<urlopen error Name or service not known>): musiq_"
    )
    assert "\n" not in text and text.endswith("or use another metric")
    assert caught.value.__suppress_context__
    (home / PYIQA).mkdir(parents=True)
    (home / PYIQA / MUSIQ).touch()
    with pytest.raises(RewardError, match="building pyiqa metric 'musiq': URLError"):
        build_reward(PyiqaSection(name="musiq"))

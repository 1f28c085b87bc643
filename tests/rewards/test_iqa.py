"""The pyiqa adapter on the metrics that need no download, against laws, and against stored official values."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.base import RewardError, RewardInput
from rewards.iqa.reward import IqaReward
from rewards.sections import PyiqaSection
from rl.types import U8

FULL_REFERENCE = {
    "psnr": 64, "psnry": 64, "ssim": 64, "ssimc": 32, "ms_ssim": 176, "fsim": 64, "gmsd": 64, "nlpd": 64,
    "vif": 64, "vsi": 64, "cw_ssim": 64, "mad": 32,
}  # fmt: skip
NO_REFERENCE = {"piqe": 64, "entropy": 64}
Make = Callable[..., Any]


@pytest.mark.parametrize("metric, side", [*FULL_REFERENCE.items(), *NO_REFERENCE.items()])
def test_batch_equals_single(metric: str, side: int, group: Make, pyiqa_config: Make) -> None:
    reward = IqaReward(pyiqa_config(metric))
    groups = [group(side, 2, at=64), group(side, 3, at=120)]
    batched = reward.score_groups(groups)
    assert not reward.one_by_one
    for scores, one in zip(batched, groups, strict=True):
        alone = [reward.score(one.images[k : k + 1], one.lr, one.hr, 4)[0] for k in range(len(one.images))]
        np.testing.assert_allclose(scores, alone, rtol=1e-4, atol=1e-6)
        assert scores.dtype == np.float64 and scores.shape == (len(one.images),)


@pytest.mark.parametrize("metric, side", FULL_REFERENCE.items())
def test_identity_is_best_and_damage_lowers_it(metric: str, side: int, crop: Make, pyiqa_config: Make) -> None:
    from scipy.ndimage import gaussian_filter

    hr = crop(side)
    noise = np.random.default_rng(0).standard_normal(hr.shape)
    blurred = [gaussian_filter(hr.astype(float), (0, s, s)) for s in (0.8, 2.0)]
    noisy = [hr + s * noise for s in (6.0, 20.0)]
    images = np.stack([np.clip(np.rint(x), 0, 255).astype(np.uint8) for x in (hr, *blurred, *noisy)])
    same, blur, more_blur, noise_low, noise_high = IqaReward(pyiqa_config(metric)).score(images, hr[:, ::4, ::4], hr, 4)
    assert same > blur > more_blur
    assert same > noise_low > noise_high


def test_lpips_squeeze_equals_the_training_loss(
    lpips_squeeze_file: Path, shared_data: Path, group: Make, pyiqa_config: Make
) -> None:
    import torch

    from rl.objectives.lpips import Lpips

    one: RewardInput = group(64)
    assert one.hr is not None
    options = {"net": "squeeze", "pnet_rand": True, "pretrained_model_path": str(lpips_squeeze_file)}
    scores = IqaReward(pyiqa_config("lpips", **options)).score(one.images, one.lr, one.hr, 4)
    folder = shared_data / "weights" / "lpips"
    loss = Lpips(folder / "squeezenet1_1_features.pth", folder / "lin_v0.1_squeeze.pth")
    x = torch.tensor(one.images).float() / 127.5 - 1
    y = (torch.tensor(one.hr).float() / 127.5 - 1).expand_as(x)
    np.testing.assert_allclose(scores, -loss(x, y).numpy(), atol=1e-5)
    assert (scores < 0).all()


# pyiqa's own published column "(ours)", rounded to four decimals; absolute tolerance per metric
OFFICIAL = {
    "psnr": 2e-3, "ssim": 2e-3, "ms_ssim": 2e-3, "fsim": 2e-3, "gmsd": 2e-3, "vsi": 2e-3, "piqe": 0.05, "nlpd": 2e-3,
    "cw_ssim": 2e-3, "entropy": 2e-3, "vif": 2e-3,
}  # fmt: skip


@pytest.mark.parametrize("metric", OFFICIAL)
def test_official_values(metric: str, shared_data: Path, pyiqa_config: Make) -> None:
    reward = IqaReward(pyiqa_config(metric))
    for name in ("I06.bmp", "I19.bmp"):
        expected = _published(shared_data, f"{metric}(ours)", name)
        got = abs(_pair_score(reward, shared_data, name))
        assert got == pytest.approx(expected, abs=OFFICIAL[metric]), name


def test_official_niqe(shared_data: Path, niqe_file: Path, pyiqa_config: Make) -> None:
    reward = IqaReward(pyiqa_config("niqe", pretrained_model_path=str(niqe_file)))
    for name in ("I06.bmp", "I19.bmp"):
        assert -_pair_score(reward, shared_data, name) == pytest.approx(
            _published(shared_data, "niqe(ours)", name), abs=0.02
        )


def _published(shared_data: Path, row: str, name: str) -> float:
    with open(shared_data / "calibration" / "iqa_pytorch" / "calibration_summary.csv", newline="") as file:
        return next(float(line[name]) for line in csv.DictReader(file) if line["Method"] == row)


def _pair_score(reward: IqaReward, shared_data: Path, name: str) -> float:
    from rl.data.photos import load_rgb

    folder = shared_data / "calibration" / "iqa_pytorch"
    image, hr = (np.ascontiguousarray(load_rgb(folder / part / name).transpose(2, 0, 1)) for part in
                 ("dist_dir", "ref_dir"))  # fmt: skip
    return float(reward.score(image[None], hr[:, ::4, ::4], hr, 4)[0])


class FakeMetric:
    """Stands in for a pyiqa metric; `f` maps the batch to its output."""

    def __init__(self, f: Callable[..., Any]) -> None:
        self.f, self.batches = f, list[int]()

    def __call__(self, x: Any, *rest: Any) -> Any:
        self.batches.append(len(x))
        return self.f(x, *rest)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[..., Any]], tuple[IqaReward, FakeMetric]]:
    def make(name: str, f: Callable[..., Any]) -> tuple[IqaReward, FakeMetric]:
        import pyiqa

        metric = FakeMetric(f)
        monkeypatch.setattr(pyiqa, "create_metric", lambda *a, **k: metric)
        return IqaReward(PyiqaSection(name="fake", metric=name)), metric

    return make


def test_a_metric_that_writes_its_input_spoils_nothing(fake: Make, group: Make) -> None:
    """AFINE normalises in place and takes one image at a time."""
    reward, metric = fake("afine_fr", lambda x, y: (x.sub_(9).mean() + y.mul_(0).sum()).reshape(1, 1))
    one: RewardInput = group(32, 3)
    first = reward.score(one.images, one.lr, one.hr, 4)
    assert metric.batches == [1, 1, 1]
    np.testing.assert_allclose(first, 9 - one.images.mean(axis=(1, 2, 3)) / 255, rtol=1e-5)
    np.testing.assert_array_equal(reward.score(one.images, one.lr, one.hr, 4), first)


def test_a_metric_that_mixes_images_is_called_one_by_one(fake: Make, group: Make) -> None:
    reward, _ = fake("musiq", lambda x: x.mean(dim=(1, 2, 3)) - x.mean() * (len(x) > 1))
    one: RewardInput = group(32, 3)
    with pytest.warns(UserWarning, match="mixes images"):
        scores = reward.score(one.images, one.lr, None, 4)
    np.testing.assert_allclose(scores, one.images.mean(axis=(1, 2, 3)) / 255, rtol=1e-5)


def test_autocast_and_gradients_are_off(fake: Make, group: Make) -> None:
    import torch

    def f(x: Any) -> Any:
        assert not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu") and x.dtype == torch.float32
        return x.mean(dim=(1, 2, 3)).reshape(-1, 1)

    reward, _ = fake("musiq", f)
    one: RewardInput = group(32)
    with torch.autocast("cpu", torch.bfloat16):
        reward.score(one.images, one.lr, None, 4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_score_is_an_error_that_names_the_group(fake: Make, group: Make, value: float) -> None:
    import torch

    reward, _ = fake("musiq", lambda x: torch.where(torch.arange(len(x)) == 4, value, 1.0))
    with pytest.raises(RewardError, match="'fake'.*not finite.*member 1") as caught:
        reward.score_groups([group(32, 3), group(32, 3, at=90)])
    assert caught.value.groups == (1,)


def test_failures_carry_the_cause(fake: Make, group: Make) -> None:
    def broken(x: Any) -> Any:
        raise AttributeError("no such weight")

    one: RewardInput = group(32)
    with pytest.raises(RewardError, match="AttributeError: no such weight") as caught:
        fake("musiq", broken)[0].score(one.images, one.lr, None, 4)
    assert isinstance(caught.value.__cause__, AttributeError)
    with pytest.raises(RewardError, match="expected 3 scores.*float"):
        fake("musiq", lambda x: 0.5)[0].score(one.images, one.lr, None, 4)
    with pytest.raises(RewardError, match="expected hr of shape"):
        fake("psnr", lambda x, y: x)[0].score(one.images, one.lr, None, 4)


def test_missing_weights_are_a_reward_error(pyiqa_config: Make, tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="reward 'niqe': weights could not be loaded .*absent.mat is not at"):
        IqaReward(pyiqa_config("niqe", pretrained_model_path=str(tmp_path / "absent.mat")))


def test_a_uint8_batch_is_exactly_x_over_255(photo: U8) -> None:
    import torch

    from rewards.pixels import unit_batch, unit_references

    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 3, 16, 16)
    cpu = torch.device("cpu")
    torch.testing.assert_close(unit_batch([every], cpu), torch.tensor(every).float() / 255, rtol=0, atol=0)
    both = unit_references([photo[:, :8, :8], photo[:, 8:16, :8]], [2, 3], cpu)
    assert both.shape == (5, 3, 8, 8)
    assert torch.equal(both[1], both[0]) and torch.equal(both[2], both[4]) and not torch.equal(both[1], both[2])

"""The paired bootstrap where the answer is known."""

import numpy as np
import pytest

from rl.evaluation.bootstrap import paired_bootstrap


def test_constant_difference_has_an_interval_of_width_zero() -> None:
    before = np.array([0.1, 0.7, 0.3])
    interval = paired_bootstrap(before, before + 0.25, draws=200)
    assert interval.mean == pytest.approx(0.25)
    assert interval.high - interval.low < 1e-15


def test_two_pairs_by_hand() -> None:
    # differences 0 and 1: a draw of two has mean 0, 0.5, 1 with chances 1/4, 1/2, 1/4: at 95 % the limits are 0 and 1
    interval = paired_bootstrap(np.zeros(2), np.array([0.0, 1.0]), draws=2000)
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.0, 1.0)
    # at level 0.4 (30 % and 70 % quantiles) both limits are the middle value
    middle = paired_bootstrap(np.zeros(2), np.array([0.0, 1.0]), draws=2000, level=0.4)
    assert (middle.low, middle.high) == (0.5, 0.5)


def test_interval_of_normals_has_the_textbook_width_and_covers() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    widths = []
    for trial in range(400):
        difference = rng.normal(0.3, 1.0, size=50)
        interval = paired_bootstrap(np.zeros(50), difference, draws=500, seed=trial)
        covered += interval.low <= 0.3 <= interval.high
        widths.append(interval.high - interval.low)
    # 2 * 1.96 / sqrt(50) = 0.554; 95 % of 400 is 380 with a standard deviation of 4.4, percentile loses about 1 %
    assert np.mean(widths) == pytest.approx(0.554, rel=0.05)
    assert 362 <= covered <= 393


def test_pairing_removes_the_variance_between_crops() -> None:
    rng = np.random.default_rng(1)
    before = rng.normal(0.0, 100.0, size=40)
    interval = paired_bootstrap(before, before + 0.5 + rng.normal(0.0, 0.1, size=40))
    assert 0.4 < interval.low < interval.high < 0.6


def test_clusters_that_share_their_difference_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    photo = np.repeat(np.arange(8), 10)
    difference = rng.normal(size=8)[photo] + 0.1 * rng.normal(size=80)
    alone = paired_bootstrap(np.zeros(80), difference)
    by_photo = paired_bootstrap(np.zeros(80), difference, clusters=photo)
    assert by_photo.mean == alone.mean
    # all variance is between photographs: sqrt(10) wider
    ratio = (by_photo.high - by_photo.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(np.sqrt(10.0), rel=0.2)


def test_clusters_of_one_pair_are_the_plain_bootstrap_and_names_do_not_matter() -> None:
    difference = np.random.default_rng(3).normal(size=30)
    plain = paired_bootstrap(np.zeros(30), difference)
    assert paired_bootstrap(np.zeros(30), difference, clusters=100 + np.arange(30)) == plain


def test_unequal_clusters_weigh_by_their_pairs() -> None:
    # photograph 0 has one pair of difference 0, photograph 1 three of 1: draws give 0, 3/4, 1
    interval = paired_bootstrap(np.zeros(4), np.array([0.0, 1.0, 1.0, 1.0]), clusters=np.array([0, 1, 1, 1]), level=0.4)
    assert (interval.mean, interval.low, interval.high) == (0.75, 0.75, 0.75)


@pytest.mark.parametrize(
    ("before", "after", "kwargs", "message"),
    [
        (np.zeros(3), np.zeros(4), {}, r"\(3,\) and \(4,\)"),
        (np.zeros(0), np.zeros(0), {}, "N >= 1"),
        (np.zeros(3), np.zeros(3), {"clusters": np.zeros(2, dtype=np.int64)}, r"\(3,\).*\(2,\)"),
        (np.zeros(3), np.zeros(3), {"level": 95}, "level between 0 and 1, got 95"),
    ],
)
def test_refusals_carry_the_values(before, after, kwargs, message) -> None:
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(before, after, **kwargs)

"""Pools on disk: every image once an epoch, the stored scores, and each mistake with its line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl.config.load import ConfigError, validate
from rl.config.offline import OfflineConfig
from rl.data.pools import PoolSource
from rl.errors import InputError

Pool = Callable[..., Path]


def recipe(pool: Path, **changes: Any) -> OfflineConfig:
    raw = {
        "kind": "offline",
        "policy": {"type": "naosd"},
        "objective": {"type": "gdpo"},
        "pools": {"path": str(pool), "group_size": 3},
        "scores": [{"name": "psnr"}],
    }
    return validate(OfflineConfig, {**raw, **changes}, "test")


def test_an_epoch_visits_every_image_once_in_an_order_of_its_own(tmp_path: Path, write_pool: Pool) -> None:
    source = PoolSource(recipe(write_pool(tmp_path / "p", images=5)))
    epochs = [[source.item(5 * epoch + i)[0].lr_id for i in range(5)] for epoch in range(3)]
    assert all(sorted(epoch) == [f"img/lr{i}.png" for i in range(5)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_an_item_has_the_pixels_and_scores_of_its_record(tmp_path: Path, write_pool: Pool) -> None:
    source = PoolSource(recipe(write_pool(tmp_path / "p"), seed=3))
    task, group, scores = source.item(0)
    assert task.lr.shape == (3, 16, 16) and task.hr is not None and task.scale == 4
    assert group.images.shape == (3, 3, 64, 64) and scores.shape == (3, 1)
    error = np.square(group.images.astype(float) - task.hr).mean(axis=(1, 2, 3))
    # the stored score is the PSNR of the stored pixels
    assert scores[:, 0] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-9)
    assert (np.diff(scores[:, 0]) < 0).all()


def test_the_first_candidates_make_the_group(tmp_path: Path, write_pool: Pool) -> None:
    pool = write_pool(tmp_path / "p", candidates=5)
    source = PoolSource(recipe(pool, pools={"path": [str(pool)], "group_size": 2}))
    assert source.item(0)[1].images.shape[0] == 2 and source.item(0)[2].shape == (2, 1)


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r["scores"].pop("psnr"), "pool.jsonl:2: expected 3 finite scores 'psnr', got none"),
        (lambda r: r["scores"].update(psnr=[1.0, 2.0]), "expected 3 finite scores 'psnr', got [1.0, 2.0]"),
        (lambda r: r.update(candidates=r["candidates"][:2]), "at least pools.group_size 3 candidates, got 2"),
        (lambda r: r.update(lr="img/none.png"), "no such file"),
        (lambda r: r.pop("scale"), "expected lr, scale, candidates and scores"),
    ],
)
def test_a_record_that_does_not_hold_what_is_read(tmp_path: Path, write_pool: Pool, change: Change, words: str) -> None:
    file = write_pool(tmp_path / "p") / "pool.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    change(lines[1])
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError) as error:
        PoolSource(recipe(tmp_path / "p"))
    assert words in str(error.value)


def test_a_candidate_of_another_size_is_refused(tmp_path: Path, write_pool: Pool) -> None:
    pool = write_pool(tmp_path / "p", images=1)
    line = json.loads((pool / "pool.jsonl").read_text())
    (pool / "pool.jsonl").write_text(json.dumps({**line, "scale": 2}) + "\n")
    with pytest.raises(InputError, match=r"expected candidates \(3, 32, 32\), got \(3, 64, 64\)"):
        PoolSource(recipe(pool)).item(0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": {"type": "nft"}, "policy": {}}, "pools hold images; use kind: online"),
        ({"objective": {"type": "gdpo", "sample_from": "policy"}}, "objective.sample_from says how groups are sampled"),
        ({"rollout": {"group_size": 4}}, "rollout: unknown key"),
        ({"data": {"path": "a"}}, "data: unknown key"),
        ({"train": {"max_policy_lag": 1}}, "max_policy_lag: unknown key"),
        ({"scores": [{"name": "psnr"}, {"name": "psnr"}]}, "names must differ"),
    ],
)
def test_what_an_offline_recipe_does_not_read(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        recipe(tmp_path, **changes)
    assert words in str(error.value)

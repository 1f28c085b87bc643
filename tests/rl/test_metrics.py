"""The table of keys, the records, and the reader's view of a resumed run."""

import re
from pathlib import Path

import numpy as np
import pytest

from rl import jsonl
from rl.advantages import decoupled, to_reward_weight, weights_and_scales
from rl.config.offline import ScoreSection
from rl.metrics import Key, Metrics, batch_values, describe, names_of, read_metrics


def write(path: Path, *records: Metrics) -> None:
    jsonl.append(path, [record.to_json() for record in records])


def test_every_key_has_a_unit_a_meaning_and_its_own_pattern() -> None:
    for key in Key:
        assert re.fullmatch(r"[a-z]+(/<name>)?/[a-z_]+", key.value)
        assert key.unit and key.meaning
        concrete = key.of("musiq") if "<name>" in key else key.value
        assert describe(concrete).key is key


def test_keys_of_a_reward_carry_its_name() -> None:
    assert Key.REWARD_MEAN.of("musiq") == "reward/musiq/mean"
    assert describe("eval/lr_consistency/delta").name == "lr_consistency"
    assert describe("reward/queue_wait_s").name is None
    assert names_of(Key.REWARD_MEAN, ["loss/kl", "reward/b/mean", "reward/a/mean", "reward/c/std"]) == ("b", "a")


def test_a_typo_is_refused_with_the_nearest_keys() -> None:
    with pytest.raises(KeyError, match=r"loss/poliy.*loss/policy"):
        Metrics(1, 0.0, {"loss/poliy": 1.0})
    with pytest.raises(KeyError, match=r"reward/<name>/mean"):
        describe("reward/<name>/mean")


def test_of_refuses_what_would_make_a_wrong_key() -> None:
    with pytest.raises(ValueError, match="has no <name>"):
        Key.LOSS_KL.of("musiq")
    with pytest.raises(ValueError, match="without '/'"):
        Key.REWARD_MEAN.of("a/b")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (Key.LOSS_POLICY, float("nan"), "finite"),
        (Key.LOSS_POLICY, [1.0], "one number"),
        (Key.ADVANTAGE_R_HISTOGRAM, 1.0, "list of 10"),
        (Key.ADVANTAGE_R_HISTOGRAM, [1.0] * 9, "list of 10"),
    ],
)
def test_values_of_the_wrong_kind_are_refused(key: Key, value: float | list[float], message: str) -> None:
    with pytest.raises(ValueError, match=rf"{key}.*step 7.*{message}"):
        Metrics(7, 0.0, {key: value})


def test_json_round_trip_keeps_numpy_numbers(tmp_path: Path) -> None:
    record = Metrics(3, 1.5, {Key.LOSS_KL: np.float64(0.25), Key.ADVANTAGE_R_HISTOGRAM: [0.0, 2.0] * 5})
    write(tmp_path / "m.jsonl", record)
    (back,) = read_metrics(tmp_path / "m.jsonl")
    assert back == record


def test_records_of_one_step_are_merged_and_a_resumed_run_supersedes(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    for step in (1, 2, 3, 4):
        write(path, Metrics(step, step, {Key.LOSS_KL: float(step)}))
    write(path, Metrics(3, 0.0, {Key.LOSS_KL: 30.0}), Metrics(3, 0.1, {Key.EVAL_MEAN.of("a"): 5.0}))
    records = read_metrics(path)
    assert [record.step for record in records] == [1, 2, 3]
    assert records[-1].values == {"loss/kl": 30.0, "eval/a/mean": 5.0}


def test_torn_last_line_is_no_record_and_is_cut_before_appending(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write(path, Metrics(1, 0.0, {}))
    with path.open("a") as file:
        file.write('{"step": 2, "wal')
    assert [record.step for record in read_metrics(path)] == [1]
    assert jsonl.cut_torn_line(path) == 16
    assert jsonl.cut_torn_line(path) == 0
    write(path, Metrics(2, 0.0, {}))
    assert [record.step for record in read_metrics(path)] == [1, 2]


def test_broken_line_in_the_middle_is_an_error_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1, "wall_s": 0}\nnonsense\n')
    with pytest.raises(ValueError, match=r"m\.jsonl:2.*nonsense"):
        read_metrics(path)


def test_batch_values_by_hand() -> None:
    # reward a, scale 10: groups (0 20) and (10 10) -> scaled 0 2 | 1 1: mean 1, biased std sqrt(2/4) = 0.70711,
    # unbiased group std sqrt(2) and 0 -> mean 0.70711; one of two groups without variance
    scores = np.array([[[0.0], [20.0]], [[10.0], [10.0]]])
    rewards = [ScoreSection(name="a", scale=10.0)]
    batch = decoupled(scores, *weights_and_scales(rewards), 1e-3, 0.0)
    # z = -0.70711 0.70711 | 0 0, std_batch sqrt(1/3) -> advantages -+1.22474; r = 0.5 -+ 0.122474 and 0.5 twice
    values = batch_values(rewards, scores, batch, to_reward_weight(batch.advantages, 5.0))
    assert values["reward/a/mean"] == pytest.approx(1.0)
    assert values["reward/a/std"] == pytest.approx(0.7071068)
    assert values["reward/a/group_std"] == pytest.approx(0.7071068)
    assert values["reward/a/zero_variance_share"] == 0.5
    assert values["advantage/a/std_before_fusion"] == pytest.approx(0.5)
    assert values["advantage/abs_max"] == pytest.approx(1.2247449)
    assert values["advantage/r_histogram"] == [0, 0, 0, 1, 0, 2, 1, 0, 0, 0]
    assert Metrics(1, 0.0, values).values is values
    assert values.keys() - batch_values(rewards, scores, batch, None).keys() == {"advantage/r_histogram"}

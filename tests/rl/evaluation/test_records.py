"""Evaluation records on disk, and the before/after rows made of them."""

from pathlib import Path

import pytest

from rl.evaluation.records import EvalRecord, NotComparable, Phase, append_eval, ceiling, changes, read_eval


def record(phase: Phase, score: float, *, version: int = 0, crop: str = "cat@0", seed: int = 1) -> EvalRecord:
    return EvalRecord(phase, version, crop.split("@")[0], crop, seed, {"musiq": score})


def test_round_trip_and_the_last_line_of_a_repeated_evaluation_counts(tmp_path: Path) -> None:
    path = tmp_path / "eval.jsonl"
    append_eval(path, [record("start", 60.0), record("end", 61.0, version=5)])
    append_eval(path, [record("end", 62.0, version=5)])
    assert read_eval(path) == (record("start", 60.0), record("end", 62.0, version=5))


def test_changes_by_hand() -> None:
    records = [
        record("start", 60.0, crop="cat@0"),
        record("start", 50.0, crop="dog@0"),
        record("step", 99.0, version=3),
        # in another order than at the start: pairs are matched by name
        record("end", 49.0, version=5, crop="dog@0"),
        record("end", 64.0, version=5, crop="cat@0"),
    ]
    (row,) = changes(records)
    assert (row.name, row.before, row.after, row.pairs, row.photos) == ("musiq", 55.0, 56.5, 2, 2)
    assert (row.difference.mean, row.improved_share) == (1.5, 0.5)
    # differences +4 and -1: two photographs, so the limits are the two themselves
    assert (row.difference.low, row.difference.high) == (-1.0, 4.0)


def test_crops_of_one_photograph_are_one_cluster() -> None:
    records = [
        record(phase, score, crop=crop)
        for phase in ("start", "end")
        for crop, score in (("cat@0", 1.0 if phase == "end" else 0.0), ("cat@1", 3.0 if phase == "end" else 0.0))
    ]
    (row,) = changes(records)
    assert row.photos == 1
    assert row.difference.low == row.difference.high == 2.0


def test_newest_end_counts_and_an_unfinished_run_has_no_rows() -> None:
    start = record("start", 1.0)
    assert changes([start, record("step", 2.0, version=2)]) == ()
    (row,) = changes([start, record("end", 2.0, version=2), record("end", 4.0, version=9)])
    assert row.after == 4.0


def test_a_crop_that_failed_in_one_evaluation_counts_in_neither() -> None:
    (row,) = changes([record("start", 1.0), record("end", 3.0), record("end", 90.0, crop="dog@0")])
    assert (row.pairs, row.before, row.after) == (1, 1.0, 3.0)


def test_other_seeds_or_other_crops_altogether_are_refused() -> None:
    more = EvalRecord("end", 5, "cat", "cat@0", 2, {"musiq": 1.0})
    with pytest.raises(NotComparable, match=r"got 1 and 2; unpaired: \[\('cat@0', 2\)\]"):
        changes([record("start", 1.0), record("end", 1.0, version=5), more])
    with pytest.raises(NotComparable, match=r"unpaired: \[\('cat@0', 1\), \('dog@0', 1\)\]"):
        changes([record("start", 1.0), record("end", 1.0, crop="dog@0")])


def test_a_reward_that_the_end_lacks_is_refused() -> None:
    end = EvalRecord("end", 5, "cat", "cat@0", 1, {"gmsd": 0.5})
    with pytest.raises(NotComparable, match=r"expected a score 'musiq' for every crop, \('cat@0', 1\) has none"):
        changes([record("start", 60.0), end])


def test_the_ceiling_is_the_mean_over_crops_of_the_best_sample_at_the_start() -> None:
    """Crops with best 3 and 5 of two samples: 4. Neither what comes later counts, nor a third sample of one crop."""
    start = [
        record("start", 1.0, crop="cat@0", seed=1),
        record("start", 3.0, crop="cat@0", seed=2),
        record("start", 5.0, crop="dog@0", seed=1),
        record("start", 2.0, crop="dog@0", seed=2),
    ]
    later = [record("step", 99.0, seed=1), record("end", 99.0, seed=1), record("end", 98.0, seed=2)]
    best = ceiling([*later, *start, record("start", 99.0, crop="dog@0", seed=3)])
    assert best is not None
    assert (best.samples, dict(best.best)) == (2, {"musiq": 4.0})
    assert ceiling(start[:1] + start[2:3]) is None, "one sample a crop picks nothing"
    assert ceiling(later) is None and ceiling([]) is None


def test_each_reward_picks_for_itself() -> None:
    scores = [{"a": 1.0, "b": 5.0}, {"a": 2.0, "b": 4.0}]
    best = ceiling([EvalRecord("start", 0, "cat", "cat@0", seed, row) for seed, row in enumerate(scores)])
    assert best is not None and dict(best.best) == {"a": 2.0, "b": 5.0}


def test_record_with_a_missing_field_is_refused_with_its_content() -> None:
    with pytest.raises(ValueError, match=r"policy_version.*'phase': 'start'"):
        EvalRecord.from_json({"phase": "start"})

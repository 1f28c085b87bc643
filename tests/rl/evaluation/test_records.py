"""Evaluation records on disk, and the before/after rows made of them."""

from pathlib import Path

import pytest

from rl.evaluation.records import EvalRecord, Phase, append_eval, changes, read_eval


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


def test_unpaired_crops_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got 1 and 2; unpaired: \[\('dog@0', 1\)\]"):
        changes([record("start", 1.0), record("end", 1.0), record("end", 1.0, crop="dog@0")])


def test_record_with_a_missing_field_is_refused_with_its_content() -> None:
    with pytest.raises(ValueError, match=r"policy_version.*'phase': 'start'"):
        EvalRecord.from_json({"phase": "start"})

"""The log of a training."""

from __future__ import annotations

from tests.training.lines import read_metrics
from weaktr.training.metrics import MetricsLog


def test_metrics_are_cut_back_to_a_position(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write([{"step": 1}, {"step": 2}])
    position = log.position()
    log.write([{"step": 3}])
    log.close()
    again = MetricsLog(tmp_path / "metrics.jsonl")
    again.cut(position)
    again.write([{"step": 4}])
    again.close()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 4]


def test_a_hard_link_to_the_log_stays_as_it_is(tmp_path):
    path, backup = tmp_path / "metrics.jsonl", tmp_path / "backup.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    backup.hardlink_to(path)
    log = MetricsLog(path)
    log.cut(24)
    log.write([{"step": 3}])
    log.close()
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]
    assert [row["step"] for row in read_metrics(backup)] == [1, 2]

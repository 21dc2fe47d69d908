"""The registry: who wins, what an unavailable backend says, which errors are swallowed (one)."""

import pytest

from weaktr import backends
from weaktr.backends import BackendUnavailable, pick, report

OP = "two_ways"  # registered by the fixture below


def plain():
    return "torch"


def fast():
    return "cpu"


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """One op with two backends that run and one that is not installed."""
    entries = {
        "torch": f"{__name__}:plain",
        "cpu": f"{__name__}:fast",
        "triton": "weaktr_is_not_installed_here:run",
    }
    monkeypatch.setitem(backends.REGISTRY, OP, entries)
    return entries


def test_argument_beats_environment_beats_auto(monkeypatch):
    assert pick(OP, "cpu") is fast
    monkeypatch.setenv("WEAKTR_BACKEND", "torch")
    assert pick(OP, "cpu") is plain
    assert pick(OP, "cpu", "cpu") is fast


def test_auto_falls_through_to_what_can_run(registry):
    assert pick(OP, "mps") is plain
    registry["cpu"] = registry["triton"]
    assert pick(OP, "cpu") is plain


def test_auto_without_anything_that_runs(registry):
    registry["torch"] = registry["cpu"] = registry["triton"]
    with pytest.raises(BackendUnavailable, match="no backend of two_ways can run on cpu"):
        pick(OP, "cpu")


def test_named_backend_that_cannot_run_says_why(monkeypatch):
    with pytest.raises(BackendUnavailable, match="weaktr_is_not_installed_here"):
        pick(OP, "cpu", "triton")
    with pytest.raises(BackendUnavailable, match="two_ways has no backend 'tpu'"):
        pick(OP, "cpu", "tpu")
    monkeypatch.setenv("WEAKTR_BACKEND", "triton")
    with pytest.raises(BackendUnavailable, match="backend 'triton' of two_ways cannot run"):
        pick(OP, "cpu")


@pytest.mark.parametrize("choice", ["auto", "cuda"])
def test_only_import_errors_mean_unavailable(tmp_path, monkeypatch, registry, choice):
    (tmp_path / "broken_backend.py").write_text("raise ZeroDivisionError('a fault inside')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry["cuda"] = registry["cpu"] = "broken_backend:run"
    with pytest.raises(ZeroDivisionError, match="a fault inside"):
        pick(OP, "cpu", choice)


def test_unknown_op():
    with pytest.raises(ValueError, match=r"op: expected one of .*dense_crf.*, got 'sharpen'"):
        pick("sharpen", "cpu")


def test_every_op_has_a_torch_definition():
    rows = {(row.op, row.backend): row for row in report() if row.op != OP}
    for op in backends.REGISTRY.keys() - {OP}:
        assert rows[op, "torch"].available, rows[op, "torch"].reason


def test_report_gives_the_reason():
    rows = {row.backend: row for row in report() if row.op == OP}
    assert rows["torch"].available
    assert rows["torch"].reason == ""
    assert not rows["triton"].available
    assert "weaktr_is_not_installed_here" in rows["triton"].reason

"""The registry: who wins, what an unavailable backend says, which errors are swallowed (one)."""

import operator
from importlib import import_module

import pytest
import torch

from weaktr.ops import registry as backends
from weaktr.ops.registry import BackendUnavailable, pick, report

OP = "two_ways"  # registered by the fixture below


def plain():
    return "torch"


def fast():
    return "cpu"


def refusal(device_type, size=0):
    """What this module's backends do not take, whichever they are."""
    return f"{size} is too large for {device_type}" if size > 8 else ""


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


def test_refused_inputs_go_to_the_next_backend_and_it_is_said_once(registry, caplog):
    backends._log_choice.cache_clear()
    registry["torch"] = "operator:neg"  # a module that refuses nothing
    with caplog.at_level("INFO", "weaktr"):
        assert pick(OP, "cpu", size=8)() == "cpu"
        assert pick(OP, "cpu", size=9) is operator.neg
        assert pick(OP, "cpu", size=9) is operator.neg
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("INFO", "two_ways on cpu runs on backend cpu"),
        ("WARNING", "two_ways on cpu runs on backend torch (cpu: 9 is too large for cpu)"),
    ]


def test_named_backend_that_refuses_says_why():
    with pytest.raises(BackendUnavailable, match="'cpu' of two_ways cannot run: 9 is too large"):
        pick(OP, "cpu", "cpu", size=9)


def test_checkout_without_symbolic_links_is_named(monkeypatch, registry):
    registry["triton"] = "weaktr.kernels.head_stats:head_stats_triton"

    def no_folder(module):
        raise ModuleNotFoundError(f"No module named {module!r}", name="weaktr.kernels")

    monkeypatch.setattr(backends, "_missing", backends._missing.__wrapped__)  # not from the cache
    monkeypatch.setattr(backends.importlib, "import_module", no_folder)
    with pytest.raises(BackendUnavailable, match="this checkout has lost its symbolic links"):
        pick(OP, "cpu", "triton")


def test_torch_compile_sees_through_the_choice():
    def doubled(x):
        return x * 2 if pick(OP, x.device, size=x.shape[0]) is fast else x

    compiled = torch.compile(doubled, fullgraph=True, backend="eager")
    assert compiled(torch.ones(3)).tolist() == [2, 2, 2]


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


def test_report_tells_what_is_picked_where(monkeypatch, registry):
    def on_a_gpu():
        return {row.backend: row for row in report() if row.op == OP}

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    registry["cuda"] = f"{__name__}:fast"
    picked = {name: row.picked for name, row in on_a_gpu().items()}
    assert picked == {"cpu": ("cpu",), "cuda": ("cuda",), "torch": (), "triton": ()}
    monkeypatch.setenv("WEAKTR_BACKEND", "torch")
    assert on_a_gpu()["torch"].picked == ("cpu", "cuda")


def test_report_tells_what_is_refused_and_what_is_taken(monkeypatch, registry):
    monkeypatch.setitem(backends.USUAL, OP, {"size": 9})
    monkeypatch.setitem(globals(), "LIMITS", "sizes up to 8")
    registry["torch"] = "operator:neg"
    rows = {row.backend: row for row in report() if row.op == OP}
    assert rows["torch"].picked == ("cpu",)
    assert rows["cpu"].refused == "9 is too large for cpu"
    assert rows["cpu"].limits == "sizes up to 8"
    assert rows["torch"].refused == rows["torch"].limits == ""


def test_usual_inputs_are_what_the_ops_ask_with():
    """The facts of `report` are those that the ops hand to `pick`."""
    asked = {}

    def note(op, device, backend="auto", **facts):
        asked[op] = facts.keys()
        return pick(op, device, backend, **facts)

    q = torch.randn(1, 2, 5, 8)
    calls = {
        "head_stats": lambda run: run(q, q, num_classes=1, num_patches=4),
        "fuse_heads": lambda run: run(q, q, q[..., 0], q[:, :, 0, 0], q[0, :1, :4]),
        "clipped_cross_entropy": lambda run: run(q, torch.zeros(1, 5, 8, dtype=torch.uint8)),
        "softmax_attention": lambda run: run(q, q, q),
    }
    for name, call in calls.items():
        home = "ops.attention" if name == "softmax_attention" else f"ops.{name}"
        module = import_module(f"weaktr.{home}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "pick", note)
            call(getattr(module, name))
    assert asked == {op: facts.keys() for op, facts in backends.USUAL.items()}

"""The registry: who wins, what an unavailable backend says, which errors are swallowed (one)."""

import subprocess
import sys
from types import ModuleType

import pytest
import torch

from weaktr import ops
from weaktr.ops import registry as backends
from weaktr.ops.registry import OPS, Backend, BackendUnavailable, Op, Triton, report, takes

NAME = "two_ways"
ABSENT = "weaktr_is_not_installed_here"


def two_ways_torch():
    return "torch"


@takes("sizes up to 8", lambda size=0: f"{size} is too large" if size > 8 else "")
def two_ways_cpu():
    return "cpu"


def two_ways_fast():
    return "fast"


TORCH, CPU = Backend("torch", __name__), Backend("cpu", __name__, devices=("cpu",))
GPU = Backend("triton", ABSENT, devices=("cuda",))


@pytest.fixture
def declare(monkeypatch):
    """Declares the op of this module anew, with other backends."""

    def declared(*candidates, **more):
        op = Op(NAME, candidates, **more)
        monkeypatch.setitem(OPS, NAME, op)
        return op

    return declared


@pytest.fixture
def op(declare):
    """One op with two backends that run and one that is not installed."""
    return declare(GPU, CPU, TORCH)


def rows():
    """What `report` tells of it, by backend."""
    return {row.backend: row for row in report() if row.op == NAME}


def test_argument_beats_environment_beats_auto(op, monkeypatch):
    assert op.pick("cpu") is two_ways_cpu
    monkeypatch.setenv("WEAKTR_BACKEND", "torch")
    assert op.pick("cpu") is two_ways_torch
    assert op.pick("cpu", "cpu") is two_ways_cpu


def test_lenient_op_heeds_the_environment_for_its_own_backends_alone(declare, monkeypatch):
    lenient = declare(CPU, TORCH, lenient=True)
    monkeypatch.setenv("WEAKTR_BACKEND", "triton")
    assert lenient.pick("cpu") is two_ways_cpu
    monkeypatch.setenv("WEAKTR_BACKEND", "torch")
    assert lenient.pick("cpu") is two_ways_torch


def test_auto_falls_through_to_what_can_run(op, declare):
    assert op.pick("mps") is two_ways_torch
    assert op.pick("cuda") is two_ways_torch
    absent = declare(Backend("cpu", ABSENT, devices=("cpu",)), TORCH)
    assert absent.pick("cpu") is two_ways_torch


def test_order_of_declaration_is_the_order_of_auto(declare):
    assert declare(TORCH, CPU).pick("cpu") is two_ways_torch


def test_what_is_for_no_auto_runs_where_it_is_named(declare):
    op = declare(Backend("fast", __name__, auto=False), TORCH)
    assert op.pick("cpu") is two_ways_torch
    assert op.pick("cpu", "fast") is two_ways_fast


def test_auto_without_anything_that_runs(declare):
    op = declare(Backend("torch", ABSENT))
    with pytest.raises(BackendUnavailable, match="no backend of two_ways can run on cpu"):
        op.pick("cpu")


def test_named_backend_that_cannot_run_says_why(op, monkeypatch):
    with pytest.raises(BackendUnavailable, match=ABSENT):
        op.pick("cpu", "triton")
    with pytest.raises(BackendUnavailable, match="two_ways has no backend 'tpu'"):
        op.pick("cpu", "tpu")
    monkeypatch.setenv("WEAKTR_BACKEND", "triton")
    with pytest.raises(BackendUnavailable, match="backend 'triton' of two_ways cannot run"):
        op.pick("cpu")


def test_tensors_on_another_device_are_refused_with_advice(declare):
    op = declare(CPU, Backend("fast", __name__, ("cuda", "mps"), advice="do something else"))
    with pytest.raises(BackendUnavailable, match="cannot run: it runs on CPU tensors, got cuda"):
        op.pick("cuda", "cpu")
    message = "it runs on CUDA and MPS tensors, got cpu; do something else"
    with pytest.raises(BackendUnavailable, match=message):
        op.pick("cpu", "fast")


@pytest.mark.parametrize("interpreted", [True, False])
def test_triton_takes_any_device_where_it_is_interpreted(declare, monkeypatch, interpreted):
    package = ModuleType("weaktr.kernels")
    package.INTERPRETED = interpreted
    package.two_ways_triton = two_ways_fast
    monkeypatch.setitem(sys.modules, package.__name__, package)
    backends._missing.cache_clear()
    op = declare(Triton(package.__name__), TORCH)
    assert op.pick("cuda") is two_ways_fast
    assert op.pick("cpu") is two_ways_torch
    if interpreted:
        assert op.pick("cpu", "triton") is two_ways_fast
        return
    with pytest.raises(BackendUnavailable, match=r"on CUDA tensors, got cpu; set TRITON_INTERPRET"):
        op.pick("cpu", "triton")


@pytest.mark.parametrize("choice", ["auto", "cpu"])
def test_only_import_errors_mean_unavailable(tmp_path, monkeypatch, declare, choice):
    (tmp_path / "broken_backend.py").write_text("raise ZeroDivisionError('a fault inside')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    op = declare(Backend("cpu", "broken_backend"), TORCH)
    with pytest.raises(ZeroDivisionError, match="a fault inside"):
        op.pick("cpu", choice)


def test_refused_inputs_go_to_the_next_backend_and_it_is_said_once(op, caplog):
    backends._log_choice.cache_clear()
    with caplog.at_level("INFO", "weaktr"):
        assert op.pick("cpu", size=8) is two_ways_cpu
        assert op.pick("cpu", size=9) is two_ways_torch
        assert op.pick("cpu", size=9) is two_ways_torch
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("INFO", "two_ways on cpu runs on backend cpu"),
        ("WARNING", "two_ways on cpu runs on backend torch (cpu: 9 is too large)"),
    ]


def test_named_backend_that_refuses_says_why(op):
    with pytest.raises(BackendUnavailable, match="'cpu' of two_ways cannot run: 9 is too large"):
        op.pick("cpu", "cpu", size=9)


def test_checkout_without_symbolic_links_is_named(monkeypatch, declare):
    def no_folder(module):
        raise ModuleNotFoundError(f"No module named {module!r}", name="weaktr.kernels")

    monkeypatch.setattr(backends, "_missing", backends._missing.__wrapped__)  # not from the cache
    monkeypatch.setattr(backends.importlib, "import_module", no_folder)
    op = declare(Triton("weaktr.kernels.head_stats"))
    with pytest.raises(BackendUnavailable, match="this checkout has lost its symbolic links"):
        op.pick("cpu", "triton")


def test_torch_compile_sees_through_the_choice(op):
    def doubled(x):
        return x * 2 if op.pick(x.device, size=x.shape[0]) is two_ways_cpu else x

    compiled = torch.compile(doubled, fullgraph=True, backend="eager")
    assert compiled(torch.ones(3)).tolist() == [2, 2, 2]


def test_torch_compile_imports_backends_while_it_traces(tmp_path, monkeypatch):
    """Two ops in one graph whose backends nobody has imported before."""
    monkeypatch.syspath_prepend(str(tmp_path))
    ops_of_names = []
    for name in ("first_op", "second_op"):
        (tmp_path / f"lazy_{name}.py").write_text(f"def {name}_cpu(x):\n    return x * 2\n")
        op = Op(name, (Backend("cpu", f"lazy_{name}"),))
        monkeypatch.setitem(OPS, name, op)
        ops_of_names.append(op)

    def both(x):
        for op in ops_of_names:
            x = op.pick(x.device)(x)
        return x

    compiled = torch.compile(both, fullgraph=True, backend="eager")
    assert compiled(torch.ones(3)).tolist() == [4, 4, 4]


def test_every_op_has_a_torch_definition():
    statuses = {(row.op, row.backend): row for row in report()}
    names = {"attention", "clipped_cross_entropy", "confusion", "dense_crf", "fuse_heads"}
    assert OPS.keys() == names | {"head_stats", "propagate_labels"}
    for name in OPS:
        assert statuses[name, "torch"].available, statuses[name, "torch"].reason


def test_report_gives_the_reason(op):
    assert rows()["torch"].available
    assert rows()["torch"].reason == ""
    assert not rows()["triton"].available
    assert ABSENT in rows()["triton"].reason


def test_report_tells_what_is_picked_where(monkeypatch, declare):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    declare(GPU, Backend("fast", __name__, devices=("cuda",)), CPU, TORCH)
    picked = {name: row.picked for name, row in rows().items()}
    assert picked == {"cpu": ("cpu",), "fast": ("cuda",), "torch": (), "triton": ()}
    monkeypatch.setenv("WEAKTR_BACKEND", "torch")
    assert rows()["torch"].picked == ("cpu", "cuda")


def test_report_tells_what_is_refused_and_what_is_taken(declare):
    declare(CPU, TORCH, usual={"size": 9})
    assert rows()["torch"].picked == ("cpu",)
    assert rows()["cpu"].refused == "9 is too large"
    assert rows()["cpu"].limits == "sizes up to 8"
    assert rows()["torch"].refused == rows()["torch"].limits == ""


def test_usual_inputs_are_what_the_ops_ask_with(monkeypatch):
    """The facts of `report` are those that the ops hand to `pick`."""
    asked, pick = {}, Op.pick

    def note(op, device, backend="auto", **facts):
        asked[op.name] = facts.keys()
        return pick(op, device, backend, **facts)

    monkeypatch.setattr(Op, "pick", note)
    q = torch.randn(1, 2, 5, 8)
    ops.head_stats(q, q, num_classes=1, num_patches=4)
    ops.fuse_heads(q, q, q[..., 0], q[:, :, 0, 0], q[0, :1, :4])
    ops.clipped_cross_entropy(q, torch.zeros(1, 5, 8, dtype=torch.uint8))
    ops.softmax_attention(q, q, q)
    assert asked == {name: op.usual.keys() for name, op in OPS.items() if op.usual}


def test_modules_are_imported_on_first_use():
    """Importing the ops needs neither Triton's kernels nor the extension."""
    code = (
        "import sys, weaktr.ops; "
        "assert not {'weaktr.kernels', 'weaktr._native'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""The package of kernels: what imports, what compiles without a GPU, how launches are tuned."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.kernels.tuning import clocked

ROOT = Path(__file__).parents[2]
KERNELS = {
    *("scale_kernel", "losses_kernel", "corners_kernel", "gradient_kernel"),
    *("tile_sums_kernel", "clip_kernel"),
    *("_attention_kernel", "_lse_kernel", "_stats_kernel", "spread_kernel", "weights_kernel"),
}
CONFIGS = ({"BLOCK": 16, "num_warps": 4}, {"BLOCK": 32, "num_warps": 4})
KEY = ("torch.float32", 64, 1024)


def python(*arguments, **variables):
    """Run Python in the checkout as on a machine with a GPU: kernels are not interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_folder_is_refused_under_its_own_name():
    process = python("-c", "import kernels")
    assert "this folder is weaktr.kernels and was imported as kernels" in process.stderr


def test_without_gpu_and_interpreter_the_reason_is_given():
    process = python("-c", "import weaktr.kernels", CUDA_VISIBLE_DEVICES="")
    assert "ImportError: Triton finds no GPU; TRITON_INTERPRET=1 runs its kernels" in process.stderr


@pytest.mark.slow
def test_every_kernel_compiles_without_a_gpu(tmp_path):
    pytest.importorskip("triton")
    process = python("-m", "tests.kernels.compile_kernels", TRITON_CACHE_DIR=str(tmp_path))
    assert process.returncode == 0, process.stderr
    assert set(process.stdout.split()) >= KERNELS


@pytest.mark.slow
def test_second_launch_of_a_kind_is_triton_s():
    pytest.importorskip("triton")
    process = python("-m", "tests.kernels.launches")
    assert process.returncode == 0, process.stderr


# ---- launch configurations ----------------------------------------------------------------------


@pytest.fixture
def tuning():
    """The module; the test is skipped, with the reason, where kernels cannot run."""
    return pytest.importorskip("weaktr.kernels.tuning", exc_type=ImportError)


@pytest.fixture
def gpu(tuning, monkeypatch, tmp_path):
    """As on a GPU whose second configuration is the faster one; records what is measured."""
    measured = []

    def milliseconds(run):
        run()
        return 1 / measured[-1]["BLOCK"]

    with clocked(monkeypatch, tmp_path, milliseconds):
        yield measured


def choose(tuning, measured, key=KEY, configs=CONFIGS):
    kernel = SimpleNamespace(fn=choose)
    return tuning.best_config(kernel, key, configs, measured.append, torch.device("cpu"))


def test_measured_once_per_machine(tuning, gpu, tmp_path):
    assert choose(tuning, gpu) == CONFIGS[1]
    assert gpu == list(CONFIGS)
    assert choose(tuning, gpu) == CONFIGS[1]
    tuning._table.cache_clear()  # another process
    assert choose(tuning, gpu) == CONFIGS[1]
    assert gpu == list(CONFIGS)
    (table,) = tmp_path.rglob("*.*")
    assert table.name.startswith("test_kernels-GPU-9000-triton")
    assert json.loads(table.read_text()) == {"choose torch.float32 64 1024": CONFIGS[1]}


def test_other_keys_are_measured_and_added(tuning, gpu):
    choose(tuning, gpu)
    choose(tuning, gpu, key=("torch.float16", 64, 1024))
    tuning._table.cache_clear()
    choose(tuning, gpu)
    choose(tuning, gpu, key=("torch.float16", 64, 1024))
    assert len(gpu) == 2 * len(CONFIGS)


def test_what_is_no_longer_a_candidate_is_measured_again(tuning, gpu):
    choose(tuning, gpu)
    newer = ({"BLOCK": 64, "num_warps": 4}, {"BLOCK": 48, "num_warps": 8})
    for _ in range(2):
        assert choose(tuning, gpu, configs=newer) == newer[0]
    assert gpu == [*CONFIGS, *newer]


@pytest.mark.parametrize("content", ['{"choose torch', "[]", "[" * 100_000, "\0", "9" * 5000])
def test_damaged_table_is_measured_again(tuning, gpu, tmp_path, content):
    choose(tuning, gpu)
    (table,) = tmp_path.rglob("*.*")
    table.write_text(content)
    tuning._table.cache_clear()
    assert choose(tuning, gpu) == CONFIGS[1]
    assert json.loads(table.read_text())


def test_folder_that_cannot_be_written_is_reported_once(tuning, gpu, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(tuning.FOLDER_VARIABLE, str(tmp_path / "file"))
    assert choose(tuning, gpu) == CONFIGS[1]
    assert choose(tuning, gpu, key=("torch.float16", 64, 1024)) == CONFIGS[1]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert "kernel configurations cannot be kept in" in messages[0]


def test_table_belongs_to_source_and_device(tuning, tmp_path):
    source = tmp_path / "op.py"
    source.write_text("first")
    before = tuning.table_path(source, "GPU 9000")
    assert before == tuning.table_path(source, "GPU 9000")
    assert before != tuning.table_path(source, "GPU 9001")
    source.write_text("second")
    assert before != tuning.table_path(source, "GPU 9000")


def test_nothing_is_measured_while_a_graph_is_captured(tuning, gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose(tuning, gpu) == CONFIGS[0]
    assert gpu == []


def test_nothing_is_measured_where_that_is_switched_off(tuning, gpu, monkeypatch):
    monkeypatch.setenv(tuning.TUNE_VARIABLE, "0")
    assert choose(tuning, gpu) == CONFIGS[0]
    assert gpu == []


def test_nothing_is_measured_in_the_interpreter(tuning, gpu, monkeypatch):
    monkeypatch.setattr(tuning, "INTERPRETED", True)
    assert choose(tuning, gpu) == CONFIGS[0]
    assert gpu == []


@pytest.mark.parametrize("refusal", ["OutOfResources", "PTXASError", "OutOfMemoryError"])
def test_candidate_that_cannot_run_is_left_out(tuning, refusal):
    errors = importlib.import_module("triton.runtime.errors")
    error = {
        "OutOfResources": errors.OutOfResources(2, 1, "shared memory"),
        "PTXASError": errors.PTXASError("ptxas failed"),
        "OutOfMemoryError": torch.cuda.OutOfMemoryError("CUDA out of memory"),
    }[refusal]

    def milliseconds(config):
        if config["BLOCK"] == 32:
            raise error
        return 1.0

    is_certain = refusal != "OutOfMemoryError"
    assert tuning.fastest(CONFIGS, milliseconds) == (CONFIGS[0], is_certain)


def test_a_choice_for_lack_of_memory_is_not_kept_on_disk(tuning, gpu, monkeypatch):
    """Nor is it measured again in this process."""
    measured, full = [], True

    def milliseconds(run):
        measured.append(run)
        if full and len(measured) % len(CONFIGS) != 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1.0 / len(measured)  # the last one is the fastest

    monkeypatch.setattr(tuning, "device_milliseconds", milliseconds)
    assert [choose(tuning, gpu) for _ in range(2)] == [CONFIGS[0]] * 2
    assert len(measured) == len(CONFIGS)
    tuning._table.cache_clear()  # another process, later
    full = False
    assert choose(tuning, gpu) == CONFIGS[-1]
    assert len(measured) == 2 * len(CONFIGS)


def test_without_memory_for_any_candidate_the_error_is_told(tuning, gpu, monkeypatch):
    def milliseconds(run):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tuning, "device_milliseconds", milliseconds)
    with pytest.raises(torch.OutOfMemoryError):
        choose(tuning, gpu)


def test_sizes_are_rounded_up_to_powers_of_four(tuning):
    assert [tuning.bucket(n) for n in (0, 1, 2, 4, 5, 16, 17)] == [1, 1, 4, 4, 16, 16, 64]


# ---- the short run of every kernel --------------------------------------------------------------


def test_the_short_run_takes_the_first_and_the_last_candidate(tuning, monkeypatch, capsys):
    short_run = importlib.import_module("tests.ops.short_run")
    lists = [(module, name) for module, names in short_run.LISTS for name in names]
    before = [getattr(module, name) for module, name in lists]
    for (module, name), configs in zip(lists, before, strict=True):
        monkeypatch.setattr(module, name, configs)  # to be restored
    taken = []

    def note(*_):
        taken.append([getattr(module, name) for module, name in lists])
        return []

    monkeypatch.setattr(short_run, "attention_kernels", note)
    monkeypatch.setattr(short_run, "loss_kernels", lambda dtype: [])
    short_run.main()
    for configs, first, last in zip(before, taken[0], taken[-1], strict=True):
        assert (*first, *last) == (configs[0], configs[-1])
    assert "every kernel ran" in capsys.readouterr().out

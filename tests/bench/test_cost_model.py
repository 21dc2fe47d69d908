"""The arithmetic of `bench/cost_model.py`, and the forms of what it reads."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def model():
    sys.path.insert(0, str(BENCH))
    spec = importlib.util.spec_from_file_location("cost_model", BENCH / "cost_model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(BENCH))
    del sys.modules[spec.name]


def costs(model, **seconds):
    return model.Costs({**dict.fromkeys(model.STAGES, 0.0), **seconds}, "", 90.0, 9.0, 1.0)


def test_what_runs_out_first(model):
    own = costs(model, decode=0.1, CRF=0.3, PNG=0.1)
    with_gpu = model.Machine(cores=4, gpu_images=50.0, network=1000.0, price=1.0)
    assert model.rates(own, with_gpu) == {"GPU": 50.0, "cores (decode, PNG)": 20.0, "network": 10.0}
    without = model.Machine(cores=4, gpu_images=None, network=1000.0, price=1.0)
    assert model.rates(own, without) == pytest.approx(
        {"cores (decode, model, threshold, CRF, PNG)": 8.0, "network": 10.0}
    )


@pytest.mark.parametrize(
    # 10 photographs a second on each of two machines; or on both, where the storage is slow
    ("storage", "hours", "dollars"), [(1e9, "28", "83"), (1000.0, "56", "167")]
)  # fmt: skip
def test_hours(model, storage, hours, dollars):
    machine = model.Machine(cores=1, gpu_images=10.0, network=1e9, price=3.0)
    own = costs(model, decode=0.05)
    lines = model.in_words(own, machine, machines=2, storage=storage, shard=10_000, starts=0.0)
    cells = next(line for line in lines if line.startswith("| 1,000,000 ")).split(" | ")
    assert [cells[1], cells[3]] == [hours, dollars]


def test_stored_results_have_the_parts(model):
    path = BENCH / "results" / "0.1.0" / "amd-epyc-2.json"
    seconds, source = model.costs_of_results(json.loads(path.read_text()))
    assert seconds.keys() == model.STAGES.keys() and all(value > 0 for value in seconds.values())
    assert "AMD EPYC" in source


def test_trace(model):
    names = ("read", "read", "CAMs", "threshold", "refinement", "write", "write", "compute")
    events = [{"ph": "X", "name": name, "dur": 1e6} for name in names]
    seconds = model.costs_of_trace({"traceEvents": events}, cores=2)
    assert seconds == {"decode": 1, "model": 1, "threshold": 1, "CRF": 1, "PNG": 1}


def test_a_gpus_speed_needs_a_source(model, capsys):
    with pytest.raises(SystemExit):
        model.parsed(["--results", "x.json", "--gpu-images", "9"])
    assert "--gpu-source" in capsys.readouterr().err

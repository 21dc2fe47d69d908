"""The notebooks run from their first cell to their last, on generated scenes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.stages import tiny
from weaktr.config import Recipe
from weaktr.data.sources.scenes import scenes
from weaktr.recipes import dump_recipe, make

FILES = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert [file.name for file in FILES] == ["own_photographs.ipynb"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_notebooks_are_stored_without_results(file):
    cells = nbformat.read(file, as_version=4).cells
    of_code = [cell for cell in cells if cell.cell_type == "code"]
    assert not [cell for cell in of_code if cell.outputs or cell.execution_count]


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """The cells of the notebook after it ran on scenes, with a tiny model from random weights."""
    drawn = scenes(tmp_path / "my photos", 24, split="own", size=32)
    photos, names = tmp_path / "my photos/own", drawn.classes.names
    lines = [f"{s.image.name},{';'.join(names[i] for i in s.labels)}" for s in drawn]
    (photos / "labels.csv").write_text("\n".join(["image,labels", *lines]))
    tree = tiny.tree(photos)
    (tmp_path / "tiny.yaml").write_text(dump_recipe(make(Recipe, tree)))
    notebook = nbformat.read(FILES[0], as_version=4)
    (parameters,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    values = {"photos": "my photos/own", "run_folder": "runs/mine", "recipe": "tiny.yaml"}
    own = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    often = "import weaktr.progress\nweaktr.progress.CELL_SECONDS = 0"
    parameters.source = "\n".join([*own, "settings = []", often])
    monkeypatch.setenv("PYTHONPATH", str(FILES[0].parents[1]))
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    return notebook, tmp_path


def test_the_notebook_trains_labels_predicts_and_shows(ran):
    notebook, root = ran
    cells = {cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}

    def html(start: str) -> str:
        """What the cells that begin so have drawn."""
        outputs = [o for source, found in cells.items() if source.startswith(start) for o in found]
        return "".join(str(o.get("data", {}).get("text/html", "")) for o in outputs)

    def text(start: str) -> str:
        outputs = [o for source, found in cells.items() if source.startswith(start) for o in found]
        errors = [o.text for o in outputs if o.get("name") == "stderr"]
        assert not re.search(r"^\d\d:\d\d:\d\d ", "".join(errors), re.MULTILINE)  # what is logged
        return "".join(o.get("text", "") for o in outputs)

    assert "24 photographs; {" in text("from collections")
    log = text("import json")
    assert "train_cam: epoch 2 of 2, loss " in log and "train_seg: epoch 2 of 2" in log
    assert re.search(r"^\d\d:\d\d:\d\d tiny: train_cam, label, ", log, re.MULTILINE), log
    assert "<th>score</th>" in html("run  #") and "24 pseudo labels" in html("run  #")
    assert html("masks = run.masks").count("data:image/jpeg") == 1
    assert html("sample = next").count("data:image/jpeg") >= 1
    assert html("model.label").count("data:image/jpeg") == 1
    for start, folder in (("weaktr.label", "threshold"), ("masks = weaktr.predict", "predictions")):
        assert html(start).count("data:image/jpeg") == 8 and "<progress" in html(start)
        assert len(list((root / f"runs/mine_{folder}/masks").rglob("*.png"))) == 24

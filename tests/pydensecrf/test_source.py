"""pydensecrf's own documentation, tests and example on `weaktr.pydensecrf`, by another import.

Its source distribution holds the README alone, whose code is run here block by block; tests and
examples are in its repository. Both are fetched when the tests run, and nothing of them is kept.
"""

import io
import os
import re
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tolerances import CRF_LABEL_AGREEMENT, TOLERANCES
from weaktr.data.sources.scene_drawing import render_scene

ROOT = Path(__file__).parents[2]
PACKAGE = "pydensecrf2==1.1"
REPOSITORY = (
    "https://codeload.github.com/lucasb-eyer/pydensecrf/tar.gz/"
    "dd070546eda51e21ab772ee6f14807c7f5b1548b"
)
#: The example wants imread and imwrite from OpenCV.
CV2 = """
import numpy as np
from PIL import Image
imread = lambda path: np.array(Image.open(path).convert("RGB"))
imwrite = lambda path, pixels: Image.fromarray(pixels).save(path)
"""


@pytest.fixture(scope="module")
def readme(tmp_path_factory):
    """The README of the source distribution, from the package index."""
    folder = tmp_path_factory.mktemp("sdist")
    options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    quick = ["--quiet", "--retries", "0", "--timeout", "20"]
    command = [sys.executable, "-m", "pip", "download", *options, *quick, "-d", folder, PACKAGE]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        pytest.skip(f"pip download {PACKAGE}: {(process.stderr.splitlines() or ['failed'])[-1]}")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        (name,) = (n for n in files.getnames() if n.count("/") == 1 and n.endswith("README.md"))
        return files.extractfile(name).read().decode()


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The repository's files, with ours in the place of pydensecrf in every import."""
    try:
        with urllib.request.urlopen(REPOSITORY, timeout=20) as answer:
            content = answer.read()
    except (urllib.error.URLError, TimeoutError) as error:
        pytest.skip(f"{REPOSITORY}: {error}")
    folder = tmp_path_factory.mktemp("repository")
    with tarfile.open(fileobj=io.BytesIO(content)) as files:
        files.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    return root


def on_ours(code):
    """The same code with its imports changed."""
    return re.sub(r"^(\s*(?:import|from) )pydensecrf\.", r"\1weaktr.pydensecrf.", code, flags=re.M)


def readme_code(text):
    """The README's Python, its dots filled in, on an image of a hundredth of its size."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.S))
    assert code.count("np.array(...)") == 2
    code = code.replace("640", "64").replace("480", "48")
    code = code.replace("np.array(...)", "given_unary", 1)
    code = code.replace("np.array(...)", "given_features", 1)
    # labels last, once: the README shows how to bring them to the front
    code = code.replace("print(U.shape)  # -> (48, 64, 5)", "U = given_unary.transpose(1, 2, 0)")
    # a slip of the README's: this is a method, and needs a compat
    return code.replace("dcrf.addPairwiseEnergy(feats)", "d.addPairwiseEnergy(feats, compat=3)")


def run_readme(text):
    """The names that its code leaves behind."""
    rng = np.random.default_rng(0)
    image, mask, _ = render_scene(0, size=64)
    probs = np.full((5, 48, 64), 0.1, np.float32)
    np.put_along_axis(probs, mask[None, :48] % 5, 0.6, axis=0)
    names = {
        "given_unary": -np.log(probs),
        "given_features": rng.normal(size=(7, 100)).astype(np.float32),
        "im": np.ascontiguousarray(image[:48]),
    }
    exec(compile(text, "README.md", "exec"), names)
    return names


def test_readme(readme, capsys):
    names = run_readme(on_ours(readme_code(readme)))
    printed = capsys.readouterr().out
    assert "(5, 48, 64)" in printed
    divergences = [float(v) for v in re.findall(r"KL-divergence at \d: (\S+)", printed)]
    assert len(divergences) == 5
    assert divergences == sorted(divergences, reverse=True)
    assert names["proba"].shape == (5, 64 * 48)
    assert names["map"].shape == (64, 48)
    assert len(np.unique(names["map"])) > 1


def test_readme_gives_what_pydensecrf_gives(readme):
    pytest.importorskip("pydensecrf.densecrf", reason="pip install pydensecrf2 (extra bench)")
    theirs, ours = run_readme(readme_code(readme)), run_readme(on_ours(readme_code(readme)))
    tolerance = TOLERANCES["crf_marginals"].atol
    for name in ("proba", "Q"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=tolerance)
    assert (ours["map"] == theirs["map"]).mean() >= CRF_LABEL_AGREEMENT


def python(folder, *arguments):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_its_tests(repository, tmp_path):
    paths = [path for path in repository.rglob("test_*.py") if "pydensecrf." in path.read_text()]
    assert {"test_dcrf.py", "test_eigen.py", "test_utils.py"} <= {path.name for path in paths}
    for path in paths:
        (tmp_path / path.name).write_text(on_ours(path.read_text()))
    process = python(tmp_path, "-m", "pytest", "-q", "--rootdir", tmp_path, tmp_path)
    assert process.returncode == 0, process.stdout


def test_its_example(repository, tmp_path):
    image, mask, _ = render_scene(1, size=96)
    annotation = np.zeros_like(image)
    annotation[..., 0] = np.where(np.indices(mask.shape).sum(0) % 3, mask * 20 + 10, 0)
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(annotation).save(tmp_path / "annotation.png")
    (tmp_path / "cv2.py").write_text(CV2)
    code = (repository / "examples" / "inference.py").read_text()

    def run(text, name):
        (tmp_path / f"{name}.py").write_text(text)
        output = tmp_path / f"{name}.png"
        process = python(tmp_path, f"{name}.py", "image.png", "annotation.png", output)
        assert process.returncode == 0, process.stderr
        assert process.stdout.count("KL-divergence") == 5
        return np.array(Image.open(output))

    ours = run(on_ours(code), "ours")
    assert len(np.unique(ours)) > 1
    pytest.importorskip("pydensecrf.densecrf", reason="pip install pydensecrf2 (extra bench)")
    assert (ours == run(code, "theirs")).mean() >= CRF_LABEL_AGREEMENT

"""What ARCHITECTURE.md and the other pages say of the tree: who imports whom, what lies where."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDES = [ROOT / name for name in ("ARCHITECTURE.md", "CONTRIBUTING.md")]
PAGES = [
    *GUIDES,
    *(ROOT / name for name in ("README.md", "bench/README.md", "configs/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]

FACADE, DATA = "weaktr/__init__.py", "weaktr/data/__init__.py"
#: Names of the facade that anything may import.
FOR_ALL = {"__version__", "_native"}

# ---- imports ------------------------------------------------------------------------------------


def block(page: Path, kind: str) -> list[str]:
    """The lines of the code blocks of a kind (```` ```kind ````)."""
    blocks = re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [line for text in blocks for line in text.splitlines()]


def layers() -> dict[str, int]:
    """Folder or file of weaktr -> its row in ARCHITECTURE.md's table, 0 at the bottom."""
    rows = enumerate(reversed(block(ROOT / "ARCHITECTURE.md", "layers")))
    return {name: row for row, names in rows for name in names.split()}


def layer_of(file: str) -> str:
    """``weaktr/data/io.py`` -> ``data``, ``kernels/common.py`` -> ``kernels``."""
    return file.removeprefix("weaktr/").split("/")[0].removesuffix(".py")


def source_files() -> list[str]:
    files = [*(ROOT / "weaktr").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    names = {file.relative_to(ROOT).as_posix() for file in files}
    return sorted(name for name in names if not name.startswith("weaktr/kernels/"))


def file_of(module: str) -> str | None:
    """The file of a module's dotted name, relative to the root; None where it is none of ours."""
    path = module.replace(".", "/").replace("weaktr/kernels", "kernels")
    candidates = (f"{path}.py", f"{path}/__init__.py")
    return next((name for name in candidates if (ROOT / name).is_file()), None)


def imports_of(source: str) -> set[str]:
    """The files of weaktr that a source text imports, wherever in it: in functions and under
    TYPE_CHECKING too.
    """
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            names = {alias.name for alias in node.names}
            if node.module == "weaktr":
                names -= FOR_ALL
            modules |= {f"{node.module}.{name}" for name in names if node.module is not None}
    ours = {module for module in modules if module.split(".")[0] == "weaktr"}
    files = {file_of(module) or file_of(module.rpartition(".")[0]) for module in ours}
    return {file for file in files if file is not None}


def imports() -> dict[str, set[str]]:
    """File -> the files that it imports, without the facade, which imports on first use."""
    files = [file for file in source_files() if file != FACADE]
    return {file: imports_of((ROOT / file).read_text()) - {file} for file in files}


def test_every_folder_has_its_layer():
    assert layers().keys() == {layer_of(file) for file in source_files()} - {"__init__"}


def test_no_file_imports_from_its_own_row_or_from_above():
    rows = layers() | {"__init__": len(layers())}
    wrong = {
        f"{file} imports {other}"
        for file, others in imports().items()
        for other in others
        if layer_of(file) != layer_of(other) and rows[layer_of(other)] >= rows[layer_of(file)]
    }
    assert not wrong


def test_no_imports_in_a_circle():
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("source", "files"),
    [
        ("import weaktr.files", {"weaktr/files.py"}),
        ("from weaktr.data.io import read_mask", {"weaktr/data/io.py"}),
        ("from weaktr.data import masks, only", {"weaktr/data/masks.py", DATA}),
        ("from weaktr import data", {DATA}),
        ("from weaktr.kernels.tuning import bucket", {"kernels/tuning.py"}),
        ("from weaktr import __version__, load", {FACADE}),
        ("from weaktr import __version__, _native", set()),
        ("if TYPE_CHECKING:\n    from weaktr.api import Model", {"weaktr/api.py"}),
        ("def late():\n    from weaktr.stages import label", {"weaktr/stages/label.py"}),
        ("import torch\nfrom timm import layers", set()),
    ],
)  # fmt: skip
def test_imports_are_read_wherever_they_stand(source, files):
    assert imports_of(source) == files


#: What commands that compute nothing need; torch takes seconds to import.
WITHOUT_TORCH = ["data", "exchange", "recipes", "shards.query", "shards.records", "shards.verify"]


def test_what_only_reads_imports_no_torch():
    imports = ", ".join(f"weaktr.{name}" for name in WITHOUT_TORCH)
    code = (
        f"import sys, {imports}; weaktr.recipes.load_recipe('demo'); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


# ---- tensors -------------------------------------------------------------------------------------

#: What makes a tensor of torch's default type and on its default device unless it is told others;
#: those whose type is that of their whole numbers.
FLOATS, INTEGERS = {"empty", "eye", "full", "linspace", "ones", "rand", "zeros"}, {"arange"}


def untold(source: str) -> set[str]:
    """The calls in a source text that leave type or device to the program around us."""
    calls = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("torch."):
            name = ast.unparse(node.func).removeprefix("torch.")
            told = {keyword.arg for keyword in node.keywords}
            if (name in FLOATS and not {"dtype", "device"} <= told) or (
                name in INTEGERS | {"tensor"} and "device" not in told
            ):
                calls.add(ast.unparse(node))
    return calls


def test_ops_say_the_type_and_the_device_of_their_tensors():
    """A kernel that writes float32 would fill a float64 tensor with nonsense."""
    files = [file for file in source_files() if layer_of(file) in ("ops", "kernels", "pydensecrf")]
    assert len(files) > 40
    assert not {(file, call) for file in files for call in untold((ROOT / file).read_text())}
    assert untold("x = torch.zeros(3, device=d)\ny = torch.arange(3)\nz = torch.stack([x])") == {
        "torch.zeros(3, device=d)", "torch.arange(3)"
    }  # fmt: skip


# ---- paths and names in the pages ---------------------------------------------------------------

FOLDERS = "weaktr|kernels|csrc|tests|bench|configs|docs"
#: A path that begins at the root; ``<op>`` and ``*`` stand for anything.
FROM_ROOT = re.compile(rf"(?<![\w./-])(?:{FOLDERS})/[\w./<>*-]*[\w/>*]")
#: Of what stands in backticks: a file or a folder, maybe with folders before it.
FILE_NAME = r"(?:[\w<>*-]+/)*[\w<>*.-]+\.(?:py|md|hpp|cpp|cuh?|yaml|toml|txt|sh)"
FOLDER_NAME = r"(?:[\w<>*-]+/)+"
#: The compiled extension, and files that ``weaktr export`` writes.
NO_MODULES = {"weaktr._native", "weaktr.json", "weaktr.onnx"}
DOTTED = re.compile(r"weaktr(?:\.\w+)+")
#: Folders of results, which no checkout has.
RESULTS = re.compile(r"(RUN|PHOTOS|OUT)/|before_(?:refinement|crf)/")


def is_there(path: str) -> bool:
    """Whether the tree has a path, from the root or at any depth."""
    pattern = re.sub(r"<\w+>\*?", "*", path).rstrip("/")
    return any(ROOT.glob(pattern)) or any(
        any((ROOT / folder).glob(f"**/{pattern}")) for folder in FOLDERS.split("|")
    )


def in_backticks(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def paths_in(text: str) -> Iterator[str]:
    """What of a page is a path of the tree."""
    yield from FROM_ROOT.findall(text)
    for words in in_backticks(text):
        if re.fullmatch(f"{FILE_NAME}|{FOLDER_NAME}", words) and not RESULTS.match(words):
            yield words


def paths_of_tree(lines: list[str]) -> Iterator[str]:
    """The paths of a drawn tree: two spaces a level, names, then spaces and what it is for."""
    above: list[str] = []
    for line in lines:
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.match(r"((?:[\w/]+(?:/|\.\w+) {1,4})+)", line.lstrip() + " ")
        if depth > len(above) or names is None:
            continue  # the description of the line before goes on
        for name in names[1].split():
            yield "/".join([*above[:depth], name.rstrip("/")])
        above = [*above[:depth], names[1].split()[0].rstrip("/")]


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_every_path_of_the_guides_is_there(page):
    paths = {*paths_in(page.read_text())}
    assert len(paths) > 10
    assert not {path for path in paths if not is_there(path)}


def test_every_path_of_the_drawn_trees_is_there():
    paths = list(paths_of_tree(block(ROOT / "ARCHITECTURE.md", "tree")))
    assert {"weaktr/data/sources", "csrc/dense_crf/cuda", "weaktr/api.py", "kernels"} <= {*paths}
    assert not [path for path in paths if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_paths_from_the_root_and_names_of_python_are_there(page):
    text = page.read_text()
    assert not {path for path in FROM_ROOT.findall(text) if not is_there(path)}
    assert not {name for name in DOTTED.findall(text) if not is_defined(name)}


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_every_name_of_the_guides_occurs_in_the_code(page):
    names = {words for words in in_backticks(page.read_text()) if re.fullmatch(r"\w{4,}", words)}
    files = [*source_files(), "CMakeLists.txt", "tests/models/test_families.py",
             "tests/ops/test_registry.py", "tests/conftest.py"]  # fmt: skip
    code = "\n".join((ROOT / file).read_text() for file in files)
    assert len(names) > 10
    strange = {name for name in names if not re.search(rf"\b{name}\b", code)}
    assert not {name for name in strange if not (ROOT / name).exists()}


def is_defined(name: str) -> bool:
    """Whether a dotted name is a module of ours or something defined in one."""
    if name in NO_MODULES:
        return True
    module, rest = name, []
    while file_of(module) is None:
        module, _, last = module.rpartition(".")
        rest.insert(0, last)
    thing = import_module(module)
    for attribute in rest:
        thing = getattr(thing, attribute, None)
    return thing is not None


def test_what_is_not_there_is_noticed():
    text = "`weaktr/host_memory.py`, `ops/<op>/gpu.py`, `nowhere/`, `RUN/masks/`; weaktr/data/io.py"
    paths = {*paths_in(text)}
    missing = {"weaktr/host_memory.py", "ops/<op>/gpu.py", "nowhere/"}
    assert paths == {"weaktr/data/io.py", *missing}
    assert {path for path in paths if not is_there(path)} == missing
    assert is_defined("weaktr.DenseCRF.preset")
    assert not is_defined("weaktr.DenseCRF.presets") and not is_defined("weaktr.backends.pick")


def test_a_drawn_tree_is_read():
    lines = ["weaktr/", "  ops/  cli/   two", "                 more of both", "    x.py  deep"]
    assert [*paths_of_tree(lines)] == ["weaktr", "weaktr/ops", "weaktr/cli", "weaktr/ops/x.py"]

"""What a build makes of the checkout: archives, the compiled extension, and what may not happen.

Builds run the PEP 517 hooks in copies of the checkout, with a stand-in of a few lines in place of
the C++ code. One compiles the C++ code itself; its tests are `rare`, since the installation that
comes before all tests compiles it too.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import unavailable
from tests.tolerances import TOLERANCES

ROOT = Path(__file__).parents[1]
#: What belongs to a checkout but not into a build.
IGNORED = (".git", ".venv*", "runs", "build", "*.egg-info", ".*_cache", "__pycache__", "*.so")
BUILD = "from setuptools import build_meta as b; import sys; print(getattr(b, sys.argv[1])('out'))"
#: What a caller's environment may set and a build listens to.
VARIABLES = ("WEAKTR_BUILD", "WEAKTR_CUDA", "CMAKE_ARGS", "CC", "CXX", "CXXFLAGS", "CUDACXX")
NO_COMPILER = {"CXX": "no-such-compiler"}

#: What stands in csrc instead, all other files being empty. `both` is a weak symbol in the module's
#: own code and in each instruction set's, never inlined, and worth vectorising.
STAND_IN_HEADER = """
inline __attribute__((noinline)) float both(const float* x, int n) {
  float largest = 0;
  for (int i = 0; i < n; ++i) largest = x[i] * x[i] > largest ? x[i] * x[i] : largest;
  return largest;
}
namespace scalar { float run(const float*, int); }
namespace avx2 { float run(const float*, int); }
namespace avx512 { float run(const float*, int); }
"""
STAND_IN = {
    "both.hpp": STAND_IN_HEADER,
    "module.cpp": """
#include <Python.h>
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", nullptr, -1};
PyMODINIT_FUNC PyInit__native() {
  PyObject* module = PyModule_Create(&definition);
  PyModule_AddIntConstant(module, "constant", 1);
  return module;
}
""",
    "dense_crf/cpu/driver.cpp": """
#include "both.hpp"
float run(const float* x, int n) {
#if defined(__x86_64__)
  if (n > 8) return avx512::run(x, n) + avx2::run(x, n);
#endif
  return both(x, n) + scalar::run(x, n);
}
""",
    "dense_crf/cpu/isa.cpp": """
#include "both.hpp"
namespace WEAKTR_ISA { float run(const float* x, int n) { return both(x, n); } }
""",
}


def copy_checkout(target: Path) -> Path:
    return shutil.copytree(ROOT, target, symlinks=True, ignore=shutil.ignore_patterns(*IGNORED))


def put_stand_in(checkout: Path) -> None:
    """Replace what is to be compiled."""
    for source in (checkout / "csrc").rglob("*.*"):
        source.write_text("")
    for name, text in STAND_IN.items():
        (checkout / "csrc" / name).write_text(text)


def run_hook(source: Path, kind: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run one PEP 517 hook in `source`, without CUDA unless `variables` say otherwise."""
    (source / "out").mkdir(exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    return subprocess.run(
        [sys.executable, "-c", BUILD, kind],
        cwd=source,
        env=environment | {"WEAKTR_CUDA": "OFF"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def build(source: Path, kind: str, **variables: str) -> Path:
    """`run_hook`, which has to succeed; returns the archive."""
    process = run_hook(source, kind, **variables)
    assert process.returncode == 0, process.stdout + process.stderr
    return source / "out" / process.stdout.splitlines()[-1]


def extensions(wheel: Path) -> list[str]:
    """Names of the compiled files in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if name.endswith(".so")]


def run_from(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with nothing of the checkout on its path."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def output_of(*command: str | Path) -> str:
    """What a program of binutils prints."""
    if sys.platform != "linux" or shutil.which(command[0]) is None:
        pytest.skip(f"looks into ELF files with {command[0]}, which is not here")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# ---- the archives -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked sdist, built from a copy of the checkout."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build(copy_checkout(folder / "checkout"), "build_sdist")) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # since Python 3.11.4
        archive.extractall(folder)
    (unpacked,) = folder.glob("weaktr-*")
    return unpacked


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the sdist."""
    source = shutil.copytree(sdist, tmp_path_factory.mktemp("wheel") / "source")
    put_stand_in(source)
    return build(source, "build_wheel", WEAKTR_BUILD="require")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel installs."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_sdist_carries_what_the_build_needs(sdist: Path) -> None:
    assert (sdist / "CMakeLists.txt").exists()
    here, there = ROOT / "csrc", sdist / "csrc"
    assert {path.relative_to(there) for path in there.rglob("*")} == {
        path.relative_to(here) for path in here.rglob("*")
    }


def test_wheel_works_outside_the_checkout(installed: Path) -> None:
    code = (
        "import weaktr, pathlib, weaktr.recipes as r;"
        "print(pathlib.Path(weaktr.__file__).parent, *r.recipe_names())"
    )
    process = run_from(installed, "-c", code)
    assert process.returncode == 0, process.stderr
    where, *recipes = process.stdout.split()
    assert Path(where) == installed / "weaktr"
    assert set(recipes) == {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    assert (installed / "weaktr" / "py.typed").exists()


def test_kernels_are_carried_as_files(sdist: Path, installed: Path) -> None:
    """In the checkout weaktr/kernels is a link to a folder beside it."""

    def sources(folder: Path) -> set[Path]:
        return {path.relative_to(folder) for path in folder.rglob("*.py")}

    for folder in (sdist / "kernels", sdist / "weaktr" / "kernels", installed / "weaktr/kernels"):
        assert sources(folder) == sources(ROOT / "kernels")
    pytest.importorskip("triton")
    code = "from weaktr.kernels import fuse_heads, head_stats; print(fuse_heads.__file__)"
    process = run_from(installed, "-c", code)
    assert process.returncode == 0, process.stderr
    assert Path(process.stdout.strip()).parent == installed / "weaktr" / "kernels"


def test_wheel_carries_no_tests_and_both_commands(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = (n for n in names if n.endswith("entry_points.txt"))
        commands = archive.read(entry_points).decode()
    assert {name.split("/")[0] for name in names} == {"weaktr", names[-1].split("/")[0]}
    assert "weaktr = weaktr.cli:program" in commands
    assert "weaktr-train = weaktr.cli:train_program" in commands


# ---- the extension that is installed here -------------------------------------------------------


def installed_here() -> ModuleType:
    """weaktr._native of the environment that runs the tests."""
    try:
        return importlib.import_module("weaktr._native")
    except ImportError as error:
        unavailable("cpu", f"weaktr._native: {error}")


def test_extension_exports_its_entry_alone() -> None:
    """Nothing inside can be mixed up with another library's symbol of the same name."""
    extension = str(installed_here().__file__)
    symbols = output_of("nm", "-D", "--defined-only", extension).splitlines()
    assert [line.split()[-1] for line in symbols] == ["PyInit__native"]


def test_cuda_is_compiled_where_nvcc_is() -> None:
    """And neither CUDA nor torch has to be there for the extension to load."""
    native = installed_here()
    libraries = output_of("readelf", "-d", str(native.__file__))
    assert "cuda" not in libraries
    assert "torch" not in libraries
    if shutil.which("nvcc", path=os.environ["PATH"] + ":/usr/local/cuda/bin") is None:
        pytest.skip("there is no nvcc here")
    if os.environ.get("WEAKTR_CUDA") == "OFF":
        pytest.skip("WEAKTR_CUDA is OFF")
    assert native.has_cuda()


# ---- the C++ code itself, compiled from the sdist -----------------------------------------------


@pytest.fixture(scope="module")
def compiled(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel with the C++ code installs, built in a third of the time that optimising takes.

    What is looked at here does not depend on that, and more functions stay apart; the extension
    that all other tests use has it.
    """
    quick = {"CMAKE_ARGS": "-DCMAKE_BUILD_TYPE=None", "CXXFLAGS": "-O0 -DNDEBUG"}
    folder = tmp_path_factory.mktemp("compiled")
    with zipfile.ZipFile(build(sdist, "build_wheel", WEAKTR_BUILD="require", **quick)) as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.rare
def test_extension_of_the_wheel_runs_a_dense_crf(compiled: Path) -> None:
    code = (
        "import torch; from weaktr import _native; from weaktr.ops.dense_crf import dense_crf;"
        "unary = torch.tensor([[[0.0, 1.0, 2.0]], [[2.0, 1.2, 0.0]]]);"
        "q = [dense_crf(None, unary, gaussian=(1, 3), backend=name) for name in ('cpu', 'torch')];"
        "print(_native.__file__, float((q[0] - q[1]).abs().max()))"
    )
    process = run_from(compiled, "-c", code)
    assert process.returncode == 0, process.stderr
    where, error = process.stdout.split()
    assert Path(where).parent == compiled / "weaktr"
    assert float(error) <= TOLERANCES["crf_marginals"].atol


@pytest.fixture(scope="module")
def build_folder(sdist: Path, compiled: Path) -> Path:
    """Where the objects of the extension lie, one archive per instruction set."""
    if platform.machine() != "x86_64":
        pytest.skip("only x86-64 has several instruction sets")
    assert compiled.exists()
    (folder,) = sdist.glob("build/temp*/native")
    return folder


def names(kind: str, *files: Path) -> set[str]:
    """Names of the symbols that files define (``--defined-only``) or need (``-u``)."""
    lines = output_of("nm", "--extern-only", kind, *files).splitlines()
    return {line.split()[-1] for line in lines if line and not line.endswith(":")}


@pytest.mark.rare
@pytest.mark.parametrize("isa", ["avx2", "avx512", "avx512bf16"])
def test_common_code_needs_nothing_else_of_newer_instruction_sets(
    build_folder: Path, isa: str
) -> None:
    """A function of the standard library compiled for AVX-512 must not serve older processors."""
    common = [*build_folder.glob("CMakeFiles/_native.dir/csrc/**/*.o")]
    common.append(build_folder / "libweaktr_scalar.a")
    taken = names("-u", *common) & names("--defined-only", build_folder / f"libweaktr_{isa}.a")
    assert taken
    assert all(name.startswith(f"_ZN6weaktr{len(isa)}{isa}") for name in taken), taken


@pytest.mark.rare
@pytest.mark.parametrize("isa", ["avx2", "avx512", "avx512bf16"])
def test_import_runs_no_code_of_newer_instruction_sets(build_folder: Path, isa: str) -> None:
    """Initialisers of globals would run at import, on every processor."""
    assert "_GLOBAL__sub_I" not in output_of("nm", build_folder / f"libweaktr_{isa}.a")


# ---- the build itself, with a stand-in ----------------------------------------------------------


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A copy of the checkout whose csrc compiles in a second."""
    checkout = copy_checkout(tmp_path / "checkout")
    put_stand_in(checkout)
    return checkout


def constant(wheel: Path, folder: Path) -> str:
    """`constant` of the stand-in, read from a wheel that is unpacked to `folder`."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    process = run_from(folder / "weaktr", "-c", "import _native; print(_native.constant)")
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


@pytest.mark.rare
def test_repeated_build_is_fresh(stand_in: Path, tmp_path: Path) -> None:
    assert constant(build(stand_in, "build_wheel"), tmp_path / "first") == "1"
    source = stand_in / "csrc" / "module.cpp"
    source.write_text(source.read_text().replace('"constant", 1', '"constant", 2'))
    assert constant(build(stand_in, "build_wheel"), tmp_path / "second") == "2"


def test_code_that_does_not_compile_is_an_error(stand_in: Path) -> None:
    with (stand_in / "csrc" / "module.cpp").open("a") as source:
        source.write("this is not C++;\n")
    for mode in ("auto", "require"):
        process = run_hook(stand_in, "build_wheel", WEAKTR_BUILD=mode)
        assert process.returncode != 0
        assert "weaktr._native does not compile" in process.stderr
        assert "module.cpp" in process.stdout + process.stderr
    assert extensions(build(stand_in, "build_wheel", WEAKTR_BUILD="skip")) == []


@pytest.mark.rare
def test_without_compiler_auto_warns_and_leaves_nothing_stale(stand_in: Path) -> None:
    assert len(extensions(build(stand_in, "build_wheel"))) == 1
    process = run_hook(stand_in, "build_wheel", **NO_COMPILER)
    assert process.returncode == 0, process.stderr
    assert "weaktr._native cannot be built here" in process.stderr
    assert extensions(stand_in / "out" / process.stdout.splitlines()[-1]) == []


@pytest.mark.parametrize(
    "variables",
    [
        {"WEAKTR_BUILD": "require"} | NO_COMPILER,
        {"WEAKTR_CUDA": "ON", "CUDACXX": "no-such-nvcc"},
    ],
    ids=["require", "cuda"],
)
def test_what_is_asked_for_and_cannot_be_built_is_an_error(
    stand_in: Path, variables: dict[str, str]
) -> None:
    process = run_hook(stand_in, "build_wheel", **variables)
    assert process.returncode != 0
    assert "weaktr._native cannot be built here" in process.stderr


@pytest.mark.rare
def test_skip_makes_a_wheel_for_every_platform(stand_in: Path) -> None:
    wheel = build(stand_in, "build_wheel", WEAKTR_BUILD="skip")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert extensions(wheel) == []


def test_unknown_mode_is_refused(stand_in: Path) -> None:
    process = run_hook(stand_in, "build_wheel", WEAKTR_BUILD="sometimes")
    assert process.returncode != 0
    assert "WEAKTR_BUILD: expected one of auto, require, skip, got 'sometimes'" in process.stderr


def test_editable_install_puts_the_extension_beside_the_package(stand_in: Path) -> None:
    build(stand_in, "build_editable")
    assert len(list(stand_in.glob("weaktr/_native*.so"))) == 1
    assert extensions(build(stand_in, "build_wheel", WEAKTR_BUILD="skip")) == []
    build(stand_in, "build_editable", WEAKTR_BUILD="skip")
    assert list(stand_in.glob("weaktr/_native*.so")) == []


@pytest.mark.skipif(platform.machine() != "x86_64", reason="one instruction set but on x86-64")
def test_newer_instruction_sets_stay_out_of_common_code(stand_in: Path, tmp_path: Path) -> None:
    """Of a function that all objects define, the linker keeps the one of the oldest processor."""
    with zipfile.ZipFile(build(stand_in, "build_wheel")) as archive:
        archive.extractall(tmp_path / "wheel")
    (extension,) = tmp_path.glob("wheel/weaktr/_native*.so")
    (newest,) = stand_in.glob("build/temp*/native/libweaktr_avx512.a")
    disassemble = ("objdump", "-d", "--no-show-raw-insn", "--disassemble=_Z4bothPKfi")
    assert "\tvmul" in output_of(*disassemble, newest)
    assert "\tmulss" in output_of(*disassemble, extension)
    assert "\tvmul" not in output_of(*disassemble, extension)

"""The CUDA code of the dense CRF on the CPU, thread by thread: slow, for where there is no GPU.

`load` compiles it on first use into an extension module of its own with one function,
``dense_crf_emulated(problems, iterations, seed=0)``.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from functools import cache
from pathlib import Path
from types import ModuleType

from tests.native import compiler

NAME = "weaktr_emulation"
FOLDER = Path(__file__).parent
#: -O1: less time to compile than -O2 and -O3, the same results.
FLAGS = ("-O1", "-fPIC", "-shared", "-fvisibility=hidden")


def problem() -> str | None:
    """Why it cannot be compiled here; None: it can."""
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is not installed (extra test)"
    return compiler.problem()


@cache
def load() -> ModuleType:
    """The extension module, compiled where that has not been done before.

    Raises:
        ImportError: pybind11 is not installed.
        subprocess.CalledProcessError: it does not compile; the compiler has said why.
    """
    import pybind11

    includes = (pybind11.get_include(), sysconfig.get_path("include"))
    later = ("-undefined", "dynamic_lookup") if sys.platform == "darwin" else ()
    sources = [
        compiler.Source(FOLDER / "binding.cpp", ("-O0",)),  # parses what it is called with
        compiler.Source(FOLDER / "emulation.cpp"),
    ]
    flags = (*FLAGS, *later, *(f"-I{folder}" for folder in includes))
    library = compiler.build(f"{NAME}{sysconfig.get_config_var('EXT_SUFFIX')}", sources, flags)
    spec = importlib.util.spec_from_file_location(NAME, library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

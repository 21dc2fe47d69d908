"""Builds weaktr._native with CMake; the metadata lives in pyproject.toml.

Environment variables:
    WEAKTR_BUILD: ``auto`` (the default) builds the extension, or leaves it out with a warning where
        CMake cannot configure (no compiler, no CMake); ``require`` makes that an error; ``skip``
        does not try. Code that does not compile is an error in ``auto`` and ``require``.
    WEAKTR_CUDA: ``AUTO`` (the default) compiles the CUDA code where nvcc is found, ``ON`` insists
        on it, ``OFF`` leaves it out.
    WEAKTR_CUDA_ARCHITECTURES: see CMakeLists.txt.
    CMAKE_ARGS: further arguments of CMake, for instance ``-DCMAKE_BUILD_TYPE=Debug``.
    CMAKE_BUILD_PARALLEL_LEVEL: how many compilers run at once, 2 by default.
"""

import importlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, PlatformError

ROOT = Path(__file__).resolve().parent
CMAKE_OPTIONS = ("WEAKTR_CUDA", "WEAKTR_CUDA_ARCHITECTURES")


def choice(variable: str, *allowed: str) -> str:
    """An environment variable that is one of `allowed`; the first where it is not set.

    Raises:
        PlatformError: it has another value.
    """
    value = os.environ.get(variable) or allowed[0]
    if value not in allowed:
        raise PlatformError(f"{variable}: expected one of {', '.join(allowed)}, got {value!r}")
    return value


def program(package: str, folder: str) -> str | None:
    """A program that a PyPI package of its name may bring; else the one on PATH, else None.

    Args:
        package: name of the package and of the program.
        folder: the package's attribute that says where the program lies.
    """
    try:
        path = Path(getattr(importlib.import_module(package), folder), package)
    except (ImportError, AttributeError):
        return shutil.which(package)
    return str(path) if path.exists() else shutil.which(package)


class BuildNative(build_ext):
    """Compiles weaktr._native with CMake, always from scratch."""

    def run(self) -> None:
        self.delete_old_outputs()
        if self.extensions and not self.configure():
            self.extensions = []
        super().run()

    def delete_old_outputs(self) -> None:
        """Nothing of an earlier build may slip into this one, least of all when it fails."""
        shutil.rmtree(self.build_folder, ignore_errors=True)
        folders = [Path(self.build_lib)] + ([ROOT] if self.inplace else [])
        for folder in folders:
            for old in folder.glob("weaktr/_native.*so"):
                old.unlink()

    @property
    def build_folder(self) -> Path:
        return Path(self.build_temp).resolve() / "native"

    def configure(self) -> bool:
        """Run CMake's first step; False: there is no extension to build here, as was warned.

        Raises:
            PlatformError: it failed where the extension, or CUDA, was asked for.
        """
        wanted = choice("WEAKTR_CUDA", "AUTO", "ON", "OFF") == "ON" or (
            choice("WEAKTR_BUILD", "auto", "require") == "require"
        )
        problem = self.run_cmake(self.configure_arguments())
        if problem is None:
            return True
        message = (
            f"weaktr._native cannot be built here: {problem}.\n"
            "It needs a C++17 compiler (GCC or Clang), Python's headers, CMake >= 3.24, pybind11."
        )
        if wanted:
            raise PlatformError(f"{message}\nWEAKTR_BUILD=auto installs weaktr without it.")
        self.warn(f"{message}\nInstalling without it: the plain-PyTorch code is used, slower.")
        return False

    def configure_arguments(self) -> list[str]:
        output = Path(self.build_lib).resolve() / "weaktr"
        options = {
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": str(output),
            "Python_EXECUTABLE": sys.executable,
        } | {name: os.environ[name] for name in CMAKE_OPTIONS if os.environ.get(name)}
        ninja = program("ninja", "BIN_DIR")
        if ninja:
            options["CMAKE_MAKE_PROGRAM"] = ninja
        return [
            "--fresh",
            *("-S", str(ROOT), "-B", str(self.build_folder)),
            *(["-G", "Ninja"] if ninja else []),
            *(f"-D{name}={value}" for name, value in options.items()),
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]

    def build_extension(self, ext: Extension) -> None:
        problem = self.run_cmake(["--build", str(self.build_folder)])
        if problem is not None:
            raise CompileError(f"{ext.name} does not compile: {problem}; see above.")

    def run_cmake(self, arguments: list[str]) -> str | None:
        """Run CMake with its output shown; returns what went wrong, or None."""
        cmake = program("cmake", "CMAKE_BIN_DIR")
        if cmake is None:
            return "CMake is not installed"
        environment = {"CMAKE_BUILD_PARALLEL_LEVEL": "2"} | os.environ
        process = subprocess.run([cmake, *arguments], env=environment, check=False)
        return None if process.returncode == 0 else f"CMake failed with status {process.returncode}"


class Build(build):
    """Runs build_ext even where there is no extension: it deletes those of earlier builds."""

    sub_commands: ClassVar = [
        *(entry for entry in build.sub_commands if entry[0] != "build_ext"),
        ("build_ext", None),
    ]


skip = choice("WEAKTR_BUILD", "auto", "require", "skip") == "skip"
setup(
    ext_modules=[] if skip else [Extension("weaktr._native", sources=[])],
    cmdclass={"build": Build, "build_ext": BuildNative},
)

"""The compiled extension (csrc/bindings.cpp). Its wrappers are in `weaktr.native`."""

from collections.abc import Callable
from typing import Any

def dense_crf_cpu(
    problems: list[dict[str, Any]],
    iterations: int,
    num_threads: int,
    isa: str = "auto",
    output: str = "marginals",
) -> list[Any]: ...
def isa_levels() -> list[str]: ...
def has_cuda() -> bool: ...
def dense_crf_cuda(
    problems: list[dict[str, Any]],
    iterations: int,
    stream: int,
    allocate: Callable[[int], int],
    deterministic: bool,
) -> None: ...
def dense_crf_cuda_bytes(problems: list[dict[str, Any]], deterministic: bool) -> int: ...
def dense_crf_emulated(
    problems: list[dict[str, Any]], iterations: int, deterministic: bool, seed: int = 0
) -> list[Any]: ...
def release_memory() -> None: ...

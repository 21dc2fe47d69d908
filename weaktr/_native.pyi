"""The compiled extension (csrc/bindings.cpp). Its wrappers are in `weaktr.native`."""

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
def release_memory() -> None: ...

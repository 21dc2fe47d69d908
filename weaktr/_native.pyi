"""The compiled extension (csrc/module.cpp); cpu.py and cuda.py of the ops wrap it."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

def dense_crf_cpu(
    problems: list[dict[str, Any]],
    iterations: int,
    num_threads: int,
    isa: str = "auto",
    output: str = "marginals",
) -> list[Any]: ...
def fuse_heads_cpu(
    q: NDArray[np.float32],
    k: NDArray[np.float32],
    lse: NDArray[np.float32],
    weights: NDArray[np.float32],
    values: NDArray[np.float32],
    scale: float,
    num_threads: int,
    isa: str = "auto",
) -> NDArray[np.float32]: ...
def fuse_heads_cpu_bfloat16(
    q: NDArray[np.uint16],
    k: NDArray[np.uint16],
    lse: NDArray[np.float32],
    weights: NDArray[np.float32],
    values: NDArray[np.float32],
    scale: float,
    num_threads: int,
) -> NDArray[np.float32]: ...
def attention_cpu(
    q: NDArray[np.float32],
    k: NDArray[np.float32],
    v: NDArray[np.float32],
    scale: float,
    classes: int,
    patches: int,
    num_threads: int,
    isa: str = "auto",
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]: ...
def attention_cpu_bfloat16(
    q: NDArray[np.uint16],
    k: NDArray[np.uint16],
    v: NDArray[np.uint16],
    scale: float,
    classes: int,
    patches: int,
    num_threads: int,
) -> tuple[NDArray[np.uint16], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]: ...
def use_openmp(gomp_parallel: int) -> None: ...
def has_bfloat16() -> bool: ...
def isa_levels() -> list[str]: ...
def has_cuda() -> bool: ...
def dense_crf_cuda(
    problems: list[dict[str, Any]],
    iterations: int,
    stream: int,
    allocate: Callable[[int], int],
) -> None: ...
def dense_crf_cuda_bytes(problems: list[dict[str, Any]]) -> list[int]: ...
def release_memory() -> None: ...

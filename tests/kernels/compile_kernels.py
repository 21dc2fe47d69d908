"""Compiles kernels for a GPU that need not be here: every launch is prepared, none happens.

A program, because Triton decides at import whether it interprets.

    python -m tests.kernels.compile_kernels          # each kernel with one candidate, in 20 s
    python -m tests.kernels.compile_kernels --all    # maps: each candidate, d = 16, 64, 80, 128
    python -m tests.kernels.compile_kernels --all 64

Both print what the compiler made of the maps' kernels, and fail where a candidate needs more shared
memory than a multiprocessor of Hopper has, spills, leaves the tensor cores unused, or was to keep
loads in flight and does not.
"""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

#: Shared memory of a program on sm_90, bytes.
MOST_SHARED = 227 * 1024
#: Least rows of a block that a group of four warps multiplies at once.
ROWS_OF_A_WARP_GROUP = 64
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

Config = Mapping[str, int]


class AbsentGPU:
    """What `JITFunction.warmup` asks of a driver."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


class Kernel(NamedTuple):
    """What the compiler made of one launch."""

    name: str
    registers: int
    stack: int  #: bytes of a thread: what was spilled
    shared: int  #: bytes of a program
    code: str  #: as it runs on the GPU

    def __str__(self) -> str:
        counts = " ".join(f"{word} {self.count(word)}" for word in ("HGMMA", "HMMA", "LDGSTS"))
        size = len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", self.code, re.MULTILINE))
        return (
            f"{self.name:17} registers {self.registers:3} stack {self.stack:4} "
            f"shared {self.shared:6} {counts} instructions {size}"
        )

    def count(self, word: str) -> int:
        """How many instructions are of a kind."""
        return len(re.findall(rf"\b{word}\b", self.code))

    def faults(self, config: Config) -> Iterator[str]:
        """What a candidate must not be."""
        if self.shared > MOST_SHARED:
            yield "more shared memory than there is"
        if self.stack:
            yield "spills"
        wide = config["BLOCK_I"] >= ROWS_OF_A_WARP_GROUP
        if not self.count("HGMMA" if wide else "HMMA"):
            yield "tensor cores unused"
        if config["num_stages"] > 1 and not self.count("LDGSTS"):
            yield "no load in flight"


#: A launch as the compiler left it: the kernel's name, what it was compiled to.
Compiled = tuple[str, Any]


def compile_only(compiled: list[Compiled]) -> None:
    """Make launches end after compilation, and remember what was compiled.

    It is not returned, so that `weaktr.kernels.launching` will not launch it.
    """
    torch.cuda.is_available = lambda: True
    triton.runtime.driver.set_active(AbsentGPU())
    run = JITFunction.run

    def prepare(self: JITFunction, *args: Any, **kwargs: Any) -> None:
        kernel = run(self, *args, **{**kwargs, "warmup": True})
        compiled.append((self.fn.__name__, kernel))

    JITFunction.run = functools.wraps(run)(prepare)


def examined(name: str, kernel: Any) -> Kernel:
    """Registers, stack and code, by the tools that come with Triton."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = output_of("cuobjdump", "--dump-resource-usage", file.name)
        code = output_of("nvdisasm", "--print-code", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    return Kernel(name, int(found[1]), int(found[2]), kernel.metadata.shared, code)


def output_of(tool: str, *arguments: str) -> str:
    """Of one of the tools."""
    command = [str(TOOLS / tool), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


# ---- kernels on attention maps ------------------------------------------------------------------

Launch = tuple[str, Sequence[Config], Callable[[], object]]


def launches(dtype: torch.dtype, dim: int, packed: bool) -> Iterator[Launch]:
    """Every variant of the kernels: its name, its candidates, a launch."""
    from weaktr.kernels import fuse_heads, head_stats

    q, k = torch.zeros(40, 2, 1, 2, dim, dtype=dtype).permute(1, 2, 3, 0, 4)
    lse, weights, values = torch.zeros(1, 2, 40), torch.zeros(1, 2), torch.zeros(1, 37, 5)
    sizes = ([40], [37]) if packed else (None, None)
    given = fuse_heads.FuseHeadsInputs(q, k, lse, weights, values, 0.1, *sizes)
    rest = (weights, values, 0.1, fuse_heads._layout(given))
    chosen = torch.zeros(1, 2, dtype=torch.int64) if packed else None

    def stats(means: bool, rows: torch.Tensor | None) -> object:
        return head_stats.attention_stats(q, k, lse, 3, 37, 0.1, means, *sizes, rows)

    yield "lse", head_stats.stats_configs(q), lambda: head_stats.attention_lse(q, k, 0.1, sizes[0])
    yield "rows", head_stats.ROWS_CONFIGS, lambda: stats(False, chosen)
    yield "means", head_stats.stats_configs(q), lambda: stats(True, None)
    for transposed in (False, True):
        yield (
            f"fused map{' transposed' * transposed}",
            fuse_heads.spread_configs(q, transposed),
            functools.partial(fuse_heads._spread, q, k, lse, *rest, transposed=transposed),
        )
    yield (
        "weights",
        fuse_heads.weights_configs(q),
        lambda: fuse_heads._weights_gradient(values, q, k, lse, values, *rest[2:]),
    )


def compile_attention(dtype: torch.dtype) -> None:
    """The variants of `weaktr.kernels.attention` with one candidate."""
    from weaktr.kernels import attention
    from weaktr.ops.attention import packing_of

    q, k, v = torch.zeros(40, 3, 1, 2, 64, dtype=dtype).permute(1, 2, 3, 0, 4)
    config = attention.configs()[1]
    attention.best_config = lambda *_: config
    for statistics in ((3, 37), (0, 0)):
        attention.in_one_launch(q, k, v, *statistics, config)
    attention.packed_in_one_launch(q, k, v, packing_of([10, 30], q.device))


def force(config: Config) -> None:
    """Every launch takes this configuration."""
    from weaktr.kernels import fuse_heads, head_stats

    for module in (fuse_heads, head_stats):
        module.best_config = lambda *_: config


def compile_maps(
    compiled: list[Compiled], dtype: torch.dtype, dim: int, packed: bool, every: bool
) -> int:
    """Prints what was made of each candidate, of each second one unless `every`: faults found."""
    found = 0
    for name, configs, launch in launches(dtype, dim, packed):
        for config in configs if every else configs[1:2] or configs:
            force(config)
            launch()
            kernel = examined(*compiled[-1])
            faults = list(kernel.faults(config))
            found += len(faults)
            title = f"{name}{' packed' * packed} {str(dtype)[6:]} d {dim}"
            sizes = "-".join(map(str, config.values()))
            print(f"{title:41} {sizes:15} {kernel} {', '.join(faults)}", flush=True)
    return found


# ---- the loss of stage 2 ------------------------------------------------------------------------


def loss_kernels(dtype: torch.dtype, num_labels: int) -> None:
    """The kernels of the stage-2 loss, with their first configuration."""
    from weaktr.kernels.clipped_cross_entropy import launches as loss

    for name in ("FORWARD_CONFIGS", "BACKWARD_CONFIGS"):
        setattr(loss, name, getattr(loss, name)[:1])
    logits = torch.zeros(1, num_labels, 3, 3, dtype=dtype)
    labels = torch.zeros(1, 48, 48, dtype=torch.uint8)
    scaled = loss.scale_logits(logits)
    losses, lse = loss.pixel_losses(scaled, labels, num_labels, 255)
    loss.clip_losses(losses, lse, 12, 1.2, 1)
    loss.logits_gradient(torch.ones(()), logits, labels, scaled, lse)


def main(every: bool, dims: Sequence[int]) -> int:
    """The exit status: 1 where a candidate is at fault."""
    compiled: list[Compiled] = []
    compile_only(compiled)
    # packed or not and the dtype are branches apart: two of the four cases have all of them
    pairs = [(torch.bfloat16, False), (torch.float32, True)]
    pairs += [(torch.float32, False), (torch.bfloat16, True)] if every else []
    found = sum(
        compile_maps(compiled, dtype, dim, packed, every)
        for (dtype, packed), dim in product(pairs, dims)
    )
    if not every:
        for dtype, num_labels in ((torch.bfloat16, 91), (torch.float32, 21)):
            compile_attention(dtype)
            loss_kernels(dtype, num_labels)
    print(*sorted({name for name, _ in compiled}))
    return int(found > 0)


if __name__ == "__main__":
    every = "--all" in sys.argv[1:]
    dims = [int(word) for word in sys.argv[1:] if word.isdecimal()]
    sys.exit(main(every, dims or ((16, 64, 80, 128) if every else (64,))))

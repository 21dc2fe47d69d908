"""Launch configurations of the kernels: measured once per machine, then read from disk.

A table is one JSON file per device, Triton version, file of kernels and source of this package, in
the user's cache folder. It maps a key (sizes, dtypes) to the configuration that was fastest.
Nothing is measured under Triton's interpreter, while a CUDA graph is captured, or with
``WEAKTR_TUNE=0`` when kernels of a file are first launched: the first candidate is taken then.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton

from weaktr.files import read_json_object, write_bytes
from weaktr.kernels import INTERPRETED

log = logging.getLogger("weaktr")

#: Keyword arguments of a launch: block sizes, ``num_warps``, ``num_stages``.
Config = Mapping[str, int]

FOLDER_VARIABLE = "WEAKTR_CACHE"
TUNE_VARIABLE = "WEAKTR_TUNE"
#: Launches of a candidate that are timed together, how often, and clock cycles that the device
#: waits before, about 4 ms. The host, which a launch takes longer than a short kernel the device,
#: enqueues them meanwhile.
LAUNCHES, ROUNDS, HEAD_START = 10, 3, 8_000_000


def best_config(
    kernel: Any,
    key: tuple[int | str, ...],
    configs: Sequence[Config],
    launch: Callable[[Config], object],
    device: torch.device,
) -> Config:
    """The fastest of `configs` for this kernel and key, measured at most once per machine.

    Args:
        kernel: the function behind ``@triton.jit``, as the decorator returns it.
        key: what the choice depends on; round sizes (`bucket`), or every new size is measured.
        configs: candidates. The first one has to run everywhere.
        launch: runs the kernel with a configuration; may be called many times, so it must write
            its results and not add to them.
        device: where it runs, the current one.
    """
    if INTERPRETED or len(configs) == 1:
        return configs[0]
    function = kernel.fn
    table = _table(function.__code__.co_filename, device)
    if table is None:
        return configs[0]
    key = (function.__name__, *key)
    best = table.get(key, configs)
    if best is None:
        if torch.cuda.is_current_stream_capturing():
            return configs[0]
        best, is_certain = fastest(
            configs, lambda config: device_milliseconds(lambda: launch(config))
        )
        table.put(key, best, is_lasting=is_certain)
    return best


def bucket(size: int) -> int:
    """`size` rounded up to a power of four, so that images of many sizes are measured once."""
    return 4 ** ((max(size - 1, 0).bit_length() + 1) // 2)


#: What a candidate fails with that needs more than the device has, or that its compiler refuses.
REFUSALS = (triton.runtime.errors.OutOfResources, triton.runtime.errors.PTXASError)


def fastest(
    configs: Sequence[Config], milliseconds: Callable[[Config], float]
) -> tuple[Config, bool]:
    """The candidate with the least time, those left out that cannot run here.

    Returns:
        It, and whether it is so at any time: False where a candidate lacked only the memory.

    Raises:
        OutOfMemoryError: no candidate had enough memory.
    """
    times: list[tuple[float, int]] = []
    shortage: torch.OutOfMemoryError | None = None
    for index, config in enumerate(configs):
        try:
            times.append((milliseconds(config), index))
        except REFUSALS as error:
            log.debug("%s cannot run on this GPU: %s", dict(config), error)
        except torch.OutOfMemoryError as error:
            shortage = error.with_traceback(None)  # which would keep what was allocated
    if not times and shortage is not None:
        raise shortage
    return configs[min(times)[1]] if times else configs[0], shortage is None


class ConfigTable:
    """Key -> configuration, kept in memory and in one JSON file.

    Args:
        path: of the file. One that cannot be read counts as empty; one that cannot be written is
            reported once, and configurations then last as long as the process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.configs: dict[str, Config] = self._read()
        self._asked_for: dict[tuple[int | str, ...], Config] = {}  # without joining keys again

    def get(self, key: tuple[int | str, ...], configs: Sequence[Config]) -> Config | None:
        """The stored configuration, if it is still among the candidates."""
        config = self._asked_for.get(key)
        if config is None:
            stored = self.configs.get(_joined(key))
            config = next((one for one in configs if one == stored), None)
            if config is None:
                return None
            self._asked_for[key] = config
        return config if config in configs else None

    def put(self, key: tuple[int | str, ...], config: Config, *, is_lasting: bool = True) -> None:
        """Remember; in the file, too, if `is_lasting`, where what others have stored stays."""
        self._asked_for[key] = config
        if not is_lasting:
            return
        self.configs = {**self._read(), **self.configs, _joined(key): dict(config)}
        try:
            text = json.dumps(self.configs, indent=1, sort_keys=True)
            write_bytes(self.path, text.encode(), durable=False)
        except OSError as error:
            _warn_once(f"kernel configurations cannot be kept in {self.path}: {error}")

    def _read(self) -> dict[str, Config]:
        try:
            return read_json_object(self.path)
        except (OSError, ValueError):  # none yet, or damaged: measured again and overwritten
            return {}


def cache_folder() -> Path:
    """``$WEAKTR_CACHE``, else ``weaktr`` in the user's cache folder."""
    own = os.environ.get(FOLDER_VARIABLE)
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weaktr"


def table_path(source: Path, device_name: str) -> Path:
    """File of the configurations of the kernels in the file `source` on a device.

    It holds for the kernels as they are: the files of this package, on which they may depend.
    """
    digest = hashlib.sha256(source.read_bytes())
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    version = digest.hexdigest()[:12]
    device = re.sub(r"\W+", "-", device_name)
    name = f"{source.stem}-{device}-triton{triton.__version__}-{version}.json"
    return cache_folder() / "triton" / name


@cache
def _table(source: str, device: torch.device) -> ConfigTable | None:
    """Of the kernels in a file; None where nothing is to be measured."""
    if os.environ.get(TUNE_VARIABLE) == "0":
        return None
    return ConfigTable(table_path(Path(source), torch.cuda.get_device_name(device)))


@cache
def _warn_once(message: str) -> None:
    log.warning(message)


def _joined(key: tuple[int | str, ...]) -> str:
    return " ".join(map(str, key))


def device_milliseconds(run: Callable[[], object]) -> float:
    """Of the device for one launch, however long the host needs for it: the fastest round."""
    run()  # compiles
    return min(_of_round(run) for _ in range(ROUNDS))


def _of_round(run: Callable[[], object]) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(HEAD_START)
    start.record()
    for _ in range(LAUNCHES):
        run()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / LAUNCHES

"""What a frozen encoder gives for photographs, computed once and kept.

samples ──▶ key ──▶ cache: memory, files ──▶ arrays
                         │ missing: readers ──▶ encoder ──▶ cache
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from weaktr.contents import CONTENTS, Contents, digest_of
from weaktr.data import DataError, Problem, Sample
from weaktr.data.array_cache import ArrayCache, Arrays
from weaktr.data.parallel import ordered_map
from weaktr.inference.pipeline import Parts, Sized, limits_for, run_pipeline
from weaktr.inference.transfer import Download
from weaktr.progress import Meter

#: Photographs that are computed and handed out together, on a CPU and on a GPU, which waits between
#: them; and on a GPU those that are only kept.
CHUNK, GPU_CHUNK, GPU_KEPT = 64, 128, 1024

V = TypeVar("V")
Seen_contra = TypeVar("Seen_contra", contravariant=True)
Read = TypeVar("Read", bound=Sized)


class Encoder(Protocol[Seen_contra, Read]):
    """A frozen model: a photograph, seen in a view, -> arrays.

    A view is a tuple of plain values that say what the encoder sees: size, crop, flip, ...
    """

    device: torch.device

    @property
    def advice(self) -> str:
        """What is added to the message that values are NaN or infinite: "; try ..."."""
        ...

    @property
    def identity(self) -> str:
        """A text that is another one wherever weights or settings give other results."""
        ...

    def read(self, sample: Sample, view: Seen_contra) -> Read:
        """Read a photograph; called in several threads.

        Raises:
            DataError: it cannot be read.
        """
        ...

    def fits(self, batch: Sequence[Read], further: Read) -> bool:
        """Whether a further photograph may join a batch."""
        ...

    def encode(self, batch: Sequence[Read]) -> list[dict[str, Tensor]]:
        """What is to be kept of each photograph, on the encoder's device, by name."""
        ...


class _Keyed(NamedTuple, Generic[Read]):
    """A photograph that was read, and the key of its results."""

    key: str
    read: Read

    @property
    def nbytes(self) -> int:
        return self.read.nbytes


class _Encoded(NamedTuple):
    """The results of one photograph on their way from the device, in a copy with its neighbours."""

    key: str
    names: tuple[str, ...]
    download: Download
    first: int

    @property
    def nbytes(self) -> int:
        return self.download.nbytes_of(self.first, len(self.names))

    def arrays(self) -> dict[str, np.ndarray]:
        """In memory of their own; waits until they are there."""
        own = self.download.arrays()[self.first : self.first + len(self.names)]
        return {name: array.copy() for name, array in zip(self.names, own, strict=True)}


class EncodedPhotographs(Generic[V, Read]):
    """Results of an encoder, by a cache. A pass that was interrupted goes on where it stopped.

    An entry belongs to the content of the photograph, its EXIF setting, the encoder's identity and
    the view.

    Args:
        encoder: see `Encoder`.
        cache: see `ArrayCache`.
        contents: what is known of files already.
        title: of the work, for the progress.
        queue_mb: MiB of photographs that may wait for the encoder, and of results for the files.
    """

    def __init__(
        self,
        encoder: Encoder[V, Read],
        cache: ArrayCache,
        contents: Contents | None = None,
        *,
        title: str = "features",
        queue_mb: int = 128,
    ) -> None:
        self.encoder, self.cache, self.title, self.queue_mb = encoder, cache, title, queue_mb
        folder = cache.folder
        self.contents = contents or Contents(None if folder is None else folder / CONTENTS)
        #: of photographs that could not be read or do not fit the memory, by their names
        self.left_out: dict[str, Problem] = {}
        self._computing = threading.Lock()

    def arrays_of(
        self, samples: Sequence[Sample], view_of: Callable[[Sample], V]
    ) -> Iterator[tuple[Sample, Arrays]]:
        """The arrays of every sample in order, those that are missing computed on the way.

        Photographs that cannot be read are left out, and noted in `left_out`.
        """
        keys = self._keys(samples, view_of)
        missing = sum(key is not None and key not in self.cache for key in keys.values())
        with ExitStack() as stack:
            meter = None
            if missing:
                done = len(samples) - missing
                meter = stack.enter_context(Meter(self.title, len(samples), done=done))
            for chunk in self._chunks(samples, GPU_CHUNK):
                values = self._values(chunk, keys, view_of, meter)
                for sample in chunk:
                    value = values.pop(sample.name, None)
                    if isinstance(value, Problem):
                        self.left_out[sample.name] = value
                    elif value is not None:
                        self.left_out.pop(sample.name, None)
                        yield sample, value
        self.contents.save()

    def fill(self, samples: Sequence[Sample], view_of: Callable[[Sample], V]) -> None:
        """Compute what the cache lacks of samples, until it takes no more.

        Photographs that cannot be read are passed over, and a damaged file counts as there.
        """
        keys = self._keys(samples, view_of)
        missing = [
            s for s in samples if (key := keys[s.name]) is not None and key not in self.cache
        ]
        if not missing:
            return
        with Meter(self.title, len(missing)) as meter:
            for chunk in self._chunks(missing, GPU_KEPT):
                if self.cache.is_full:
                    break
                own = {sample.name: key for sample in chunk if (key := keys[sample.name])}
                self._compute(chunk, own, view_of, meter, is_kept_only=True)
        self.contents.save()

    def arrays(self, samples: Sequence[Sample], view_of: Callable[[Sample], V]) -> list[Arrays]:
        """The arrays of a few samples, those that are missing computed together; for threads, too.

        Raises:
            DataError: a photograph cannot be read, or does not fit the memory.
        """
        keys = {sample.name: self.key(sample, view_of(sample)) for sample in samples}
        values = self._values(samples, keys, view_of)
        problems = [value for value in values.values() if isinstance(value, Problem)]
        if problems:
            raise DataError(problems)
        return [value for s in samples if not isinstance(value := values[s.name], Problem)]

    def find(self, sample: Sample, view: V) -> Arrays | None:
        """The arrays of a sample if the cache has them; for threads, too.

        Raises:
            DataError: the photograph cannot be read.
        """
        return self.cache.get(self.key(sample, view))

    def key(self, sample: Sample, view: V) -> str:
        """Under which the cache has the arrays of a sample.

        Raises:
            DataError: the photograph cannot be read.
        """
        try:
            content = self.contents.digest(sample.image)
        except FileNotFoundError as error:
            raise DataError(Problem(str(sample.image), sample.source, "file is missing")) from error
        except (OSError, ValueError) as error:
            message = str(error).removeprefix(f"{sample.image}: ")
            raise DataError(Problem(str(sample.image), sample.source, message)) from error
        return digest_of([(self.encoder.identity, view, sample.exif, content)])

    def _try_key(self, view_of: Callable[[Sample], V], sample: Sample) -> str | None:
        """The key, or None and a note in `left_out`."""
        try:
            return self.key(sample, view_of(sample))
        except DataError as error:
            self.left_out[sample.name] = error.problems[0]
            return None

    def _keys(
        self, samples: Sequence[Sample], view_of: Callable[[Sample], V]
    ) -> dict[str, str | None]:
        """The names of samples -> `_try_key`."""
        find = partial(self._try_key, view_of)
        return dict(zip((s.name for s in samples), ordered_map(find, samples), strict=True))

    def _chunks(self, samples: Sequence[Sample], on_gpu: int) -> Iterator[Sequence[Sample]]:
        size = CHUNK if self.encoder.device.type == "cpu" else on_gpu
        return (samples[start : start + size] for start in range(0, len(samples), size))

    def _values(
        self,
        samples: Sequence[Sample],
        keys: Mapping[str, str | None],
        view_of: Callable[[Sample], V],
        meter: Meter | None = None,
    ) -> dict[str, Arrays | Problem]:
        """The arrays of samples that have a key, by name; a problem for one that has none."""
        own = {sample.name: key for sample in samples if (key := keys[sample.name]) is not None}
        values: dict[str, Arrays | Problem] = {}
        in_files = {name: key for name, key in own.items() if not self.cache.is_in_memory(key)}
        read = dict(zip(in_files, ordered_map(self.cache.get, in_files.values()), strict=True))
        for name, key in own.items():
            arrays = read[name] if name in read else self.cache.get(key)
            if arrays is not None:
                values[name] = arrays
        todo = [sample for sample in samples if sample.name in own and sample.name not in values]
        if todo:
            with self._computing:
                values |= self._compute(todo, own, view_of, meter)
        return values

    def _compute(
        self,
        samples: Sequence[Sample],
        keys: Mapping[str, str],
        view_of: Callable[[Sample], V],
        meter: Meter | None = None,
        *,
        is_kept_only: bool = False,
    ) -> dict[str, Arrays | Problem]:
        """Compute and keep the arrays of samples; a problem for one that cannot be.

        With `is_kept_only` they are given out as none, so that they take no memory beside the
        cache's.

        Raises:
            PipelineError: see `run_pipeline`.
        """
        results: dict[str, Arrays | Problem] = {}

        def read(sample: Sample) -> _Keyed[Read]:
            key, view = keys[sample.name], view_of(sample)
            value = self.encoder.read(sample, view)
            if self.key(sample, view) != key:
                message = "changed while it was read"
                raise DataError(Problem(str(sample.image), sample.source, message))
            return _Keyed(key, value)

        def fits(batch: Sequence[_Keyed[Read]], further: _Keyed[Read]) -> bool:
            return self.encoder.fits([one.read for one in batch], further.read)

        def encode(batch: Sequence[_Keyed[Read]]) -> list[_Encoded]:
            maps = self.encoder.encode([one.read for one in batch])
            names, width = tuple(maps[0]), len(maps[0])
            download = Download([value for one in maps for value in one.values()])
            return [
                _Encoded(one.key, names, download, width * index) for index, one in enumerate(batch)
            ]

        def write(encoded: _Encoded) -> Arrays | str:
            arrays = encoded.arrays()
            for name, array in arrays.items():
                if not np.isfinite(array).all():
                    return f"its {name} are NaN or infinite{self.encoder.advice}"
            self.cache.put(encoded.key, arrays)
            return {} if is_kept_only else arrays

        def record(sample: Sample, written: Arrays | str | Problem) -> None:
            if isinstance(written, str):
                written = Problem(str(sample.image), sample.source, written)
            results[sample.name] = written
            if meter is not None:
                meter.advance()

        parts = Parts(read, fits, encode, write, record)
        run_pipeline(samples, parts, limits_for(self.encoder.device, self.queue_mb))
        return results

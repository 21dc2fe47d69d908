"""The ``variant.yml`` that the published code writes beside its checkpoints.

Stage 2 describes the network under ``net_kwargs``; stage 1 dumps its command line, flat.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from weaktr.config import Reduction
from weaktr.files import read_text
from weaktr.recipes import PlainLoader, parse_yaml

FILE_NAME = "variant.yml"
Whole = Annotated[int, Field(ge=1, le=1 << 20)]


@dataclass(frozen=True)
class Variant:
    """The settings in a ``variant.yml``; None for those that it does not hold.

    Args:
        stage: "cam" (stage 1) or "segmenter" (stage 2).
        normalization: name of the image statistics.
        pool, reduction: of stage 1's fusion.
        encoder_heads, decoder_heads, depth, width, patch_size: of the network.
        image_size: training crop (height, width) in pixels.
        labels: L, background included.
        decoder: name of the decoder.
        window, stride: of the sliding window, in pixels.
    """

    stage: str | None = None
    normalization: str | None = None
    pool: str | None = None
    reduction: Reduction | None = None
    encoder_heads: Whole | None = None
    decoder_heads: Whole | None = None
    depth: Whole | None = None
    width: Whole | None = None
    patch_size: Whole | None = None
    image_size: tuple[Whole, Whole] | None = None
    labels: Whole | None = None
    decoder: str | None = None
    window: Whole | None = None
    stride: Whole | None = None


_VARIANT = TypeAdapter(Variant)


def read_variant(path: Path) -> Variant:
    """Read a ``variant.yml`` of either stage; of YAML's Python tags only tuples are built.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, YAML that asks for code, or no settings of a training.
    """
    if not path.is_file():
        raise FileNotFoundError(f"variant: no file {path}")
    tree = _parse(path)
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected the settings of a training, got {type(tree).__name__}")
    try:
        if "net_kwargs" in tree:
            variant = _stage2(tree)
        elif "pool_type" in tree:
            pool, reduction = str(tree["pool_type"]), float(tree["reduction"])
            variant = Variant("cam", pool=pool, reduction=reduction)
        else:
            raise ValueError("neither net_kwargs (stage 2) nor pool_type (stage 1) is in it")
        variant = _VARIANT.validate_json(json.dumps(vars(variant)), strict=True)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        raise ValueError(
            f"{path}: {wrong['loc'][0]}: {wrong['msg']}, got {wrong['input']!r:.60}"
        ) from error
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected the {FILE_NAME} that the published code wrote; {error}"
        ) from error
    return variant


def _stage2(tree: Mapping[str, Any]) -> Variant:
    """The settings of stage 2, from the parsed file."""
    net = tree["net_kwargs"]
    decoder, inference = net.get("decoder") or {}, tree.get("inference_kwargs") or {}
    normalization = net.get("normalization") or tree.get("dataset_kwargs", {}).get("normalization")
    size = net.get("image_size")
    return Variant(
        "segmenter",
        normalization=normalization,
        encoder_heads=net.get("n_heads"),
        decoder_heads=decoder.get("n_heads"),
        depth=net.get("n_layers"),
        width=net.get("d_model"),
        patch_size=net.get("patch_size"),
        image_size=(size, size) if isinstance(size, int) else None if size is None else tuple(size),
        labels=net.get("n_cls"),
        decoder=decoder.get("name"),
        window=inference.get("window_size"),
        stride=inference.get("window_stride"),
    )


def _parse(path: Path) -> Any:
    """The file's values; tuples become lists."""
    try:
        return parse_yaml(read_text(path), str(path), _Loader)
    except ValueError as error:
        message = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: not a plain YAML file; nothing was run: {message}") from error


class _Loader(PlainLoader):
    """YAML with ``!!python/tuple`` beside the standard tags."""


_Loader.add_constructor(
    "tag:yaml.org,2002:python/tuple", lambda loader, node: loader.construct_sequence(node)
)

"""The ``variant.yml`` that the published code writes beside its checkpoints.

Stage 2 describes the network under ``net_kwargs``; stage 1 dumps its command line, flat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE_NAME = "variant.yml"


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
    reduction: float | None = None
    encoder_heads: int | None = None
    decoder_heads: int | None = None
    depth: int | None = None
    width: int | None = None
    patch_size: int | None = None
    image_size: tuple[int, int] | None = None
    labels: int | None = None
    decoder: str | None = None
    window: int | None = None
    stride: int | None = None


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
    except (AttributeError, KeyError, TypeError, ValueError) as error:
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
    """YAML with ``!!python/tuple`` beside the standard tags."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def build_tuple(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> tuple[Any, ...]:
        return tuple(loader.construct_sequence(node))

    Loader.add_constructor("tag:yaml.org,2002:python/tuple", build_tuple)
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a plain YAML file; nothing was run: {error}") from error

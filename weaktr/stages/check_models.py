"""Whether a recipe's models can be built, and whether their weights are there and fit.

Models are built without memory, on torch's device "meta". Weights are read and fitted to them as
trainings do it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
import timm
import torch

from weaktr import processes
from weaktr.config import (
    BackboneConfig,
    CamModelConfig,
    PredictConfig,
    SegModelConfig,
    SizedTrainSegConfig,
    TrainCamConfig,
    TrainPatchesConfig,
)
from weaktr.data import Classes
from weaktr.messages import few
from weaktr.models import CamModel, PatchModel, Segmenter, Stage1Model, checkpoints
from weaktr.models.pretrained import (
    check_backbone,
    fit_state,
    require_normalization,
    timm_names,
)
from weaktr.models.shapes import without_memory
from weaktr.models.vit import BackboneModel
from weaktr.stages.run import MODEL

M = TypeVar("M", bound=BackboneModel)

#: Seconds to wait for timm's hub.
PATIENCE = 10
GIB = 2**30


def built_cam_model(config: CamModelConfig, classes: int) -> Stage1Model:
    """Stage 1's model without memory.

    Raises:
        ValueError: there is no such model.
    """
    if config.kind == "patches":
        return _built(PatchModel, config, classes)
    return _built(CamModel, config, classes)


def built_segmenter(config: SegModelConfig, labels: int) -> Segmenter:
    """Stage 2's model without memory.

    Raises:
        ValueError: there is no such model.
    """
    width = _built(Segmenter, replace(config, decoder="linear"), labels).vit.embed_dim
    heads = config.decoder_heads
    if config.decoder != "linear" and heads is not None and width % heads:
        raise ValueError(f"decoder_heads: expected a divisor of the width {width}, got {heads}")
    return _built(Segmenter, config, labels)


def _built(kind: type[M], config: BackboneConfig, count: int) -> M:
    plain = replace(config, attention="sdpa")  # no matter here, and always there
    try:
        with without_memory():
            model: M = kind(plain, count)  # type: ignore[arg-type] # each has its own
    except (ValueError, OSError):
        raise
    except Exception as error:  # timm's models raise errors of any kind for arguments of a recipe
        told = str(error).splitlines() or [type(error).__name__]
        raise ValueError(f"backbone: {config.backbone} cannot be built: {told[0]}") from error
    channels = model.vit.patch_embed.proj.weight.shape[1]
    if channels != 3:
        raise ValueError(f"backbone_args: expected a model of 3 channels, RGB, got {channels}")
    return model


def require_whole_patches(model: BackboneModel) -> None:
    """Raise `ValueError` unless training images are whole patches."""
    size, patch = model.config.image_size, model.patch_size
    for side in size if isinstance(size, tuple) else (size,):
        if side % patch:
            near = [str(n * patch) for n in (side // patch, side // patch + 1) if n]
            raise ValueError(
                f"image_size: expected a multiple of the patch size {patch}, such as "
                f"{' or '.join(near)}, got {side}"
            )


def require_patch(sizes: Mapping[str, int], patch: int) -> None:
    """Raise `ValueError` unless every one of `sizes`, in pixels by name, has room for a patch."""
    for name, size in sizes.items():
        if size < patch:
            raise ValueError(f"{name}: expected at least a patch, {patch} pixels, got {size}")


def require_memory(
    model: BackboneModel, device: torch.device, settings: TrainCamConfig | SizedTrainSegConfig
) -> None:
    """Raise `ValueError` unless a model, and a step of its training, may fit a device's memory.

    Counted is what surely is there together: weights, gradients and the optimiser's values of each;
    the batch's images; of every block the queries, keys, values and results, in 16 bits, where
    gradients go through the blocks, else of one.
    """
    name = model.config.backbone
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    weights *= _copies(model, settings)
    _require(device, weights, f"backbone: {name} and what its training keeps",
             "take a smaller model (backbone_args, image_size)")  # fmt: skip
    size = settings.crop if isinstance(settings, SizedTrainSegConfig) else model.config.image_size
    batch = _at_once(settings, device)
    if isinstance(model, PatchModel):
        size, batch = model.config.patches.short_side, 1
    height, width = (size, size) if isinstance(size, int) else size
    patches = (height // model.patch_size) * (width // model.patch_size)
    of_block = 2 if settings.recompute else 8
    kept = len(model.vit.blocks) if _keeps_blocks(model, settings) else 1
    blocks = of_block * model.vit.embed_dim * patches * kept
    image = 4 * 3 * height * width + blocks
    ways = [] if settings.recompute else ["set recompute"]
    if batch > 1:
        ways.append(
            "take a smaller batch_size" if settings.compile else "set a smaller micro_batch"
        )
    _require(device, batch * image, f"backbone: {name} with {batch} x {height} x {width} pixels",
             ", or ".join([*ways, "take smaller images (image_size, crop)"]))  # fmt: skip


def _at_once(settings: TrainCamConfig | SizedTrainSegConfig, device: torch.device) -> int:
    """Images that a process surely computes at a time."""
    own = -(-settings.batch_size // processes.count())
    if settings.micro_batch != "auto":
        return min(own, settings.micro_batch)
    return own if settings.compile or device.type != "cuda" else 1  # a GPU takes what fits


def require_patches_memory(
    model: PatchModel, device: torch.device, settings: TrainPatchesConfig, photographs: int
) -> None:
    """Raise `ValueError` unless the patches that a `PatchModel` learns from may fit the memory.

    Counted are the features of square photographs, and the covariance of each fold.
    """
    per_side = -(-model.config.patches.short_side // model.patch_size)
    part = min(per_side**2, max(1, settings.most_patches // photographs))
    width, folds = len(model.center), min(settings.folds, photographs)
    _require(device, 4 * width * (part * photographs + folds * width),
             f"patches.most_patches: {part * photographs} patches of {width} features in {folds} "
             "folds", "take fewer patches, folds or layers")  # fmt: skip


def require_views(settings: PredictConfig) -> None:
    """Raise `ValueError` unless windows, and photographs at every ratio, may fit the memory."""
    side = int(settings.short_side * max(settings.ratios))
    require_view_memory({"ratios": side, "window": settings.window})


def require_view_memory(views: Mapping[str, int]) -> None:
    """Raise `ValueError` unless images of `views`, sides in pixels by setting, may fit the memory.

    Four bytes are counted for each channel.
    """
    for name, side in views.items():
        what = f"{name}: {side} x {side} pixels"
        _require(torch.device("cpu"), 12 * side**2, what, "take a smaller one")


def _copies(model: BackboneModel, settings: TrainCamConfig | SizedTrainSegConfig) -> int:
    """How many values a training keeps of each weight: itself, its gradient, the optimiser's."""
    if isinstance(model, PatchModel):
        return 1
    if isinstance(settings, TrainCamConfig):
        return 4 if settings.backbone_lr else 1
    if not settings.encoder_lr:
        return 1
    return 4 if settings.optimizer == "adamw" else 3 if settings.momentum else 2


def _keeps_blocks(model: BackboneModel, settings: TrainCamConfig | SizedTrainSegConfig) -> bool:
    """Whether gradients go through the backbone's blocks."""
    if isinstance(model, PatchModel):
        return False
    if isinstance(settings, TrainCamConfig):
        return bool(settings.backbone_lr) or settings.class_tokens == "trained"
    return bool(settings.encoder_lr)


def _require(device: torch.device, needed: int, what: str, advice: str) -> None:
    there = memory_of(device)
    if needed > there:
        raise ValueError(
            f"{what} take at least {needed / GIB:.2g} GiB, {device} has {there / GIB:.2g} GiB of "
            f"memory; {advice}"
        )


def require_compiler() -> None:
    """Raise `ValueError` unless torch.compile finds a C++ compiler, as it needs on a CPU."""
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    compiler = os.environ.get("CXX") or usual
    if shutil.which(compiler) is None and shutil.which(compiler.split()[0]) is None:
        raise ValueError(
            f"compile: expected a C++ compiler, which torch.compile needs on a CPU, got no program "
            f"{compiler!r}; install it, name one in the environment variable CXX, or set false"
        )


def memory_of(device: torch.device) -> int:
    """Bytes of a device's memory, as far as they can be known."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if not hasattr(os, "sysconf"):  # Windows
        return sys.maxsize
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def require_weights(config: BackboneConfig, model: BackboneModel | None) -> None:
    """Read the weights that training starts from and fit them to the backbone of `model`.

    Without a model, because it cannot be built, a file of them is looked for.

    Those of timm's hub are fetched where they are not on this computer yet (see `require_hub`).

    Raises:
        ValueError, FileNotFoundError: they are not there, or do not fit.
    """
    if model is None:
        if config.weights not in ("timm", "stage1") and not Path(str(config.weights)).is_file():
            raise FileNotFoundError(f"weights: no file {config.weights}")
        return
    check_backbone(model.vit, config)


def require_stage1(cam_model: Stage1Model, model: Segmenter) -> None:
    """Whether the backbone of stage 1, which is not trained yet, fits that of stage 2.

    Raises:
        ValueError: it does not, or takes images that are normalised otherwise.
    """
    vit, grid = model.vit, cam_model.vit.position_grid
    fitted = fit_state(timm_names(cam_model.state_dict()), vit, model.config.resize, grid)
    try:
        checkpoints.check_fit(vit.state_dict(), fitted)
        require_normalization(cam_model.normalization, vit, model.config.backbone)
    except ValueError as error:
        raise ValueError(f"weights: the backbone of stage1 {error}") from error


def require_hub(backbone: str) -> None:
    """Raise `ValueError` unless timm has pretrained weights of a backbone, here or in its hub."""
    try:
        known = timm.models.get_pretrained_cfg(backbone)
    except RuntimeError as error:  # an unknown tag
        raise ValueError(f"backbone: {error}") from error
    if known is None or not known.has_weights:
        raise ValueError(f"weights: timm has none of {backbone!r}; give a file, or null for random")
    if is_fetched(known):
        return
    hub = known.hf_hub_id or ""
    try:
        huggingface_hub.model_info(hub, timeout=PATIENCE)
    except Exception as error:  # of any kind: the hub, the network, a setting against both
        raise ValueError(
            f"weights: {hub} is not on this computer and cannot be fetched ({error}); get "
            f"https://huggingface.co/{hub}/resolve/main/model.safetensors elsewhere, and give the "
            "file: --set model.weights=FILE (weaktr init PHOTOS --weights FILE)"
        ) from error


def is_fetched(known: timm.models.PretrainedCfg) -> bool:
    """Whether pretrained weights are on this computer, or need not be fetched from a hub."""
    hub = known.hf_hub_id
    if not hub:
        return True
    names = ("model.safetensors", "pytorch_model.bin", known.hf_hub_filename or "model.bin")
    return any(huggingface_hub.try_to_load_from_cache(hub, name) for name in names)


def checkpoint_of(folder: Path, kind: str, classes: Classes | None) -> dict[str, Any]:
    """The description of the checkpoint that an earlier run left in `folder`.

    Args:
        folder: of its stage.
        kind: a name of `weaktr.models.checkpoints.MODELS`.
        classes: of the images, if they are known.

    Raises:
        ValueError, OSError: it is not there, of another kind, or of other classes.
    """
    path = folder / MODEL
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: no file {path}")
    description = checkpoints.describe(path)
    if description.get("model") != kind:
        raise ValueError(f"{path}: expected a {kind} model, got {description.get('model')!r}")
    names = checkpoints.class_names(description, path)
    if classes is not None and len(classes) and names is not None and names != classes.names:
        raise ValueError(
            f"{path}: expected the classes of the images, {few(classes.names)}; got {few(names)}"
        )
    return description

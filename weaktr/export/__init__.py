"""Models for other runtimes: ONNX and `torch.export`, each checked against the eager model.

Batch, height and width stay free. The file holds the class names, the normalisation of its input
and the result of the check, so that it can be used without anything else.
"""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from weaktr import __version__
from weaktr.export.modules import ExportableCams, ExportableSegmenter
from weaktr.files import write_bytes
from weaktr.models import CamModel, PatchModel, Segmenter, Stage1Model

#: What `export_onnx` imports beside torch: the package's extra ``export``.
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
#: Largest difference from the eager model, relative to its output's largest magnitude.
TOLERANCE = 1e-4
#: Name of the description inside an exported program.
DESCRIPTION = "weaktr.json"
FORMAT = "weaktr-export"

Run = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Check:
    """The exported model against the eager one on random images.

    Args:
        shapes: (B, H, W) of the images.
        difference: largest |exported - eager| over all outputs and images.
        magnitude: largest |eager|.
    """

    shapes: tuple[tuple[int, int, int], ...]
    difference: float
    magnitude: float


def export_onnx(
    model: Stage1Model | Segmenter,
    path: Path,
    classes: Sequence[str],
    *,
    size: tuple[int, int] | None = None,
) -> Check:
    """Write an ONNX file and run it in onnxruntime.

    Args:
        model: in eval mode, on the CPU. A segmenter gives ``logits`` [B, L, H, W] (a multi decoder
            ``early`` too), a stage-1 model the refined ``cams`` [B, C, H // patch, W // patch] of
            all classes, not normalised.
        path: the file.
        classes: names of the output's channels, background included for a segmenter.
        size: (H, W) of a model for one image size; None: any size of at least two patches.

    Returns:
        The check, which has passed.

    Raises:
        ValueError: onnx, onnxscript or onnxruntime is missing; the backbone takes no free size; the
            exported model computes something else (nothing is written then).
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"--onnx needs {', '.join(missing)}: pip install 'weaktr[export]' (or "
            f"pip install {' '.join(missing)})"
        )
    import onnx
    import onnxruntime

    module = exportable(model)
    shapes = check_shapes(model, size)
    with torch.no_grad():
        program = torch.onnx.export(
            trace(model, module, size),
            input_names=["images"],
            output_names=list(module.outputs),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    name_axes(proto, model)
    content = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(out) for out in session.run(None, {"images": images.numpy()})]

    check = compare(model, run, shapes)
    facts = describe(model, classes, size, check)
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}
    onnx.helper.set_model_props(proto, texts)
    write_bytes(path, proto.SerializeToString())
    return check


def export_program(
    model: Stage1Model | Segmenter,
    path: Path,
    classes: Sequence[str],
    *,
    size: tuple[int, int] | None = None,
) -> Check:
    """Write a program for `torch.export.load`, read it back and run it.

    Arguments, outputs and errors are those of `export_onnx`; no further package is needed. The
    description is the extra file ``weaktr.json``:
    ``torch.export.load(path, extra_files=(extra := {"weaktr.json": ""}))``.
    """
    program = trace(model, exportable(model), size)
    check = compare(model, program.module(), check_shapes(model, size))
    facts = describe(model, classes, size, check)
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={DESCRIPTION: json.dumps(facts)})
    buffer.seek(0)
    reread = torch.export.load(buffer).module()
    compare(model, reread, check_shapes(model, size)[:1])
    write_bytes(path, buffer.getvalue())
    return check


def exportable(model: Stage1Model | Segmenter) -> ExportableCams | ExportableSegmenter:
    """The module that is traced instead of the model."""
    if isinstance(model, PatchModel):
        raise ValueError(
            "a stage-1 model of cam_model.kind patches cannot be exported: its CAMs depend on the "
            "classes of each photograph; export the segmenter of stage 2"
        )
    return ExportableCams(model) if isinstance(model, CamModel) else ExportableSegmenter(model)


def trace(
    model: Stage1Model | Segmenter, module: nn.Module, size: tuple[int, int] | None
) -> ExportedProgram:
    """The graph, with free batch and, where `size` is None, free height and width.

    Raises:
        ValueError: this backbone cannot be traced for free sizes.
    """
    patch = model.patch_size
    axes = {0: Dim("batch", min=1)}
    if size is None:
        axes |= {2: Dim("height", min=2 * patch), 3: Dim("width", min=2 * patch)}
    example = torch.zeros(2, 3, *(size or (4 * patch, 5 * patch)))
    try:
        with torch.no_grad():
            return torch.export.export(module, (example,), dynamic_shapes=(axes,), strict=False)
    except torch._dynamo.exc.UserError as error:
        if size is not None:
            raise
        backbone = model.config.backbone
        raise ValueError(
            f"{backbone} cannot be traced for any image size (its rotary embedding depends on it); "
            "choose one with --size H W"
        ) from error


def check_shapes(
    model: Stage1Model | Segmenter, size: tuple[int, int] | None
) -> tuple[tuple[int, int, int], ...]:
    """(B, H, W) to check: the training size, other sizes, sides that are no multiple of a patch."""
    if size is not None:
        return ((1, *size), (2, *size))
    stored, patch = model.vit.position_grid, model.patch_size
    height, width = (max(2, count) * patch for count in stored)
    return (
        (1, height, width),
        (2, max(2 * patch, height // 2), width + patch // 2),
        (3, 2 * patch + 1, 3 * patch - 1),
        (1, height + 2 * patch, max(2 * patch, width // 2)),
    )


@torch.no_grad()
def compare(
    model: Stage1Model | Segmenter, run: Run, shapes: tuple[tuple[int, int, int], ...]
) -> Check:
    """Run both on the same random images.

    Raises:
        ValueError: they differ by more than `TOLERANCE`.
    """
    differences, magnitudes = [], []
    generator = torch.Generator().manual_seed(0)
    for batch, height, width in shapes:
        images = torch.randn(batch, 3, height, width, generator=generator)
        for eager, exported in zip(_eager_outputs(model, images), run(images), strict=True):
            if eager.shape != exported.shape:
                raise ValueError(
                    f"the exported model gives {tuple(exported.shape)} where the model gives "
                    f"{tuple(eager.shape)}, for images {tuple(images.shape)}"
                )
            differences.append((eager - exported).abs().max())
            magnitudes.append(eager.abs().max())
    # torch's maximum passes NaN on, Python's may not
    difference, magnitude = (torch.stack(v).max().item() for v in (differences, magnitudes))
    if not difference <= TOLERANCE * magnitude:
        raise ValueError(
            f"the exported model differs from the model by {difference:.2e} where outputs reach "
            f"{magnitude:.2e}; nothing was written"
        )
    return Check(shapes, difference, magnitude)


def _eager_outputs(model: Stage1Model | Segmenter, images: Tensor) -> Sequence[Tensor]:
    """What the exported model has to give."""
    if isinstance(model, CamModel):
        return [model.cams(images)]
    logits = model(images)
    return [logits] if isinstance(logits, Tensor) else list(logits)


def describe(
    model: Stage1Model | Segmenter,
    classes: Sequence[str],
    size: tuple[int, int] | None,
    check: Check,
) -> dict[str, Any]:
    """The facts that are stored inside the file."""
    mean, std = model.normalization
    smallest = 2 * model.patch_size
    return {
        "format": FORMAT,
        "version": __version__,
        "stage": "cam" if isinstance(model, CamModel) else "segmenter",
        "backbone": model.config.backbone,
        "classes": list(classes),
        "mean": list(mean),
        "std": list(std),
        "input": "images float32 [B, 3, H, W], RGB, (value / 255 - mean) / std",
        "sizes": f"H, W >= {smallest}" if size is None else f"H, W = {size[0]}, {size[1]}",
        "patch_size": model.patch_size,
        "check": asdict(check),
    }


def name_axes(proto: Any, model: Stage1Model | Segmenter) -> None:
    """Give readable names to the free axes of an ONNX graph."""
    size = ("height", "width")
    output_size = ("rows", "columns") if isinstance(model, CamModel) else size
    named = [(value, size) for value in proto.graph.input]
    named += [(value, output_size) for value in proto.graph.output]
    for value, spatial in named:
        dims = value.type.tensor_type.shape.dim
        for axis, name in ((0, "batch"), (2, spatial[0]), (3, spatial[1])):
            if dims[axis].dim_param:
                dims[axis].dim_param = name

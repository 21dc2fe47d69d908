"""Both models as modules that `torch.export` can trace for any batch and image size.

They compute what `Segmenter.forward` and `CamModel.cams` do, without branches on sizes: images are
padded by a constant, resizing is done by matrices computed in the graph
(`weaktr.models.positions`), and attention maps are added up layer by layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weaktr.models.blocks import Layer
from weaktr.models.cam import CamModel
from weaktr.models.fusion import share_of
from weaktr.models.positions import upsampling_matrix
from weaktr.models.segmenter import Segmenter, gated


class ExportableSegmenter(nn.Module):
    """`Segmenter` for export: the same weights, outputs equal up to rounding.

    Args:
        model: in eval mode.
    """

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model = model
        self.outputs = ("early", "logits") if model.multi else ("logits",)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Normalised images [B, 3, H, W] -> logits [B, L, H, W], one or two (`outputs`)."""
        model, patch = self.model, self.model.patch_size
        size = (images.shape[-2], images.shape[-1])
        grid = ((size[0] - 1) // patch + 1, (size[1] - 1) // patch + 1)
        # Padding by a patch less one pixel: `vit` drops what does not fill a whole patch.
        tokens = model.tokens(F.pad(images, (0, patch - 1, 0, patch - 1)))
        encoding = model.encoding_of(tokens, grid)
        logits = [gated(maps, encoding.classes) for maps in model.outputs(encoding)]
        rows, columns = (
            upsampling_matrix(length, count, patch)
            for length, count in zip(size, grid, strict=True)
        )
        return tuple(rows @ maps.unflatten(2, grid) @ columns.T for maps in logits)


class ExportableCams(nn.Module):
    """`CamModel.cams` of all classes for export, equal up to rounding.

    One layer's attention [B, H, N, N] is held at a time.

    Args:
        model: in eval mode.
    """

    outputs = ("cams",)

    def __init__(self, model: CamModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Normalised images [B, 3, H, W] -> refined CAMs [B, C, h, w] >= 0, h = H // patch."""
        model = self.model
        layers: list[tuple[Tensor, Tensor]] = []

        def keep(layer: Layer) -> None:
            layers.append((layer.q, layer.k))

        encoding = model.encode(model.vit.embed(images), keep)
        coarse = F.relu(model.head(encoding.patch_maps[0]))
        weights = model.fusion(encoding.features)
        share = share_of(weights)
        fused = torch.zeros(())
        for index, (q, k) in enumerate(layers):
            attention = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
            fused = fused + torch.einsum("bh,bhij->bij", share[:, index], attention)
        patches = coarse.shape[2] * coarse.shape[3]
        fused = fused[:, :, fused.shape[2] - patches :]
        cross, patch = fused[:, : model.num_classes], fused[:, fused.shape[1] - patches :]
        fine = torch.einsum("bij,bcj->bci", patch, cross * coarse.flatten(2))
        return (fine.unflatten(2, (coarse.shape[2], coarse.shape[3])),)

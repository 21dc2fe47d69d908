"""The settings of every stage. The defaults are the published ones for VOC 2012 with DeiT-S.

A setting's type says its range too (`weaktr.ranges`). `weaktr.recipes` reads settings from YAML and
``--set key=value``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field

from weaktr.backbone_args import check_backbone_args
from weaktr.ranges import (
    Above0,
    AtLeast0,
    Between,
    Count,
    CountOrNone,
    Pixels,
    Rate,
    RateAbove0,
    Scales,
    Settings,
    Share,
    ShareAbove0,
    ShareBelow1,
    ShareBetween,
    Text,
)

#: The precision of a model's passes, see `weaktr.models.precision`.
Amp = Literal["auto", "none", "tf32", "bf16", "fp16", "fp16_on_cuda", "fast"]
AttentionName = Literal["auto", "cpu", "triton", "sdpa", "xformers"]
#: Names of the stages (`weaktr.stages.pipeline.STAGES`), in their order.
StageName = Literal["train_cam", "label", "train_seg", "predict", "evaluate"]
Resize = Literal["timm", "bicubic", "bilinear"]
Position = Literal["timm", "published_cam", "published_seg"]
Pool = Literal["avg", "max"]
AttentionType = Literal["coarse", "fused", "transcam"]
#: How a threshold is chosen in place of a number.
ThresholdWay = Literal["auto", "search_on_masks"]
ConfidenceKind = Literal["score", "stability"]
CamModelKind = Literal["class_tokens", "patches"]
Decoder = Literal["mask_transformer", "multi_mask_transformer", "linear"]

#: What an address looks like, of the web or of a hub.
ADDRESS = re.compile(r"://|^(hf[-_]hub|https?|ftp|file|local-dir):|^\\\\", re.IGNORECASE)
#: Blocks of a model, far more than any has.
MOST_BLOCKS = 1000
PLAIN_WORD = re.compile(r"(?!\.)[\w.-]{1,100}")


def _plain_word(name: str) -> str:
    if not PLAIN_WORD.fullmatch(name):
        raise ValueError(
            "expected one word of at most 100 letters, digits, _, - and ., not beginning with a "
            "dot (where a recipe has no name, it is the file's)"
        )
    return name


def _in_order(stages: tuple[StageName, ...]) -> tuple[StageName, ...]:
    if not stages or list(stages) != [name for name in get_args(StageName) if name in stages]:
        raise ValueError(
            f"expected some of {', '.join(get_args(StageName))}, each once and in this order"
        )
    return stages


def _no_address(text: str) -> str:
    if ADDRESS.search(text):
        raise ValueError("expected a name or a file of this computer, no address")
    return text


def _below_the_root(split: str) -> str:
    if split.startswith(("/", "~")) or ".." in split.replace("\\", "/").split("/"):
        raise ValueError("expected the name of a split below data.root, without '..'")
    return split


def _of_form(arguments: dict[str, Any]) -> dict[str, Any]:
    check_backbone_args(arguments)
    return arguments


def _of_source(options: dict[str, Any]) -> dict[str, Any]:
    if own := {"source", "root", "split", "problems"} & options.keys():
        raise ValueError(f"expected options of the source; {min(own)!r} is none of them")
    return options


def _shares_of_area(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 < pair[0] <= pair[1] <= 1:
        raise ValueError("expected two numbers above 0 and at most 1, the larger one last")
    return pair


def _some_once(layers: tuple[int, ...]) -> tuple[int, ...]:
    if not layers or len(set(layers)) < len(layers):
        raise ValueError("expected at least one block of the backbone, each once")
    return layers


def _curve(thresholds: tuple[float, float, float]) -> tuple[float, float, float]:
    first, last, step = thresholds
    if not (0 <= first <= last <= 1 and 1e-4 <= step <= 1):
        raise ValueError(
            "expected first, last, step with 0 <= first <= last <= 1 and a step from 0.0001 to 1"
        )
    return thresholds


Name = Annotated[str, AfterValidator(_plain_word)]
Stages = Annotated[tuple[StageName, ...], AfterValidator(_in_order)]
#: A backbone's name, or a file.
Local = Annotated[Text, AfterValidator(_no_address)]
Split = Annotated[Text, AfterValidator(_below_the_root)]
SourceOptions = Annotated[dict[str, Any], AfterValidator(_of_source)]
BackboneArgs = Annotated[dict[str, Any], AfterValidator(_of_form)]
Reduction = Annotated[float, Field(ge=1e-3, le=1e9)]
ImageSize = Pixels | tuple[Pixels, Pixels]
AreaShares = Annotated[tuple[float, float], AfterValidator(_shares_of_area)]
Layers = Annotated[
    tuple[Annotated[int, Field(ge=-MOST_BLOCKS, lt=MOST_BLOCKS)], ...], AfterValidator(_some_once)
]
Thresholds = Annotated[tuple[float, float, float], AfterValidator(_curve)]


def later(default: Any, **former: Any) -> Any:
    """A setting that older versions did not have.

    At the value that stands for what they did, it is left out of a stage's fingerprint
    (`weaktr.recipes.identity`), also in a group of settings inside another, so that stages which
    an older version finished do not run again.

    Args:
        default: of the setting.
        former: ``former=VALUE``, where that value is not the default.
    """
    return field(default=default, metadata={"later": former.get("former", default)})


def renamed(default: Any, **former: str) -> Any:
    """A setting whose values, or whose default, are not what they were in older versions.

    A stage that an older version finished has such a value in its fingerprint under the name of
    what it takes the place of; with that (`weaktr.recipes.identity` with `is_former`) it is not run
    again.

    Args:
        default: of the setting.
        former: ``VALUE="its name in fingerprints of older versions"``.
    """
    return field(default=default, metadata={"former_names": former})


def without_effect(default: Any, *, is_later: bool = False) -> Any:
    """A setting on which no result depends; fingerprints have its default.

    Args:
        default: of the setting.
        is_later: older versions did not have it.
    """
    metadata = {"without_effect": True}
    return field(default=default, metadata=metadata | ({"later": default} if is_later else {}))


@dataclass(frozen=True)
class DataConfig(Settings):
    """Which images, labels and masks.

    Args:
        source: one of `weaktr.data.sources.SOURCES`, or "manifest"; see `load_manifest`.
        root: the data set's folder; of "manifest" the folder with ``<split>.json``.
        options: further arguments of the source (``count`` of scenes, ``ids`` of COCO, ...).
        val_options: what differs for `val_split`.
        train_split: images and image-level labels of both trainings.
        score_split: images whose masks score CAMs and pseudo labels (by name, among those of
            `train_split`); None = `train_split` itself. Nothing is trained on these masks.
        val_split: held-out images for predictions.
    """

    source: Text = "voc12"
    root: Text = "data/VOCdevkit/VOC2012"
    options: SourceOptions = field(default_factory=dict)
    val_options: SourceOptions = field(default_factory=dict)
    train_split: Split = "train_aug"
    score_split: Split | None = "train"
    val_split: Split = "val"


@dataclass(frozen=True)
class BackboneConfig(Settings):
    """The plain ViT of a model, and where its weights come from (`weaktr.models.ViT`).

    A setting for the backbones of both stages belongs here; `weaktr.models.vit` reads it.

    Args:
        backbone: timm name, such as ``deit_small_patch16_224`` (pretrained tag allowed).
        weights: what training starts from (`weaktr.models.pretrained.load_backbone`): None =
            random, "timm" = pretrained, else a file: weights in timm's or the original release's
            naming, a native checkpoint, or one of the published code.
        resize: how the weights' position grid (and patch projection) are brought to this model's.
        position: how positions follow images of other sizes; "published_cam" and "published_seg"
            do what the published code does.
        norm_eps: epsilon of the backbone's LayerNorms; None = the backbone's own.
        image_size: of the training images in pixels, one number or (H, W); sets the position grid
            that is stored.
        patch_size: in pixels; None = the backbone's own.
        drop_path: stochastic depth rate of the last block, linear from 0 at the first.
        backbone_args: further arguments of the timm model that describe the network (embed_dim,
            depth, ...; `weaktr.backbone_args`).
        attention: "auto" (the C++ code "cpu" on a CPU, "triton" on CUDA, else "sdpa", PyTorch's),
            one of these three, or "xformers" where it is installed, only on CUDA; None = the
            environment variable ``WEAKTR_ATTENTION``, else "auto". "triton" also uses PyTorch's
            attention wherever that is faster.

    Source: reference.md 1-3, 33-36.
    """

    backbone: Local = "deit_small_patch16_224.fb_in1k"
    weights: Local | None = "timm"
    resize: Resize = "timm"
    position: Position = "timm"
    norm_eps: ShareAbove0 | None = None
    image_size: ImageSize = 224
    patch_size: Annotated[int, Field(ge=1, le=1024)] | None = None
    drop_path: ShareBelow1 = 0.1
    backbone_args: BackboneArgs = field(default_factory=dict)
    attention: AttentionName | None = None


@dataclass(frozen=True)
class PatchesConfig(Settings):
    """How `weaktr.models.PatchModel` reads a photograph.

    Args:
        short_side: of the photograph as the backbone sees it, in pixels.
        layers: blocks of the backbone whose patches, side by side, are the features; -1 = the last.
            Where a network was tuned for another task its last blocks know less of the classes than
            those before.
        saliency_weight: how much the background follows the saliency, against the features.
        least_share: share of a photograph's patches that each class it shows has at least.
        least_background: likewise of the background.
    """

    short_side: Pixels = 308
    layers: Layers = (-4, -2)
    saliency_weight: Rate = 1.0
    least_share: Annotated[float, Field(ge=0, le=0.2)] = 0.05
    least_background: Annotated[float, Field(ge=0, le=0.5)] = 0.2


@dataclass(frozen=True)
class CamModelConfig(BackboneConfig):
    """Stage 1's model: `weaktr.models.CamModel`, or `weaktr.models.PatchModel` for few photographs.

    Args:
        kind: "class_tokens" = `CamModel`, which is trained by gradients; "patches" = `PatchModel`,
            a classifier of the patches of a frozen backbone, for which of the settings below only
            `patches` counts.
        pool: "avg" or "max" over tokens of the attention output that feeds the fusion.
        reduction: the fusion's map MLP has int(depth * heads / reduction) hidden units.
        feat_reduction: its feature MLP has int(head width / feat_reduction).
        patch_norm: apply the backbone's final norm to the patches before the head. The published
            model does not; backbones that were pretrained with it (DINOv2, DINOv3) gain from it.
        patches: see `PatchesConfig`.

    Source: reference.md 1-14, 21.
    """

    pool: Pool = "max"
    reduction: Reduction = 8.0
    feat_reduction: Reduction = 8.0
    patch_norm: bool = False
    kind: CamModelKind = later("class_tokens")
    patches: PatchesConfig = later(PatchesConfig())


@dataclass(frozen=True)
class CamAugment(Settings):
    """Training augmentation of stage 1 (arguments of `weaktr.data.transforms.cam_train_transform`).

    Args:
        scale: range of the random crop's share of the image area.
        ratio: range of the random crop's width / height.
        flip: probability of a horizontal flip.
        randaugment: RandAugment m9-mstd0.5-inc1.
        erasing: probability of random erasing with noise.
    """

    scale: AreaShares = (0.08, 1.0)
    ratio: Between = (3 / 4, 4 / 3)
    flip: Share = 0.5
    randaugment: bool = True
    erasing: Share = 0.25


@dataclass(frozen=True)
class TrainPatchesConfig(Settings):
    """Stage 1 with ``cam_model.kind: patches`` (`weaktr.training.patches`).

    Args:
        rounds: how often patches are given to classes and classifiers are fitted to that.
        folds: groups of photographs; each is judged by a classifier that was fitted to the others.
            1 = by one that was fitted to all, itself included, which believes more of its own
            errors.
        shrinkage: of the covariance towards a multiple of the identity, in parts of its mean
            diagonal.
        temperature: by which scores are divided; discriminant scores are too sure of themselves.
        most_patches: patches in memory. A photograph gives at most ``most_patches / photographs``
            of its own, drawn at random, and at least one.
    """

    rounds: Annotated[int, Field(ge=1, le=1000)] = 6
    folds: Annotated[int, Field(ge=1, le=1000)] = 10
    shrinkage: RateAbove0 = 0.1
    temperature: Above0 = 2.0
    most_patches: Annotated[int, Field(ge=1000, le=10**9)] = 300_000


def _graph_of_pieces(micro_batch: int | str, compiles: bool) -> dict[str, str]:
    """The fault of a training that is to be compiled and computed in pieces."""
    if micro_batch == "auto" or not compiles:
        return {}
    return {"micro_batch": f"expected auto where compile is true, got {micro_batch}"}


@dataclass(frozen=True)
class TrainCamConfig(Settings):
    """Stage 1: three multi-label losses, AdamW, cosine schedule.

    Args:
        epochs: passes over the training images.
        batch_size: images in a forward pass.
        accumulate: forward passes for an optimiser step.
        lr: peak learning rate of a step of ``batch_size * accumulate`` images.
        backbone_lr: factor on `lr` for the pretrained backbone; 0 freezes all of it but the class
            tokens, which suits strong backbones (DINOv2) and few images.
        class_tokens: "frozen" leaves them as they start. Together with ``backbone_lr: 0`` nothing
            of the backbone changes, and photographs pass through it once instead of in every epoch
            (`weaktr.inference.head_inputs`), where nothing else changes what it gives: augment
            with scale and ratio [1, 1] (the square in the middle), without randaugment and
            erasing (flips are kept as a second view), and ``cam_model.drop_path: 0``. Tokens that
            are trained change the patches too, through attention.
        weight_decay: on every parameter.
        warmup_epochs: epochs (or parts of one) from `warmup_lr` up to `lr`.
        warmup_lr: learning rate of the first epoch, at most `lr`.
        min_lr: learning rate at the end, at most `lr`.
        lag_one_epoch: the published schedule: constant within an epoch and one epoch late (epochs
            0 and 1 run at `warmup_lr`). False: smooth, changing with every step.
        amp: autocast; "auto" = bf16 on CUDA, fp16 on GPUs that have no bf16 in hardware, none
            elsewhere; "fast" = the same, and bf16 on CPUs that multiply it in hardware
            (AVX512-BF16, AMX). "fp16_on_cuda" = fp16 on CUDA (as published), none elsewhere. "none"
            = float32, on a GPU without TF32; "tf32" = float32 that may be multiplied in TF32 on
            CUDA.
        compile: run forward pass and losses through torch.compile, as one graph. It takes a minute
            or more at the start; later steps are faster, most of all on CUDA. Dropout draws other
            random numbers.
        recompute: keep of each transformer block only what enters it, and compute the rest again
            for the gradient: same results in a fraction of the memory, a third slower.
        micro_batch: most images of a batch that a process computes at once. Results are those of
            the whole batch but for rounding (on a GPU also for dropout in attention); slower, most
            of all where a loss goes by means of the batch, which is then computed twice. "auto" =
            all, or on a GPU as many as its memory holds.
        clip_grad: largest gradient norm, or None.
        ema_decay: keep an exponential moving average of the weights and save that, or None.
        validate_every: epochs between measurements of the CAM mIoU on the score split (0 = never).
            They are only logged; training and the saved model do not depend on them.
        augment: see `CamAugment`.
        patches: see `TrainPatchesConfig`; where it counts, nothing else of this group does.
        choose: which weights are saved: "last", or "fisher" = those of the epoch, of every
            `validate_every`, at which foreground and background differ most in their patch features
            at the best threshold (`weaktr.inference.threshold`). No pixel label is used.

    Source: reference.md 15-22 (lr 6e-4 * batch 64 / 512).
    """

    epochs: CountOrNone = 60
    batch_size: Count = 64
    accumulate: Count = 1
    lr: RateAbove0 = 7.5e-5
    backbone_lr: Rate = 1.0
    weight_decay: Rate = 0.03
    warmup_epochs: AtLeast0 = 5.0
    warmup_lr: Rate = 1e-6
    min_lr: Rate = 1e-5
    lag_one_epoch: bool = True
    amp: Amp = renamed("auto", fp16_on_cuda="auto")
    compile: bool = False
    recompute: bool = without_effect(False, is_later=True)
    micro_batch: Count | Literal["auto"] = without_effect("auto", is_later=True)
    clip_grad: Above0 | None = None
    ema_decay: ShareBelow1 | None = None
    validate_every: CountOrNone = 0
    augment: CamAugment = CamAugment()
    patches: TrainPatchesConfig = later(TrainPatchesConfig())
    class_tokens: Literal["trained", "frozen"] = later("trained")
    choose: Literal["last", "fisher"] = later("last")

    def conflicts(self) -> dict[str, str]:
        """Epochs that are not looked at cannot be chosen; a graph is of a whole batch."""
        faults = _graph_of_pieces(self.micro_batch, self.compile)
        if self.choose == "fisher" and not self.validate_every:
            faults["choose"] = "expected last where validate_every is 0, got fisher"
        return faults


@dataclass(frozen=True)
class PropagationConfig(Settings):
    """The refiner "propagation": scores spread over patches that look alike.

    Args:
        gamma: exponent of the cosines of patch features.
        sigma: how fast affinities fall with the distance of patches, by exp(-sigma · distance), in
            pixels of the photograph with its short side at 448; 0 = they do not.
        neighbours: most patches that each patch chooses as its neighbours.
        alpha: share of a patch's score that comes from its neighbours. Near 1 the labels of most
            patches win everywhere.
        center: take the mean of the photograph's features from each first, so that patches which
            have no more in common than all others are no neighbours.

    Source: `weaktr.ops.propagate_labels`, whose alpha is 0.95. `alpha` and `center` were found by
    looking at true masks, of 16 photographs of VOC with features of DINOv2-S and imitated CAMs
    (mIoU 37.5): 22.7 with 0.95 and without `center`, 35.0 with 0.95, 44.7 with 0.8 without
    `center`, 51.5 with both.
    """

    gamma: Annotated[float, Field(gt=0, le=100)] = 3.0
    sigma: Rate = 0.01
    neighbours: Annotated[int, Field(ge=1, le=10_000)] = 400
    alpha: Annotated[float, Field(ge=0, le=0.999)] = 0.8
    center: bool = True


@dataclass(frozen=True)
class ProposalsConfig(Settings):
    """The refiner "proposals": labels snapped to segments that any other tool proposes.

    Args:
        file: a JSON file, or a folder with NAME.json for each photograph (`weaktr.data.proposals`).
        majority: a proposal takes a class that more than this share of it has.
        cover: it also takes a class of which it covers at least this share in the whole image,
        least: but only where at least this share of it has the class; else a proposal of a whole
            scene would be painted with a small object in it.
        background: a proposal of which more than `majority` is background, and which takes no
            class, becomes background. CAMs cover too little of objects, so False suits them.
    """

    file: Text | None = None
    majority: Share = 0.5
    cover: Share = 0.85
    least: Share = 0.2
    background: bool = False


@dataclass(frozen=True)
class TeacherConfig(Settings):
    """The refiner "teacher": masks of any other tool, where image-level labels and ours allow.

    Args:
        folder: with NAME.png for each photograph: 0 background, k + 1 class index k, 255 ignore.
        least_agreement: a class with a lower agreement (`weaktr.refine.teacher.agreements`) keeps
            our own region; 0 = the teacher's, for every class that the photograph shows.
    """

    folder: Text | None = None
    least_agreement: Share = 0.5


@dataclass(frozen=True)
class LabelConfig(Settings):
    """CAMs -> pseudo labels.

    Args:
        attention_type: "coarse" (plain CAM), "fused" (times class-to-patch attention) or
            "transcam" (the attention alone).
        refine: multiply the CAMs by the patch-to-patch attention. This has nothing to do with
            `refiners`, which come after the threshold.
        scales: image scales whose CAMs are summed; each side is ``round(side * scale)``.
        flip: add the horizontally flipped image at each scale.
        threshold: background score in [0, 1]; a pixel whose CAMs are all at most this is
            background. "auto" = chosen without pixel labels, by patch features
            (`weaktr.inference.threshold`); "search_on_masks" = the best one for true masks of the
            score split, which is no longer weakly supervised. Either is chosen once and kept in
            ``threshold.json`` beside the masks.
        refiners: what refines the labels with the image, in this order (`weaktr.refine`): names,
            or {name: its settings}.
        crf: of the refiner "crf": a preset of `weaktr.DenseCRF` by name, explicit settings, or None
            for no CRF.
        gt_prob: confidence in the label before the CRF, in (0, 1).
        unlabelled: what to do with images without a class: "skip" them, or write a mask that is
            all "background".
        predict_above: images whose classes nobody gave get those that the model finds more probable
            than this, 0..1; of no effect where image-level labels are given.
        max_side: an image with a longer side is labelled at this many pixels, to which `scales`
            are relative, and its mask enlarged; None = every image at its own size.
        batch_size: most images, of any sizes, in a forward pass on a GPU. A CPU takes one at a
            time, so that an image's CAMs do not depend on its neighbours.
        batch_tokens: most patches in a forward pass on a GPU, flips included (patches alone,
            although the name says tokens); a single image may have more. DeiT-S needs about 0.12 MB
            for a patch. None = 32,768, and up to four times as many with 20 GiB for each of them.
        queue_mb: MiB of images that may wait for the model, and of results for the writers, each.
        amp: autocast while CAMs are computed; "auto" = fp16 on CUDA; "fast" = the same, and bf16
            on CPUs that multiply it in hardware; "none" = float32, without TF32; "tf32" = with it.
        soft: also write soft labels, which `TrainSegConfig.labels` may learn from: the shares of
            background and the image's classes in cells of the image.
        soft_temperature: tau of the softmax over threshold and CAMs, or over the logarithms of the
            last refiner's scores, that gives them; the smaller, the more decided.
        soft_stride: side of a cell in pixels of the working size.
        val_masks: with "search_on_masks", how many images with true masks are drawn at random and
            used; None = all of the score split.
        confidence: what ``--emit confidence`` writes of a pixel: "score" = how likely its label is
            by the scores or the last refiner; "stability" = the share of other thresholds, single
            views and refinements that give the same label (`weaktr.inference.labels.stability`).

    Source: reference.md 12, 23-28, 32.
    """

    attention_type: AttentionType = "fused"
    refine: bool = True
    scales: Scales = (1.0, 1.2)
    flip: bool = True
    threshold: Share | ThresholdWay = 0.43
    refiners: tuple[str | dict[str, Any], ...] = later(("crf",))
    crf: str | dict[str, Any] | None = "voc_cam"
    gt_prob: ShareBetween = 0.7
    unlabelled: Literal["skip", "background"] = "skip"
    predict_above: Share = later(0.5)
    max_side: Pixels | None = later(1024, former=None)
    batch_size: Count = without_effect(32)
    batch_tokens: Count | None = without_effect(None)
    queue_mb: Count = without_effect(128, is_later=True)
    amp: Amp = "none"
    soft: bool = later(False)
    soft_temperature: Annotated[float, Field(ge=1e-3, le=100)] = later(0.05)
    soft_stride: Pixels = later(8)
    val_masks: Count | None = later(None)
    confidence: ConfidenceKind = later("score")

    def conflicts(self) -> dict[str, str]:
        """A number of masks is of no use where none are searched on."""
        if self.val_masks is None or self.threshold == "search_on_masks":
            return {}
        return {
            "val_masks": "expected null unless threshold is search_on_masks, got "
            f"{self.val_masks} with threshold {self.threshold}"
        }


@dataclass(frozen=True)
class SegModelConfig(BackboneConfig):
    """Stage 2's model (`weaktr.models.Segmenter`); `weights` may also be "stage1", which stands for
    this run's stage-1 checkpoint.

    Args:
        decoder: "mask_transformer", "multi_mask_transformer" (also gives the logits before its last
            block), or "linear".
        decoder_layers: blocks of a mask transformer.
        decoder_heads: its heads; None = model width / 64, at least 1.
        dropout: the mask transformer's dropout during training.
        class_tokens: tokens before the patches; None = the backbone's own number.
        layers: blocks of the backbone whose patches, side by side, the decoder gets, each after the
            final norm; -1 = the last (published: that alone).
        image_head: also learn from the image-level labels which classes a photograph shows, and
            let predictions of its pixels take that into account (`PredictConfig.image_weight`).

    Source: reference.md 33-40.
    """

    image_size: ImageSize = 480
    decoder: Decoder = "mask_transformer"
    decoder_layers: Annotated[int, Field(ge=0, le=MOST_BLOCKS)] = 2
    decoder_heads: Annotated[int, Field(ge=1, le=1000)] | None = None
    dropout: ShareBelow1 = 0.1
    class_tokens: Annotated[int, Field(ge=0, le=1000)] | None = later(None)
    layers: Layers = later((-1,))
    image_head: bool = later(False)

    def conflicts(self) -> dict[str, str]:
        """A mask transformer has blocks; a linear decoder has none."""
        if self.decoder == "linear" or self.decoder_layers > 0:
            return {}
        return {"decoder_layers": f"expected at least 1 for {self.decoder}, got 0"}


@dataclass(frozen=True)
class SegAugment(Settings):
    """Training augmentation of stage 2 (arguments of `weaktr.data.transforms.seg_train_transform`).

    Args:
        short_side: short side of the image at scale 1, in pixels.
        ratio: range of the random factor on `short_side`.
        max_ratio: the long side is at most ``short_side * max_ratio``.
        cat_max_ratio: the largest share of one label in a crop.
        flip: probability of a horizontal flip.
        photometric: photometric distortion.
    """

    short_side: Pixels = 520
    ratio: Between = (0.5, 2.0)
    max_ratio: Annotated[float, Field(ge=1, le=1000)] = 8.0
    cat_max_ratio: ShareAbove0 = 0.75
    flip: Share = 0.5
    photometric: bool = True

    def conflicts(self) -> dict[str, str]:
        """An image of one pixel cannot be cropped to anything else."""
        least = self.short_side * self.ratio[0]
        if least >= 2:
            return {}
        message = f"expected at least 2 pixels at the least ratio, got {least:.3g}"
        return {"short_side": f"{message} ({self.short_side} * {self.ratio[0]:g})"}


@dataclass(frozen=True)
class TrainSegConfig(Settings):
    """Stage 2: clipped cross-entropy on pseudo labels, SGD, polynomial schedule.

    Args:
        masks: "pseudo" (the label stage's), or "truth" for an upper bound that is no longer
            weakly supervised.
        epochs: passes over the pseudo-labelled images; "auto" = by their number, the fewer the
            more (`weaktr.training.amount`).
        batch_size: crops in a forward pass; "auto" = by their number, the fewer the smaller.
        accumulate: forward passes for an optimiser step.
        crop: side of the training crop, in pixels.
        crops: crops of each image in an epoch. They lie side by side in a batch, for which the
            image is read once.
        optimizer: "sgd" (nesterov, as published) or "adamw".
        lr: learning rate of the decoder.
        encoder_lr: factor on `lr` for the backbone; 0 freezes it, which is several times as fast.
        layer_decay: further factor for each layer, from the last to the first.
        momentum: of SGD.
        weight_decay: on matrices only.
        power: exponent of the polynomial schedule.
        min_lr: where the schedule ends, at most `lr`.
        warmup_steps: linear warm-up.
        clip_patch: side of the loss-clipping tiles, in pixels.
        clip_start: clipping begins once the batch's mean loss is at or below this.
        amp, compile, recompute, micro_batch, clip_grad, ema_decay, validate_every, augment: as in
            `TrainCamConfig`.
        labels: "hard", a label for each pixel, or "soft", shares of labels in each patch, from the
            files that `LabelConfig.soft` writes; a mask that was corrected by hand counts as it is.
        loss: "clipped" (of pixels), or of patches "soft_ce", the cross-entropy, or "collision"
            (`weaktr.ops.collision_cross_entropy`), which is made for soft labels.
        balance: how much more rare labels count with "soft_ce": their weight is their share of
            what is learnt, each photograph alike, to minus this power; 0 = not at all, 1 = all
            labels count the same. What is learnt to be likely stays
            (`weaktr.training.segmenter_losses.balancing`).
        loss_warmup: the share of the steps at the beginning that a "collision" loss leaves to
            "soft_ce".
        start: where a linear decoder begins: "random", or "discriminant", the linear discriminant
            of the labels in what the encoder gives before it is trained, for which each photograph
            passes once through it; what it gives is kept (`CacheConfig`). Suits a strong backbone
            and few photographs.

    Source: reference.md 41-46.
    """

    masks: Literal["pseudo", "truth"] = "pseudo"
    epochs: CountOrNone | Literal["auto"] = 100
    batch_size: Count | Literal["auto"] = 4
    accumulate: Count = 1
    crop: Pixels = 480
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: RateAbove0 = 1e-4
    encoder_lr: Rate = 0.1
    layer_decay: ShareAbove0 = 1.0
    momentum: ShareBelow1 = 0.9
    weight_decay: Rate = 0.0
    power: Rate = 0.9
    min_lr: Rate = 1e-5
    warmup_steps: CountOrNone = 0
    clip_patch: Pixels = 120
    clip_start: AtLeast0 = 1.2
    amp: Amp = renamed("auto", auto="none")
    compile: bool = False
    recompute: bool = without_effect(False, is_later=True)
    micro_batch: Count | Literal["auto"] = without_effect("auto", is_later=True)
    clip_grad: Above0 | None = None
    ema_decay: ShareBelow1 | None = None
    validate_every: CountOrNone = 0
    augment: SegAugment = SegAugment()
    crops: Annotated[int, Field(ge=1, le=1000)] = later(1)
    labels: Literal["hard", "soft"] = later("hard")
    loss: Literal["clipped", "soft_ce", "collision"] = later("clipped")
    loss_warmup: Share = later(0.1)
    balance: Share = later(0.0)
    start: Literal["random", "discriminant"] = later("random")

    def conflicts(self) -> dict[str, str]:
        """Soft labels are pseudo labels; the clipped loss takes none, and weights only soft_ce."""
        faults = _graph_of_pieces(self.micro_batch, self.compile)
        if self.balance and self.loss != "soft_ce":
            faults["balance"] = f"expected 0 for the loss {self.loss!r}, got {self.balance}"
        if self.labels == "hard":
            return faults
        if self.loss == "clipped":
            faults["loss"] = "expected soft_ce or collision for soft labels, got 'clipped'"
        if self.masks == "truth":
            faults["labels"] = "expected hard for true masks, got 'soft'"
        return faults


@dataclass(frozen=True)
class SizedTrainSegConfig(TrainSegConfig):
    """`TrainSegConfig` with numbers in place of "auto" (`weaktr.training.amount.sized`)."""

    epochs: CountOrNone = 100
    batch_size: Count = 4


@dataclass(frozen=True)
class PredictConfig(Settings):
    """Sliding-window inference over scales and flips.

    Args:
        max_side: an image with a longer side is predicted at this many pixels and its mask
            enlarged. Views of an image are then at most 8 times as long as wide. None = no limits.
        short_side: short side of the image at ratio 1, in pixels.
        ratios: image scales whose probabilities are averaged.
        flip: add the flipped image at each ratio.
        window: side of the square window, in pixels.
        stride: step between windows, in pixels.
        window_batch: most windows in a forward pass; on a GPU of several images together.
        ensemble: "plain" = the decoder's output; "published" = 0.8 * the output before the
            decoder's last block + its output.
        refiners, crf: as in `LabelConfig`; they start from the probabilities.
        queue_mb: as in `LabelConfig`.
        amp: as in `LabelConfig`.
        image_weight: factor on the log-probabilities of a model's `image_head`, which are added to
            the logits of the classes; 0 = predict without it.

    Source: reference.md 48-52.
    """

    short_side: Pixels = 520
    ratios: Scales = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    flip: bool = True
    window: Pixels = 480
    stride: Pixels = 320
    window_batch: Count = 8
    max_side: Pixels | None = later(1024, former=None)
    ensemble: Literal["plain", "published"] = "published"
    refiners: tuple[str | dict[str, Any], ...] = later(("crf",))
    crf: str | dict[str, Any] | None = "voc_seg"
    queue_mb: Count = without_effect(128, is_later=True)
    amp: Amp = "none"
    image_weight: AtLeast0 = later(1.0)

    def conflicts(self) -> dict[str, str]:
        """Pixels between windows would get no label."""
        if self.stride <= self.window:
            return {}
        return {"stride": f"expected at most window, {self.window} pixels, got {self.stride}"}


@dataclass(frozen=True)
class EvaluateConfig(Settings):
    """Scores against the true masks.

    Args:
        cam_images: images of the score split whose CAMs are computed again for the threshold
            curve (0 = no curve, None = all).
        thresholds: the curve's first, last and step.
    """

    cam_images: CountOrNone | None = None
    thresholds: Thresholds = (0.0, 0.8, 0.01)


@dataclass(frozen=True)
class CacheConfig(Settings):
    """Where what a frozen backbone gives for photographs is kept (`weaktr.data.array_cache`).

    No result depends on it.

    Args:
        folder: of the files; several runs may share it. None = ``features`` in the run's folder.
        memory_mb: MiB kept in memory.
        disk_gb: GiB of files; 0 = none are written.
    """

    folder: Text | None = None
    memory_mb: CountOrNone = 2048
    disk_gb: AtLeast0 = 20.0


@dataclass(frozen=True)
class Recipe(Settings):
    """Everything a run depends on.

    Args:
        name: of the recipe, one plain word; the run's folder is ``runs/NAME`` by default.
        stages: which of the stages belong to it, in their order.
        seed: of all randomness.
        device: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1", ...
        num_workers: processes that load images during a training; "auto" = as many as the model
            needs, by a measurement at its start (`weaktr.training.workers`). Changes no result.
        checkpoint_seconds: time between training checkpoints; changes no result.
        checkpoint_steps: optimiser steps between training checkpoints, or None.
        log_steps: optimiser steps between log entries, which read the losses from the device.
        cache: see `CacheConfig`.
    """

    name: Name = "voc12_deit_s"
    stages: Stages = get_args(StageName)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: Text = "auto"
    num_workers: Annotated[int, Field(ge=0, le=1024)] | Literal["auto"] = without_effect("auto")
    checkpoint_seconds: AtLeast0 = 600.0
    checkpoint_steps: Count | None = None
    log_steps: Count = 20
    data: DataConfig = DataConfig()
    cam_model: CamModelConfig = CamModelConfig()
    train_cam: TrainCamConfig = TrainCamConfig()
    label: LabelConfig = LabelConfig()
    seg_model: SegModelConfig = SegModelConfig()
    train_seg: TrainSegConfig = TrainSegConfig()
    predict: PredictConfig = PredictConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    cache: CacheConfig = without_effect(CacheConfig(), is_later=True)

    def conflicts(self) -> dict[str, str]:
        """Soft labels are written before they are learnt from; a discriminant is linear."""
        faults = {}
        if "label" in self.stages and self.train_seg.labels == "soft" and not self.label.soft:
            faults["label.soft"] = "expected true for train_seg.labels: soft, got False"
        if self.train_seg.start == "discriminant" and self.seg_model.decoder != "linear":
            expected = "expected random unless seg_model.decoder is linear"
            faults["train_seg.start"] = f"{expected}, got discriminant"
        return faults

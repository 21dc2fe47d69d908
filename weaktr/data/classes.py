"""Class lists and colours: PASCAL VOC 2012, COCO in its 90 and its 80 numbering.

There are three numberings; all other files use only the last two.

* *id*: the data set's own number of a class (VOC 1..20, COCO 1..90 with holes).
* *class index* C: 0-based position in `Classes.names`; image labels and logits use it.
* *label* L: what a pixel of a mask holds. 0 is background, ``k + 1`` is class index ``k``,
  255 is ignored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from weaktr.messages import CONTROL, brief

#: The label of pixels that count neither in a loss nor in a score.
IGNORE = 255
#: What to tell of masks whose only values are those of background and ignored pixels.
NUMBERED = f"{IGNORE} = ignored; a class has its number from 1 on"
#: Labels are stored in 8 bits beside background (0) and ignore (255).
MAX_CLASSES = 254


@dataclass(frozen=True)
class Classes:
    """The foreground classes of a data set, in class-index order.

    Args:
        names: C names, without background, not blank, all different (also without the blanks around
            them).
        ids: C numbers of the classes in the data set's own numbering, all different, 1..254
            (254 = `MAX_CLASSES`). Empty means 1..C.

    Raises:
        ValueError: a name is no text, blank, or holds a control character; names or ids repeat,
            lengths differ, or there are more than 254 classes.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.names) > MAX_CLASSES:
            raise ValueError(
                f"names: at most {MAX_CLASSES} classes fit 8-bit masks, got {len(self.names)}"
            )
        for name in self.names:
            if not isinstance(name, str) or not name.strip():
                raise ValueError(
                    f"names: expected text that is not blank, got {brief(name)}; YAML reads no, "
                    "yes, on, null and 1.0 as something else: put such names in quotes"
                )
        if wrong := [name for name in self.names if CONTROL.search(name)]:
            raise ValueError(
                f"names: expected names without control characters, got {wrong[0]!r:.60}"
            )
        if repeated := _repeated(name.strip() for name in self.names):
            raise ValueError(f"names: expected each class once, got {repeated[:5]} more than once")
        if not self.ids:
            object.__setattr__(self, "ids", tuple(range(1, len(self.names) + 1)))
        if len(self.ids) != len(self.names):
            raise ValueError(
                f"ids: expected one for each of {len(self.names)} names, got {len(self.ids)}"
            )
        if repeated := _repeated(self.ids):
            raise ValueError(f"ids: expected each id once, got {repeated[:5]} more than once")
        if outside := [i for i in self.ids if type(i) is not int or not 1 <= i <= MAX_CLASSES]:
            raise ValueError(f"ids: expected 1..{MAX_CLASSES}, got {outside[:5]}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_labels(self) -> int:
        """L = C + 1: the classes and background."""
        return len(self.names) + 1

    @property
    def label_names(self) -> tuple[str, ...]:
        """L names, ``"background"`` first, in brackets where a class has that name."""
        return ("(background)" if "background" in self.names else "background", *self.names)

    @cached_property
    def index_of_name(self) -> dict[str, int]:
        """Class index of each name."""
        return {name: index for index, name in enumerate(self.names)}

    @cached_property
    def index_of_id(self) -> dict[int, int]:
        """Class index of each id of the data set's own numbering."""
        return {identity: index for index, identity in enumerate(self.ids)}


def _repeated(values: Iterable[object]) -> list[object]:
    return [value for value, count in Counter(values).items() if count > 1]


def palette(num_labels: int = 256) -> np.ndarray:
    """The VOC colour of each label.

    The bits of a label go to red, green and blue in turn, the lowest bits to the highest bits of
    the channels: red = bit 0 -> 7, bit 3 -> 6, bit 6 -> 5; green and blue likewise from
    bits 1, 4, 7 and 2, 5.

    Args:
        num_labels: how many colours, 1..256.

    Returns:
        uint8 [num_labels, 3] RGB; 0 is black, 255 (ignore) is (224, 224, 192).

    Raises:
        ValueError: `num_labels` is outside 1..256.

    Source: VOCdevkit, ``VOCcode/VOClabelcolormap.m`` (the definition of the colours).
    """
    if not 1 <= num_labels <= 256:
        raise ValueError(f"num_labels: expected 1..256, got {num_labels}")
    labels = np.arange(num_labels)
    colours = np.zeros((num_labels, 3), np.uint8)
    for depth in range(3):
        for channel in range(3):
            bit = (labels >> (3 * depth + channel)) & 1
            colours[:, channel] |= (bit << (7 - depth)).astype(np.uint8)
    return colours


VOC_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip

#: The name of each COCO id 1..90.
COCO_NAMES_90 = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "street sign", "stop sign", "parking meter", "bench", "bird",
    "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "hat",
    "backpack", "umbrella", "shoe", "eye glasses", "handbag", "tie", "suitcase", "frisbee", "skis",
    "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard",
    "surfboard", "tennis racket", "bottle", "plate", "wine glass", "cup", "fork", "knife", "spoon",
    "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza",
    "donut", "cake", "chair", "couch", "potted plant", "bed", "mirror", "dining table", "window",
    "desk", "toilet", "door", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "blender", "book", "clock", "vase",
    "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip

#: Ids 1..90 that no COCO annotation uses.
COCO_UNUSED = (
    "street sign", "hat", "shoe", "eye glasses", "plate", "mirror", "window", "desk", "door",
    "blender",
)  # fmt: skip

COCO_NAMES_80 = tuple(name for name in COCO_NAMES_90 if name not in COCO_UNUSED)

VOC = Classes(VOC_NAMES)
#: 91 labels: a pixel's label is the COCO id (the numbering of the published WSSS results).
COCO90 = Classes(COCO_NAMES_90)
#: 81 labels: the 80 used classes in the order of their ids; `Classes.ids` are the 1..90 ids.
COCO80 = Classes(COCO_NAMES_80, tuple(COCO_NAMES_90.index(name) + 1 for name in COCO_NAMES_80))

"""A replacement for the package `pydensecrf`, computed by `weaktr.ops.dense_crf`.

import weaktr.pydensecrf.densecrf as dcrf
from weaktr.pydensecrf.utils import unary_from_softmax

docs/crf.md lists what differs.
"""

"""`pydensecrf` by another import, on `weaktr.ops.dense_crf` (docs/crf.md says what differs).

import weaktr.pydensecrf.densecrf as dcrf
from weaktr.pydensecrf.utils import unary_from_softmax
"""

"""The definition of `propagate_labels` in PyTorch: sparse rows of W, conjugate gradients."""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from weaktr.ops.propagate_labels import PropagationInputs

# of PyTorch, at the first sparse matrix of a process; products are all that is used of them
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")

#: Bytes of the rows of W that are computed together.
PIECE = 16 * 2**20
#: The largest residual of a solution, as a share of |Y|, label by label.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
#: Iterations between two looks at the residual, for which the host waits for the device.
ITERATIONS_A_LOOK = 8


@torch.no_grad()
def propagate_labels_torch(inputs: PropagationInputs) -> Tensor:
    """The formulas; a product with W + Wᵀ takes as long as there are neighbours."""
    chosen = neighbour_weights(inputs)
    chosen_by = chosen.t().to_sparse_csr()
    ones = inputs.scores.new_ones(len(inputs.scores), 1)
    degrees = chosen @ ones + chosen_by @ ones
    scale = torch.where(degrees > 0, degrees, torch.inf).rsqrt()

    def system(x: Tensor) -> Tensor:
        scaled = scale * x
        return x - inputs.alpha * scale * (chosen @ scaled + chosen_by @ scaled)

    # all eigenvalues of S are in -1..1, from which follows how many iterations are enough
    tolerance = TOLERANCE[inputs.scores.dtype]
    root = math.sqrt((1 + inputs.alpha) / (1 - inputs.alpha))
    rate = (root - 1) / (root + 1)
    most = math.ceil(math.log(tolerance / (2 * root)) / math.log(rate)) if rate > 0 else 0

    solution = inputs.scores.clone()
    residual = inputs.scores - system(solution)
    direction = residual.clone()
    squares = residual.square().sum(0)
    goal = tolerance**2 * inputs.scores.square().sum(0)
    for iteration in range(most):
        if iteration % ITERATIONS_A_LOOK == 0 and bool((squares <= goal).all()):
            break
        image = system(direction)
        curvature = (direction * image).sum(0)
        step = torch.where(curvature > 0, squares / curvature, 0)  # 0: solved to underflow
        solution += step * direction
        residual -= step * image
        former, squares = squares, residual.square().sum(0)
        direction = residual + torch.where(former > 0, squares / former, 0) * direction
    return solution


def neighbour_weights(inputs: PropagationInputs) -> Tensor:
    """W: of each patch the k largest weights of others, sparse [P, P]."""
    features, positions = F.normalize(inputs.features, dim=1), inputs.positions
    patches = len(features)
    count = min(inputs.neighbours, patches - 1)
    step = max(1, PIECE // (features.element_size() * patches))
    values, columns = [], []
    for start in range(0, patches, step):
        rows = slice(start, start + step)
        distances = torch.cdist(
            positions[rows], positions, compute_mode="donot_use_mm_for_euclid_dist"
        )
        weights = (features[rows] @ features.T).clamp_(min=0).pow_(inputs.gamma)
        weights *= distances.mul_(-inputs.sigma).exp_()
        own = torch.arange(len(weights), device=weights.device)
        weights[own, own + start] = -1  # never chosen: there are enough others
        largest = weights.topk(count, 1, sorted=False)
        values.append(largest.values.flatten())
        columns.append(largest.indices.flatten().int())
    first = torch.arange(patches + 1, dtype=torch.int32, device=features.device) * count
    return torch.sparse_csr_tensor(
        first, torch.cat(columns), torch.cat(values), (patches, patches), check_invariants=False
    )

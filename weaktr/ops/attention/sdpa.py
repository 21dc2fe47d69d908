"""The kernels behind `F.scaled_dot_product_attention`, called by their own names.

Each of them finds the log-sum-exp of every row, which SDPA keeps to itself. `kernel_of` asks which
one SDPA would take, `attend_by` runs that one and returns the log-sum-exp too. `gradients_by` is
its backward pass for an output and a log-sum-exp that may come from elsewhere. `attend_packed` is
what SDPA does not offer: images of different sizes in one launch.

cuDNN plans its kernel anew for every number of images and tokens, for 43 ms of the host (H200,
torch 2.11). Trainings have one shape and get their time back. Without a gradient shapes are as many
as photographs, and "flash" takes its place.

The operators have no stable interface; their arguments are those of torch 2.11 to 2.14.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from weaktr.ops.attention import Packing
from weaktr.ops.tracing import is_exporting

aten = torch.ops.aten

#: What SDPA may choose on CUDA, where we can call it ourselves.
ON_CUDA = {
    SDPBackend.FLASH_ATTENTION.value: "flash",
    SDPBackend.EFFICIENT_ATTENTION.value: "efficient",
    SDPBackend.CUDNN_ATTENTION.value: "cudnn",
}
#: "efficient" rounds the rows of its log-sum-exp up to a multiple of this.
ROWS_OF_EFFICIENT = 32
#: Tokens of the inputs that torch.compile asks with.
TOKENS_OF_CHOICE = 256
#: SDPA pads head widths to a multiple of this for "flash".
WIDTHS_OF_FLASH = 8


def kernel_of(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> str:
    """The kernel to take for q, k, v [B, H, N, d]: "cpu", "flash", "efficient" or "cudnn".

    It is the one of SDPA's choice, but "flash" in the place of "cudnn" where there is no gradient.

    "" where it takes none of these, would change its inputs before, drops weights, or is exported
    (exporters know the public function alone). What a user has switched off (`sdpa_kernel`) is not
    taken.
    """
    mixed = not q.dtype == k.dtype == v.dtype
    if dropout > 0 or mixed or q.numel() == 0 or is_exporting():
        return ""
    if q.device.type == "cpu":
        return "cpu"
    if q.device.type != "cuda" or torch.version.hip or is_cast(q):
        return ""
    name = ON_CUDA.get(choice(q, k, v), "")
    return "" if name == "flash" and q.shape[-1] % WIDTHS_OF_FLASH else name


def choice(q: Tensor, k: Tensor, v: Tensor) -> int:
    """The choice for inputs of such layouts and dtypes: the value of an `SDPBackend`."""
    if not torch.compiler.is_compiling():
        return _choice_now(q, k, v)
    if q.stride(3) != 1 or k.stride(3) != 1 or v.stride(3) != 1:
        return SDPBackend.MATH.value
    order = "token, head" if q.stride(1) < q.stride(2) else "head, token"
    return choice_for(str(q.device), q.dtype, q.shape[1], q.shape[3], order, is_trained(q, k, v))


def is_trained(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether there will be a gradient."""
    return torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)


def _choice_now(q: Tensor, k: Tensor, v: Tensor) -> int:
    """`choice`, which asks SDPA."""
    number = int(torch._fused_sdp_choice(q, k, v))
    is_cudnn = number == SDPBackend.CUDNN_ATTENTION.value
    if is_cudnn and not is_trained(q, k, v) and torch.backends.cuda.flash_sdp_enabled():
        return SDPBackend.FLASH_ATTENTION.value
    return number


@torch.compiler.assume_constant_result  # torch.compile asks once, for the graph that it makes
def choice_for(
    device: str, dtype: torch.dtype, heads: int, dim: int, order: str, trained: bool
) -> int:
    """`choice` by what does not depend on the number of images and tokens.

    Args:
        device, dtype: of q, k and v.
        heads, dim: H and d.
        order: how q lies in memory, and k and v are taken to lie: "token, head" (views of one
            projection) or "head, token".
        trained: whether there will be a gradient.
    """
    empty = torch.empty(1, TOKENS_OF_CHOICE, 3, heads, dim, dtype=dtype, device=device)
    qkv = empty.permute(2, 0, 3, 1, 4)
    if order == "head, token":
        qkv = qkv.contiguous()
    with torch.set_grad_enabled(trained):
        q, k, v = qkv.requires_grad_(trained).unbind()
        return _choice_now(q, k, v)


def is_cast(q: Tensor) -> bool:
    """Whether autocast has SDPA work in another dtype."""
    kind = q.device.type
    return torch.is_autocast_enabled(kind) and q.dtype != torch.get_autocast_dtype(kind)


def attend_by(kernel: str, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ / √d) v and its row log-sum-exp, by a kernel that `kernel_of` has named.

    Args:
        kernel: "cpu", "flash", "efficient" or "cudnn".
        q, k, v: [B, H, N, d].

    Returns:
        (output [B, H, N, d] with a gradient, log-sum-exp [B, H, N] without, float32 or wider).
    """
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))  # as kernels want
    if kernel == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    elif kernel == "flash":
        out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v)
    elif kernel == "efficient":
        out, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, None, True)
    else:
        out, lse, *_ = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)
    return out, lse.detach().flatten(2)[..., : q.shape[2]]  # of "cudnn" [B, H, N, 1]


def attend_packed(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
    """`attend_by` "flash" of packed images in one launch, without gradient.

    Args:
        q, k, v: [1, H, ΣN, d] of float16 or bfloat16, on CUDA.
        packing: where the images lie.

    Returns:
        (output [1, H, ΣN, d], log-sum-exp [1, H, ΣN] float32).
    """
    by_token = (x[0].transpose(0, 1) for x in (q, k, v))
    starts, most = packing.starts, max(packing.lengths)
    sizes = (starts, starts, most, most)
    out, lse, *_ = aten._flash_attention_forward(*by_token, *sizes, 0.0, False, False)
    return out.transpose(0, 1)[None], lse[None]


def gradients_by(
    kernel: str, gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in q, k and v [B, H, N, d] by the backward pass of a kernel.

    Args:
        kernel: see `attend_by`.
        gradient: [B, H, N, d] in the output.
        q, k, v, out: [B, H, N, d].
        lse: [B, H, N] row log-sum-exp, contiguous.
    """
    given, tokens = (gradient, q, k, v), q.shape[2]
    if kernel == "cpu":
        backward = aten._scaled_dot_product_flash_attention_for_cpu_backward
        gradients = backward(*given, out, lse, 0.0, False)
    elif kernel == "efficient":
        rows = F.pad(lse, (0, -tokens % ROWS_OF_EFFICIENT), value=math.inf)
        backward = aten._scaled_dot_product_efficient_attention_backward
        needed = [True, True, True, False]
        gradients = backward(*given, None, out, rows, *_no_dropout(q), 0.0, needed)
    elif kernel == "flash":
        packing = (None, None, tokens, tokens)
        backward = aten._scaled_dot_product_flash_attention_backward
        gradients = backward(*given, out, lse, *packing, 0.0, False, *_no_dropout(q))
    else:
        packing = (None, None, tokens, tokens)
        backward = aten._scaled_dot_product_cudnn_attention_backward
        gradients = backward(
            *(*given, out, lse[..., None], *_no_dropout(q), None, *packing, 0.0, False)
        )
    return gradients[0], gradients[1], gradients[2]


def _no_dropout(q: Tensor) -> tuple[Tensor, Tensor]:
    """State of the random numbers, which nobody reads without dropout."""
    unread = q.new_empty((), dtype=torch.int64)
    return unread, unread

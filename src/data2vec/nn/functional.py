"""Memory for a little arithmetic: what is cheap to make again is not kept for backward."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def norm_gelu(x: Tensor, norm: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """GELU of the layer norm of `x` (…, D), keeping only `x`. `norm`: one with parameters, in place of one without."""

    def both(x: Tensor) -> Tensor:
        return F.gelu(F.layer_norm(x, x.shape[-1:]) if norm is None else norm(x))

    return checkpoint(both, x, use_reentrant=False, preserve_rng_state=False) if x.requires_grad else both(x)

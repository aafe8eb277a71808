"""How the terms pull at the trunk that all heads share: how hard each, and which against which.

Taken at activations, never at weights: those may lie in parts on other ranks, and their gradients
are the engine's to gather.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

GRAM = "trunk/gram"
"""Name under which the products of a step are shared between the workers."""
REFERENCE = "diffusion"
"""Term that the others are compared with; the first one, where there is no such term."""


def gram(
    means: Mapping[str, Float[Tensor, ""]], trunk: Sequence[Tensor], num_clips: int
) -> Float[Tensor, "K K"]:
    """Products of the terms' gradients at the trunk, each with each, averaged over the clips.

    Of the value of every clip by itself, so that the mean over micro-batches and workers is what
    one large batch would give. Leaves the graph as it is, for the backward pass to come.

    Args:
        means: unweighted, over the clips of a micro-batch.
    """
    slopes = torch.stack([_slope(mean, trunk) for mean in means.values()])
    return num_clips * slopes @ slopes.T


def pulls(names: Sequence[str], products: Float[Tensor, "K K"]) -> dict[str, float]:
    """Root of the mean square gradient of each term, and its cosine with that of the reference; 0
    where there is no gradient."""
    reference = names.index(REFERENCE) if REFERENCE in names else 0
    sizes = products.diagonal().sqrt()
    along = products[reference] / (sizes[reference] * sizes).clamp_min(1e-30)
    values = {f"gradient/{name}": float(sizes[i]) for i, name in enumerate(names)}
    cosines = {f"cosine/{name}": float(along[i]) for i, name in enumerate(names)}
    del cosines[f"cosine/{names[reference]}"]  # with itself
    return values | cosines


def _slope(mean: Float[Tensor, ""], trunk: Sequence[Tensor]) -> Float[Tensor, "N"]:
    """Gradient of a term, all parts of the trunk end to end; 0 where it does not reach."""
    parts: Sequence[Tensor | None] = [None] * len(trunk)
    if mean.requires_grad:
        parts = torch.autograd.grad(mean, list(trunk), retain_graph=True, allow_unused=True)
    filled = [
        torch.zeros_like(at) if part is None else part
        for part, at in zip(parts, trunk, strict=True)
    ]
    return torch.cat([part.float().flatten() for part in filled])

"""Drawing codes from logits, with the numbers of the clip."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hstvg.generator.generator import Sampling


def draw_codes(
    logits: Float[Tensor, "B C N L"], uniform: Float[Tensor, "B C N L"], settings: Sampling
) -> Int[Tensor, "B C N"]:
    """A code per channel and token, by the Gumbel maximum of what top-k and top-p leave.

    Args:
        uniform: in [0, 1), the randomness.
    """
    if settings.temperature == 0:
        return logits.argmax(-1)
    logits = keep_likely(logits / settings.temperature, settings.top_k, settings.top_p)
    gumbel = -(-uniform.clamp_min(1e-9).log()).clamp_min(1e-9).log()
    return (logits + gumbel).argmax(-1)


def keep_likely(
    logits: Float[Tensor, "*axes L"], top_k: int, top_p: float
) -> Float[Tensor, "*axes L"]:
    """Logits with all but the likeliest codes at -inf; the likeliest one always stays.

    Args:
        top_k: how many to keep; 0 is all.
        top_p: keep the fewest that have this probability together.
    """
    ranked, order = logits.sort(dim=-1, descending=True)
    rank = torch.arange(logits.shape[-1], device=logits.device)
    keep = rank < (top_k or logits.shape[-1])
    probability = ranked.softmax(-1)
    keep = keep & ((probability.cumsum(-1) - probability < top_p) | (rank == 0))
    ranked = ranked.masked_fill(~keep, -torch.inf)
    return torch.empty_like(logits).scatter(-1, order, ranked)

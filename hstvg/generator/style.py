"""StyleAdapter: a clip is to look as another one does, whatever that shows.

What it reads of the other are statistics of its latent, and none of its places, so content cannot
leak. They speak on two paths that are silent at first: as a vector that modulates every block, and
as tokens in a cross-attention of their own beside that to the text (arXiv 2308.06721, 2312.00330).
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hstvg.nn.attention import Heads
from hstvg.nn.conv import zero_init
from hstvg.nn.haar_bank import style_statistics
from hstvg.nn.norm import ChannelNorm
from hstvg.paths.draws import Draws
from hstvg.paths.pyramid_flow import PyramidFlow
from hstvg.types import LatentBatch, Pair, PathSample, StyleReference

LATE = 0.5
"""tau from which the clean latent that is guessed may look like one. Before, it is the mean of many
and smoother than each: to make it look right would be to over-saturate it."""


@dataclass(frozen=True, kw_only=True)
class Styling:
    """What a config says of the adapter.

    Args:
        width: of a style token.
        tokens: how many there are.
        dropout: share of the references that are not looked at in training, for guidance.
    """

    width: int = 32
    tokens: int = 4
    dropout: float = 0.1

    def draw(self, batch: LatentBatch, draws: Draws) -> StyleReference | None:
        """The references of a batch without those that are dropped."""
        if batch.style is None:
            return None
        dropped = draws.coins("style_dropout", self.dropout)
        kept = ~torch.tensor(dropped, device=batch.style.known.device)
        return replace(batch.style, known=batch.style.known & kept)


class StyleAdapter(nn.Module):
    """Statistics of a reference as a vector and a few tokens, all of them 0 where there is none.

    Args:
        num_statistics: S.
        signal_width: of the vector.
    """

    def __init__(self, settings: Styling, num_statistics: int, signal_width: int) -> None:
        super().__init__()
        self.num_statistics = num_statistics
        self.num_tokens, width = settings.tokens, settings.width
        self.read = nn.Sequential(
            nn.Linear(num_statistics, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        # Without a bias, as all that follows: where nothing is known nothing is said.
        self.vector = zero_init(nn.Linear(width, signal_width, bias=False))
        self.tokens = nn.Linear(width, settings.tokens * width, bias=False)

    def forward(
        self, style: StyleReference | None, signal: Float[Tensor, "B D"]
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B N E"]]:
        """What is added to the signal, and the tokens."""
        seen = signal.new_zeros(len(signal), self.num_statistics)
        known = signal.new_zeros(len(signal), 1)
        if style is not None:
            seen, known = style.statistics.to(signal), style.known[:, None].to(signal)
        code = self.read(seen) * known
        return self.vector(code), self.tokens(code).unflatten(1, (self.num_tokens, -1))


class StyleAttention(nn.Module):
    """What every cell takes from the tokens of a style; nothing from tokens that are 0."""

    def __init__(self, width: int, token_width: int, *, head_dim: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.heads = Heads(width, token_width, head_dim)
        self.leave = zero_init(nn.Linear(width, width, bias=False))

    def forward(
        self, x: Float[Tensor, "B D t h w"], tokens: Float[Tensor, "B N E"]
    ) -> Float[Tensor, "B D t h w"]:
        q, k, v = self.heads(self.norm(x).flatten(2).transpose(1, 2), tokens)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        return self.leave(mixed).transpose(1, 2).reshape(x.shape)


def pair_looks(flow: PyramidFlow, path: PathSample, velocity: Float[Tensor, "B n C t h w"]) -> Pair:
    """Statistics of the clean latents that n guessed velocities of each clip point to, beside those
    of the true one; weighed by whether their time is late enough.

    Args:
        path: of the finest level, n rows per clip; further channels than C are not looked at.
    """
    count, C = velocity.shape[1:3]
    scales = flow.scales(path.x.shape[2:])
    x, v = path.x[:, :C].float(), velocity.flatten(0, 1).float()
    clean = flow.clean(x, v, path.tau, len(scales) - 1, scales)
    guess, target = (
        style_statistics(z).unflatten(0, (-1, count)) for z in (clean, path.end[:, :C])
    )
    return Pair(guess=guess, target=target, weight=(path.tau > LATE).float().view(-1, count, 1))

"""StyleAdapter: a clip is to look as another one does, whatever that shows.

What it reads of the other are statistics of its latent, and none of its places, so content cannot
leak. They speak on two paths that are silent at first: as a vector that modulates every block, and
as tokens in a cross-attention of their own beside that to the text (arXiv 2308.06721, 2312.00330).
"""

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor, nn

from hstvg.generator.cue import Cue
from hstvg.generator.ranges import check_ranges
from hstvg.nn.conv import zero_init
from hstvg.nn.haar_bank import style_statistics
from hstvg.paths.draws import Draws
from hstvg.paths.pyramid_flow import PyramidFlow
from hstvg.types import Condition, LatentBatch, Pair, PathSample, StyleReference


@dataclass(frozen=True, kw_only=True)
class Styling:
    """What a config says of the adapter.

    Args:
        width: of a style token.
        tokens: how many there are.
        dropout: share of the references that are not looked at in training, for guidance.
        late: tau from which the clean latent that is guessed is to look like one. Before, it is the
            mean of many and smoother than each: to make it look right would be to over-saturate it.
    """

    width: int = 32
    tokens: int = 4
    dropout: float = 0.1
    late: float = 0.5

    def __post_init__(self) -> None:
        wrong = {
            "width": self.width < 1,
            "tokens": self.tokens < 1,
            "dropout": not 0 <= self.dropout <= 1,
            "late": not 0 <= self.late < 1,
        }
        check_ranges(self, wrong, group="style.")

    def draw(self, batch: LatentBatch, draws: Draws) -> StyleReference | None:
        """The references of a batch without those that are dropped."""
        if batch.style is None:
            return None
        kept = draws.uniform("style_dropout") >= self.dropout
        return replace(batch.style, known=batch.style.known & kept)


class StyleAdapter(Cue):
    """Statistics of a reference as a vector and a few tokens, all of them 0 where there is none.

    Args:
        num_statistics: S.
        width: of the vector.
    """

    def __init__(self, settings: Styling, num_statistics: int, width: int) -> None:
        super().__init__()
        self.num_statistics = num_statistics
        self.num_tokens, self.token_width = settings.tokens, settings.width
        own = settings.width
        self.read = nn.Sequential(
            nn.Linear(num_statistics, own), nn.SiLU(), nn.Linear(own, own), nn.SiLU()
        )
        # Without a bias, as all that follows: where nothing is known nothing is said.
        self.vector = zero_init(nn.Linear(own, width, bias=False))
        self.spread = nn.Linear(own, settings.tokens * own, bias=False)

    def signal(
        self, signal: Float[Tensor, "B D"], condition: Condition
    ) -> Float[Tensor, "B D"] | None:
        return self.vector(self._code(condition.style, signal))

    def tokens(
        self, signal: Float[Tensor, "B D"], condition: Condition
    ) -> Float[Tensor, "B N E"] | None:
        return self.spread(self._code(condition.style, signal)).unflatten(1, (self.num_tokens, -1))

    def _code(
        self, style: StyleReference | None, signal: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B E"]:
        seen = signal.new_zeros(len(signal), self.num_statistics)
        known = signal.new_zeros(len(signal), 1)
        if style is not None:
            seen, known = style.statistics.to(signal), style.known[:, None].to(signal)
        return self.read(seen) * known


def pair_looks(
    flow: PyramidFlow, path: PathSample, velocity: Float[Tensor, "B n C t h w"], late: float
) -> Pair:
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
    return Pair(guess=guess, target=target, weight=(path.tau >= late).float().view(-1, count, 1))

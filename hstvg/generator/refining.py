"""How a refiner is made for a codec, and trained: flawed clips, and what should become of them.

What goes in is detached, and no other part of the generator takes part: the refiner learns to mend
flaws that are made, not those that its generator would learn to leave to it.
"""

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hstvg.generator.flaws import Flaws
from hstvg.generator.neighbours import Before, find_neighbours
from hstvg.generator.refiner import CrossFrameRefiner
from hstvg.nn.warp import warp
from hstvg.paths.draws import Draws
from hstvg.types import Codec, LatentBatch, Pair, Prediction

ALONE = 0.5
"""Share of clips that are refined as if nothing came before them."""


@dataclass(frozen=True, kw_only=True)
class FlawedClip:
    """Blocks with made flaws, and as they were."""

    flawed: Float[Tensor, "B C t h w"]
    clean: Float[Tensor, "B C t h w"]
    motion: Float[Tensor, "B 2 t h w"]
    """Channels, without flaws."""
    trust: Float[Tensor, "B 1 t h w"]
    before: Before
    """With flaws of its own."""


@dataclass(frozen=True, kw_only=True)
class Refining:
    """What a config says of the refiner; the rest follows from the codec."""

    num_frames: int
    """Of a training clip."""
    fps: float
    width: int = 48
    depth: int = 2
    steps: int = 2
    flaws: Flaws = field(default_factory=Flaws)

    def refiner(self, codec: Codec) -> CrossFrameRefiner:
        """For latents of a codec. The time between two latent frames is taken as the clip's
        through their number, a little short where a first frame is alone in its group."""
        return CrossFrameRefiner(
            channels=codec.channels,
            seconds=self.num_frames / self.fps / codec.schedule.size.t,
            width=self.width,
            depth=self.depth,
            steps=self.steps,
        )

    @torch.no_grad()
    def example(self, batch: LatentBatch, codec: Codec, draws: Draws) -> FlawedClip:
        """Clips whose first frame stands for the block before and whose others are the block.

        Raises:
            ValueError: the clips came without motion.
        """
        z, motion, trust = batch.latent.float(), batch.motion, batch.motion_confidence
        if motion is None or trust is None:
            raise ValueError("a refiner carries frames along their motion; set data.motion=true")
        first = min(1, z.shape[2] - 1)  # the block of a single frame is that frame
        flawed = self.flaws.miswritten(z, codec, draws)
        follows = [first == 1 and not alone for alone in draws.coins("alone", ALONE)]
        before = Before(
            latent=self.flaws.unsteady(flawed[:, :, :1], draws.within("before")),
            motion=motion[:, :, :1],
            known=torch.tensor(follows, device=z.device),
        )
        return FlawedClip(
            flawed=self.flaws.unsteady(flawed[:, :, first:], draws),
            clean=z[:, :, first:],
            motion=motion[:, :, first:],
            trust=trust[:, :, first:],
            before=before,
        )


def with_refined(
    prediction: Prediction, refiner: CrossFrameRefiner, clip: FlawedClip
) -> Prediction:
    """The prediction, and in it what the refiner makes of a flawed clip."""
    steps = (clip.flawed, *refiner(clip.flawed, clip.motion, clip.before))
    # Of the block alone: the change from the frame before it, which keeps its flaws, has no target.
    beside = find_neighbours(clip.clean, clip.motion, refiner.seconds)
    earlier_trust = F.pad(clip.trust[:, :, :-1], (0, 0, 0, 0, 1, 0))
    trust = clip.trust * warp(earlier_trust, beside.back)
    change = beside.change(clip.clean)
    return replace(
        prediction,
        refined=tuple(Pair(guess=z, target=clip.clean) for z in steps),
        refined_change=tuple(
            Pair(guess=beside.change(z), target=change, weight=trust) for z in steps
        ),
    )

"""What every generator can do, and how it is told to sample."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, get_args, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from hstvg.generator.ranges import check_ranges
from hstvg.paths.draws import Draws
from hstvg.paths.solver import Solver
from hstvg.scales import Scale
from hstvg.scene.text import TextEncoder
from hstvg.types import (
    Codec,
    Condition,
    Hints,
    LatentBatch,
    LatentPyramid,
    Prediction,
    Recalled,
)

Remember = Callable[[Recalled | None, Tensor], Recalled]
"""(what is known of the blocks before, None at the first; the latent of the block that is finished)
-> what the block after is told."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to sample; each generator reads what concerns it."""

    steps: int = 12
    """Solver steps: per pyramid level of a denoiser, per rung of a flow head."""
    solver: Solver = "euler"
    """Of a denoiser. A step of heun costs two evaluations of the network, so that half the steps
    are as dear; flow heads keep to euler."""
    guidance: float = 5.0
    """Weight of classifier-free guidance (arXiv 2207.12598); 1 is none. Of a next-scale transformer
    that of the last scale, to which it rises evenly from half of it."""
    temperature: float = 1.0
    """Of code probabilities; 0 takes the likeliest."""
    top_k: int = 0
    """Codes per channel to draw from, the likeliest first; 0 is all."""
    top_p: float = 0.5
    """Draw from the likeliest codes that have this probability together."""
    kappa: int | None = None
    """Scales that the next-scale transformer writes before the denoiser goes on; None is as many
    as the generator was made for."""
    motion_noise: float = 0.0
    """Alpha of a denoiser that was trained with MotionNoise. Above 0 it samples twice, with white
    noise first, since only a sample says how each place of the clip is to move."""
    motion_guidance: float = 0.0
    """Weight of inner guidance, away from what a denoiser would make if it did not see how its own
    sample moves; above 0 it is asked once more per step of the first level."""
    style_guidance: float = 1.0
    """Weight of a style reference; at any other than 1 a denoiser is asked once more per step."""

    def __post_init__(self) -> None:
        wrong = {
            "steps": self.steps < 1,
            "temperature": self.temperature < 0,
            "top_k": self.top_k < 0,
            "top_p": not 0 <= self.top_p <= 1,
            "motion_noise": not 0 <= self.motion_noise < 1,
        }
        check_ranges(self, wrong)
        if self.solver not in get_args(Solver):
            raise ValueError(f"solver={self.solver}: choose from {', '.join(get_args(Solver))}")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Sampling":
        """Those of a config that has keys of these names."""
        return cls(**{field.name: config[field.name] for field in fields(cls)})


@runtime_checkable
class Generator(Protocol):
    """Learns to make latents from conditions, and makes them."""

    @property
    def latent_size(self) -> Scale:
        """Of one block."""
        ...

    text: TextEncoder

    @property
    def kappas(self) -> Sequence[int]:
        """How many scales its next-scale transformer may write: (0,) if it has none."""
        ...

    context_frames: int
    """Latent frames that a block may be given to begin with; 0 if none."""

    takes_style: bool
    """Whether a sample may have a style reference."""

    takes_layout: bool
    """Whether it may be told where objects are."""

    @property
    def remember(self) -> Remember | None:
        """None if a block is told nothing of those before it, but its first frames perhaps."""
        ...

    def example(
        self, batch: LatentBatch, codec: Codec, draws: Draws, known: Condition | None = None
    ) -> Any:
        """A batch as it is trained on, without gradient.

        Args:
            known: the captions as the frozen text encoder encodes them, where that is done already.
        """
        ...

    def __call__(self, example: Any) -> Prediction: ...

    def sample(
        self,
        captions: Sequence[str],
        codec: Codec,
        draws: Draws,
        settings: Sampling,
        given: Float[Tensor, "B C r h w"] | None = None,
        hints: Hints | None = None,
    ) -> LatentPyramid:
        """Latents for captions, coarse to fine.

        Args:
            given: standardised latent frames that the clips begin with; the generator must know
                how to continue.
            hints: of the kinds that the generator takes.
        """
        ...

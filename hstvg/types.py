"""The vocabulary: the records that travel through the house and the protocols that act on them.

Axes      B batch, T frames, C H W, L text tokens, O objects, D width, K scales.
Primes    T' H' W' (written t h w in shapes) are the axes of the tokenizer's latent.
tau       path time in [0, 1], noise at 0 and data at 1. Not a block index.
scale k   rung of the pyramid, coarse to fine. Not a denoising step.
velocity  d x / d tau along a path. Not motion.
motion    displacement in the picture, as a fraction of the frame width per second.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from hstvg.scales import Rung, Scale, ScaleSchedule


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What clips show where, as far as it is known: the objects of their scenes, far to near."""

    boxes: Float[Tensor, "B O t 4"]
    """x0, y0, x1, y1 on screen, fractions of the frame that may reach beyond it, in the middle of
    each frame: of a latent, or of a VideoBatch. 0 where there is no object."""
    present: Bool[Tensor, "B O"]
    """True at objects, which come first; none of a clip whose scene nobody knows."""
    labels: tuple[tuple[str, ...], ...]
    """Per clip O times what it is, like "red circle"; empty where there is no object."""


@dataclass(frozen=True, kw_only=True)
class VideoBatch:
    """Clips as a model meets them, each with its place in the order of the epoch."""

    pixels: Float[Tensor, "B 3 T H W"]
    """Range [-1, 1]."""
    fps: Float[Tensor, "B"]
    captions: tuple[str, ...]
    positions: Int[Tensor, "B"]
    """Place of each clip in the plan: all its randomness derives from it, never from a rank."""
    keys: tuple[str, ...]
    motion: Float[Tensor, "B 2 T Hm Wm"] | None = None
    """Forward optical flow (x, y) in frame widths per second, on a coarse grid; 0 where unknown.
    None where nobody asked for it."""
    motion_confidence: Float[Tensor, "B 1 T Hm Wm"] | None = None
    """Trust in `motion`, 0 to 1; 0 at the last frame, which has no successor."""
    layout: Layout | None = None
    """At each of the T frames; None where nobody asked for it."""

    def __len__(self) -> int:
        return len(self.captions)


@dataclass(frozen=True, kw_only=True)
class StyleReference:
    """How clips are to look: as others do, of which no more is known than this."""

    statistics: Float[Tensor, "B S"]
    """As `hstvg.nn.haar_bank` takes them of a latent."""
    known: Bool[Tensor, "B"]
    """False at clips without a reference, whose statistics are not read."""


@dataclass(frozen=True, kw_only=True)
class LatentBatch:
    """Clips that were encoded before the training, on the grid of their latent."""

    latent: Float[Tensor, "B C t h w"]
    """Standardised, as `Tokenizer.encode` gives it."""
    captions: tuple[str, ...]
    positions: Int[Tensor, "B"]
    """As those of a VideoBatch."""
    keys: tuple[str, ...]
    motion: Float[Tensor, "B 2 t h w"] | None = None
    """Motion channels: pooled to latent cells and compressed, unlike those of a VideoBatch; None
    where nobody asked for it."""
    motion_confidence: Float[Tensor, "B 1 t h w"] | None = None
    text: Float[Tensor, "B L D"] | None = None
    """Of the captions, by a frozen text encoder; None where captions are not encoded yet."""
    text_mask: Bool[Tensor, "B L"] | None = None
    """True at real tokens; there whenever `text` is."""
    style: StyleReference | None = None
    """Of other clips, whose style a caption does then not name; None where nobody asked for it."""
    layout: Layout | None = None
    """At each of the t frames; None where nobody asked for it."""

    def __len__(self) -> int:
        return len(self.captions)


TrainingBatch = VideoBatch | LatentBatch
"""What a stream may give to a stage."""


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """The coarse scales of a latent that are written already."""

    state: Float[Tensor, "B C t h w"]
    """z_hat_kappa, at the size of the latent; zero where kappa is 0."""
    kappa: Int[Tensor, "B"]
    corruption: Float[Tensor, "B"]
    """Share of its codes that are wrong, as far as is known."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """The frames that clips are to begin with."""

    frames: Float[Tensor, "B C t h w"]
    """Of the latent, at its full length."""
    present: Bool[Tensor, "B t"]
    """True at those that a clip is given; what stands at the others is not read."""
    noise: Float[Tensor, "B"]
    """Deviation of the noise on them; 0 where a clip is given none."""


@dataclass(frozen=True, kw_only=True)
class Objects:
    """What clips are to show where, in the words of a text encoder."""

    layout: Layout
    """At the frames of the latent."""
    meaning: Float[Tensor, "B O D"]
    """Of the labels."""


@dataclass(frozen=True, kw_only=True)
class KeyValues:
    """Tokens as one layer of attention reads them: keys, rotated, and values of A heads."""

    keys: Float[Tensor, "B A M d"]
    values: Float[Tensor, "B A M d"]


@dataclass(frozen=True, kw_only=True)
class Recalled:
    """What a denoiser has read of the blocks before the one that it writes."""

    layers: tuple[KeyValues, ...]
    """Of each of its layers that read them: a summary of every block, oldest first, then the pages
    of the last one and the cells of its end."""
    size: Scale
    """Of the latent of a block."""
    known: Bool[Tensor, "B S"]
    """False at blocks that a clip has not."""
    noise: Float[Tensor, "B"]
    """Deviation of the noise on them, as far as is known; 0 where a clip has none."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """All that a generator may know about the clip it is to make."""

    text: Float[Tensor, "B L D"]
    text_mask: Bool[Tensor, "B L"]
    """True at real tokens."""
    alpha: Float[Tensor, "B"] | None = None
    """How much of the noise moves with the clip, as MotionNoise means it; None is none, or 0."""
    prefix: Prefix | None = None
    """None where no scale is written, kappa = 0."""
    given: Given | None = None
    """None where no clip is given frames."""
    style: StyleReference | None = None
    """None where no clip has a reference."""
    objects: Objects | None = None
    """None where nobody knows what is to be where."""
    history: Recalled | None = None
    """None where no block is before."""


@dataclass(frozen=True, kw_only=True)
class Particles:
    """The particles of moving noise between two frames: all that it needs to go on from there."""

    place: Float[Tensor, "B P 2"]
    """x, y at the frame that comes, in cells of the grid; outside it where a slot is free."""
    speed: Float[Tensor, "B P"]
    """Of the way there, in cells per frame."""
    values: Float[Tensor, "B C P"]
    frame: int
    """Number of the frame that comes, counted from the beginning of the first block."""


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What a generator may be told of the clips it is to make, besides captions and frames."""

    style: StyleReference | None = None
    layout: Layout | None = None
    """At the frames of the latent."""
    past: Recalled | None = None
    """The blocks before those that are made, as the generator remembers them."""
    particles: Particles | None = None
    """Where the moving noise of the block before is at their first frame."""


@dataclass(frozen=True, kw_only=True)
class LatentPyramid:
    """One latent seen at several scales, coarse to fine: the common type of both proposals."""

    levels: tuple[Float[Tensor, "B C _t _h _w"], ...]
    particles: Particles | None = None
    """Of a sample whose noise moved: where it is at the first frame of the next block."""

    @property
    def finest(self) -> Float[Tensor, "B C t h w"]:
        return self.levels[-1]


@dataclass(frozen=True, kw_only=True)
class Split:
    """A latent in the rungs of its schedule, in the order in which they are written."""

    pooled: tuple[Float[Tensor, "B C _t _h _w"], ...]
    """a_k: what each rung is asked to say."""
    codes: tuple[Int[Tensor, "B C _t _h _w"], ...]
    """Its codes per channel; also where the residuals were not quantised."""
    residuals: tuple[Float[Tensor, "B C _t _h _w"], ...]
    """r_k: what it said."""
    states: tuple[Float[Tensor, "B C _t h w"], ...]
    """z_hat_k of the rung's segment, at full size."""


@dataclass(frozen=True, kw_only=True)
class PathSample:
    """A point on a probability path, its two ends and the velocity that joins them."""

    start: Float[Tensor, "B C t h w"]
    end: Float[Tensor, "B C t h w"]
    x: Float[Tensor, "B C t h w"]
    velocity: Float[Tensor, "B C t h w"]
    tau: Float[Tensor, "B"]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A guess and its target side by side, on the same axes."""

    guess: Float[Tensor, "B *axes"]
    target: Float[Tensor, "B *axes"]
    weight: Float[Tensor, "B *#axes"] | None = None
    """Confidence in the target, 0 to 1; None means 1 everywhere."""


@dataclass(frozen=True, kw_only=True)
class CodePair:
    """Guessed and true codes of one rung."""

    logits: Float[Tensor, "B C N L"]
    """Per channel and token, over the L codes of a channel."""
    codes: Int[Tensor, "B C N"]


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """The tokenizer's diagonal Gaussian over latents."""

    mean: Float[Tensor, "B C t h w"]
    logvar: Float[Tensor, "B C t h w"]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Where guesses and targets meet; a loss term reads the fields it needs and no model.

    Pairs with one entry per pyramid level run coarse to fine.
    """

    pixels: Pair | None = None
    realism: Float[Tensor, "B"] | None = None
    """How real the guessed pixels look to an adversary, above 0 rather so; None before it begins.
    Its gradient is one to the pixels alone."""
    words: Pair | None = None
    """Per word that a caption may hold: logit of its being shown, against 0 or 1."""
    posterior: Posterior | None = None
    coarse: tuple[Pair, ...] = ()
    """Per scale but the last: the codec's z_hat_k against the latent z."""
    commitment: Pair | None = None
    """The latent z against what quantisation left of it, z_hat_K."""
    codes: tuple[CodePair, ...] = ()
    """Per rung that the next-scale transformer writes."""
    residuals: tuple[Pair, ...] = ()
    """Per rung, where its flow head writes values: velocity of what the rung is asked to say."""
    velocity: tuple[Pair, ...] = ()
    """Per level: velocity of the appearance channels."""
    motion: tuple[Pair, ...] = ()
    """Per level: velocity of the motion channels."""
    refined: tuple[Pair, ...] = ()
    """A flawed latent against the true one: as it came, and after each step of refinement."""
    refined_change: tuple[Pair, ...] = ()
    """Of the same: what is new in each frame beside the one before, carried to it by motion."""
    attention: tuple[Pair, ...] = ()
    """Per level that has neighbouring frames: log probability of the cells of a later frame in
    which a cell is looked for, against where it went; [B, looked up, heads, cells]."""
    grounding: tuple[Pair, ...] = ()
    """Per level: log probability of the cells of a frame in which an object is looked for, against
    its box; [B, n, objects, frames, cells]."""
    style: Pair | None = None
    """Statistics of the clean latents that the finest level's velocities point to, [B, n, S], where
    their time is late enough."""
    trunk: tuple[Float[Tensor, "_rows *_axes"], ...] = ()
    """Activations that all heads read, equally many rows per clip; () where there is one head."""
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    """What the model measures of its data: the means over all clips of a step come back to it."""


@runtime_checkable
class Tokenizer(Protocol):
    """Turns pixels into a standardised latent and back."""

    strides: tuple[int, int, int]
    """Frames, rows and columns of pixels per latent cell."""
    channels: int

    def encode(self, pixels: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B C t h w"]: ...

    def decode(self, z: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]: ...


Corrupt = Callable[[Tensor, int], Tensor]
"""(codes [B, C, t, h, w], number of the rung) -> the codes that are accumulated in their stead; or
residuals, where these are not quantised."""


@runtime_checkable
class Codec(Protocol):
    """Writes a standardised latent as codes, rung by rung, and reads any prefix of them."""

    channels: int
    schedule: ScaleSchedule

    @property
    def levels(self) -> int:
        """L: codes per channel."""
        ...

    def split(
        self,
        z: Float[Tensor, "B C t h w"],
        *,
        quantise: bool = True,
        corrupt: Corrupt | None = None,
    ) -> Split: ...

    def decode(
        self, codes: Int[Tensor, "B C _t _h _w"], rung: Rung
    ) -> Float[Tensor, "B C _t _h _w"]:
        """What the codes of a rung say."""
        ...

    def grow(
        self,
        state: Float[Tensor, "B C _t h w"],
        residual: Float[Tensor, "B C _t _h _w"],
        rung: Rung,
    ) -> Float[Tensor, "B C _t h w"]:
        """z_hat_k of a segment from z_hat_{k-1} and what rung k said."""
        ...

    def pyramid(
        self, states: Sequence[Float[Tensor, "B C _t h w"]], size: Sequence[int]
    ) -> LatentPyramid:
        """States of all rungs, each of its segment, as those of the whole latent."""
        ...

    def deviation(self, rung: Rung) -> Float[Tensor, "C 1 1 1"]:
        """Of what a rung is asked to say."""
        ...


@runtime_checkable
class Term(Protocol):
    """One unweighted, unreduced loss: a value per clip."""

    def __call__(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]: ...


@runtime_checkable
class GaugedTerm(Term, Protocol):
    """A term that knows what it costs to guess without any skill."""

    def trivial(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        """Its value for a trivial guess of the same targets; it depends on no guess."""
        ...


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A measured value with its 95 % interval and the number of things it was measured on."""

    value: float
    low: float
    high: float
    n: int


@runtime_checkable
class Metric(Protocol):
    """A measurement as a small value: merge(a, b).compute() equals computing on the union."""

    def update(self, **observed: object) -> "Metric": ...

    def merge(self, other: "Metric") -> "Metric": ...

    def compute(self) -> Mapping[str, Estimate]: ...


__all__ = [
    "CodePair",
    "Codec",
    "Condition",
    "Corrupt",
    "Estimate",
    "GaugedTerm",
    "Given",
    "Hints",
    "KeyValues",
    "LatentBatch",
    "LatentPyramid",
    "Layout",
    "Metric",
    "Objects",
    "Pair",
    "PathSample",
    "Posterior",
    "Prediction",
    "Prefix",
    "Recalled",
    "Split",
    "StyleReference",
    "Term",
    "Tokenizer",
    "TrainingBatch",
    "VideoBatch",
]

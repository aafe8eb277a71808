"""NextScaleGenerator: writes a latent scale by scale, from text alone (proposal VideoAR).

p(z | c) = prod_k P(r_k | r_<k, c): a transformer reads the caption and the state z_hat_{k-1} of the
coarser scales and says what the next one adds, as codes or as values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hstvg.generator.blocks import Block, blocks_of
from hstvg.generator.context import Context
from hstvg.generator.draw_codes import draw_codes
from hstvg.generator.flow_head import FlowHead
from hstvg.generator.generator import Sampling
from hstvg.generator.scale_transformer import CodeHead, Memories, ScaleTransformer
from hstvg.generator.told import Told, encode_nothing, read_prompts, tell
from hstvg.paths.draws import Draws
from hstvg.scales import Rung, Scale, ScaleSchedule, pool
from hstvg.scene.text import TextEncoder
from hstvg.types import (
    Codec,
    CodePair,
    Condition,
    Corrupt,
    Hints,
    LatentBatch,
    LatentPyramid,
    Pair,
    Prediction,
    Split,
)

Head = Literal["codes", "flow"]


@dataclass(frozen=True, kw_only=True)
class NextScaleExample:
    """A batch as the generator trains on it: per block what goes in, per rung what should come."""

    told: Told
    blocks: tuple[Block, ...]
    inputs: tuple[Float[Tensor, "B C _t _h _w"], ...]
    present: tuple[Bool[Tensor, "B _t"] | None, ...]
    """Per block, which of its frames a clip has; None is all."""
    targets: tuple[Tensor, ...]
    """Per rung, B C t h w: codes; of a flow head what the rung is to say, in deviations."""
    noises: tuple[Float[Tensor, "B C _t _h _w"], ...] = ()
    """Per rung, for a flow head."""
    taus: tuple[Float[Tensor, "B"], ...] = ()


class NextScaleGenerator(nn.Module):
    """The text encoder, the transformer and its head.

    Args:
        codec: of the tokenizer whose latents are written; it stays the tokenizer's.
        head: "codes" writes codes, "flow" values.
        head_depth: layers of a flow head.
        text_dropout: share of clips trained without their caption, for classifier-free guidance.
        corruption: largest share of codes that are replaced in a clip before the coarser scales
            are read, so that the later ones learn to correct (arXiv 2412.04431); of a flow head
            the largest noise beside its values, in their deviations.
        context_frames: latent frames that a clip may be given to begin with. With several segments
            they are written frames, which the ones after read anyway.
        context_share: share of clips trained with some of them given.
        context_noise: largest deviation of the noise on those.
    """

    takes_style = takes_layout = False
    remember = None

    def __init__(
        self,
        *,
        codec: Codec,
        text: TextEncoder,
        width: int = 192,
        depth: int = 6,
        head_dim: int = 32,
        head: Head = "codes",
        head_depth: int = 2,
        text_dropout: float = 0.1,
        corruption: float = 0.3,
        context_frames: int = 1,
        context_share: float = 0.25,
        context_noise: float = 0.1,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if head not in ("codes", "flow"):
            raise ValueError(f'head={head}: choose "codes" or "flow"')
        if not 0 <= corruption < 1:
            raise ValueError(f"corruption={corruption} is a share: from 0, and below 1")
        context = Context(frames=context_frames, share=context_share, noise=context_noise)
        context.check(codec.schedule.size.t)
        if width % head_dim or head_dim % 2:
            raise ValueError(
                f"width={width} is not whole heads of head_dim={head_dim}, an even one"
            )
        if len(codec.schedule) > 1 and context_frames:
            codec.schedule.resized((context_frames, *codec.schedule.size[1:]))  # whole segments
        self.schedule = codec.schedule
        self.channels = codec.channels
        self.levels = codec.levels
        self.kappas = (codec.schedule.num_levels,)
        self.text = text
        self.text_dropout = text_dropout
        self.corruption = corruption
        self.context_frames = context_frames
        self.context = context
        self.writes_values = head == "flow"
        self.transformer = ScaleTransformer(
            channels=codec.channels,
            kinds=sum(len(ladder) for ladder in codec.schedule.ladders),
            text_width=text.width,
            width=width,
            depth=depth,
            head_dim=head_dim,
            reads_frames=context_frames > 0 or len(codec.schedule) > 1,
            checkpointing=checkpointing,
        )
        self.head: CodeHead | FlowHead
        if head == "codes":
            self.head = CodeHead(width, codec.channels, codec.levels)
        else:
            self.head = FlowHead(width, codec.channels, depth=head_depth, head_dim=head_dim)
        self.no_text: Tensor
        self.register_buffer("no_text", encode_nothing(text), persistent=False)

    @property
    def latent_size(self) -> Scale:
        return self.schedule.size

    @torch.no_grad()
    def example(
        self, batch: LatentBatch, codec: Codec, draws: Draws, known: Condition | None = None
    ) -> NextScaleExample:
        """Split the latents into rungs, some of their codes corrupted and the later ones corrected.

        Args:
            known: the captions as the frozen text encoder encodes them, where that is done already.
        """
        z = batch.latent.float()
        schedule = codec.schedule.resized(z.shape[2:])
        blocks = blocks_of(schedule, self._context_of(schedule))
        split = codec.split(
            z,
            quantise=not self.writes_values,
            corrupt=self._corrupt(draws, codec, schedule.rungs),
        )
        inputs, present = [], []
        for block in blocks:
            beginning = block.rung is None and len(self.schedule) == 1
            if beginning:
                inputs.append(self.context.spoil(z[:, :, : block.span], draws)[0])
                present.append(self.context.draw_present(draws, block.span))
            else:
                inputs.append(self._input(block, split, schedule.rungs))
                present.append(None)
        targets, noises, taus = split.codes, (), ()
        if self.writes_values:
            rungs = list(enumerate(schedule.rungs))
            targets = tuple(split.pooled[k] / codec.deviation(rung) for k, rung in rungs)
            noises = tuple(
                draws.normal(f"noise/{k}", self.channels, *rung.scale) for k, rung in rungs
            )
            taus = tuple(draws.normal(f"tau/{k}").sigmoid() for k, _ in rungs)
        return NextScaleExample(
            told=tell(
                batch.captions,
                known,
                self.text,
                self.no_text,
                draws,
                dropout=self.text_dropout,
                device=z.device,
            ),
            blocks=blocks,
            inputs=tuple(inputs),
            present=tuple(present),
            targets=targets,
            noises=noises,
            taus=taus,
        )

    def forward(self, example: NextScaleExample) -> Prediction:
        return self.predict(example, example.told.condition(self.text))

    def predict(self, example: NextScaleExample, condition: Condition) -> Prediction:
        """Guessed beside true codes, or velocities of values, per rung."""
        states = self.transformer(example.blocks, example.inputs, example.present, condition)
        rungs = [
            (block, state)
            for block, state in zip(example.blocks, states, strict=True)
            if block.rung is not None
        ]
        if isinstance(self.head, CodeHead):
            codes = tuple(
                CodePair(logits=self.head(state), codes=target.flatten(2))
                for (_, state), target in zip(rungs, example.targets, strict=True)
            )
            return Prediction(codes=codes, statistics=_accuracies(codes, rungs))
        pairs = []
        ends = zip(rungs, example.targets, example.noises, example.taus, strict=True)
        for (block, state), target, noise, tau in ends:
            time = tau.view(-1, 1, 1, 1, 1)
            guess = self.head((1 - time) * noise + time * target, tau, state, block)
            pairs.append(Pair(guess=guess, target=target - noise))
        return Prediction(residuals=tuple(pairs))

    @torch.no_grad()
    def sample(
        self,
        captions: Sequence[str],
        codec: Codec,
        draws: Draws,
        settings: Sampling,
        given: Float[Tensor, "B C r h w"] | None = None,
        hints: Hints | None = None,
    ) -> LatentPyramid:
        """Latents for captions, rung after rung: their states, coarse to fine.

        Args:
            given: latent frames the clips begin with: up to `context_frames`, or with several
                segments any whole number of them.

        Raises:
            ValueError: a hint is given, or the number of scales, or motion is to guide or to move
                noise, of which there is none.
        """
        if settings.motion_noise or settings.motion_guidance:
            raise ValueError(
                "motion_noise and motion_guidance are for a denoiser; train hst or joint"
            )
        if hints is not None and (hints.style or hints.layout or hints.past):
            raise ValueError("this generator is told all in words, and goes on from frames alone")
        if settings.kappa not in (None, *self.kappas):
            raise ValueError(f"kappa={settings.kappa}: there is no denoiser to go on; train joint")
        condition, free = read_prompts(captions, self.text, draws.device)
        states = self.write(condition, free, codec, draws, settings, given)
        return codec.pyramid(states, self.latent_size)

    @torch.no_grad()
    def write(
        self,
        condition: Condition,
        free: Condition,
        codec: Codec,
        draws: Draws,
        settings: Sampling,
        given: Float[Tensor, "B C r h w"] | None = None,
        rungs: int | None = None,
    ) -> list[Float[Tensor, "B C _t h w"]]:
        """The states of the rungs, each of its segment, in the order in which they are written.

        Args:
            free: the empty caption, for guidance.
            rungs: how many to write; None writes all.
        """
        clips = len(condition.text)
        if settings.guidance != 1:
            condition = Condition(
                text=torch.cat([condition.text, free.text]),
                text_mask=torch.cat([condition.text_mask, free.text_mask]),
            )
        memories = self.transformer.begin(condition)
        z = torch.zeros(clips, self.channels, *self.latent_size, device=draws.device)
        forced = self._forced(codec, given)
        states = []
        blocks = blocks_of(self.schedule, self._context_of(self.schedule))
        for block in blocks:
            if len(states) == rungs:
                break
            if block.rung is None:
                self._read(memories, block, z, given, condition)
                continue
            frames = block.rung.frames
            asked = pool(z[:, :, frames], block.rung.scale)
            rows = asked.repeat(len(condition.text) // len(asked), 1, 1, 1, 1)
            last = block is blocks[-1]  # nobody reads what it would keep, the most of all
            state = self.transformer.extend(memories, block, rows, condition, keep=not last)
            if block.number < len(forced):
                residual = forced[block.number]
            else:
                residual = self._write(block, state, codec, draws, settings)
            z[:, :, frames] = codec.grow(z[:, :, frames], residual, block.rung)
            states.append(z[:, :, frames].clone())
        return states

    def _write(
        self,
        block: Block,
        state: Float[Tensor, "B N D"],
        codec: Codec,
        draws: Draws,
        settings: Sampling,
    ) -> Float[Tensor, "Bt C t h w"]:
        """What a rung says, from its tokens' states."""
        assert block.rung is not None
        ladder = self.schedule[block.rung.segment]
        guidance = guidance_at(block.rung.depth, len(ladder), settings.guidance)
        shape = (self.channels, *block.size)
        if isinstance(self.head, FlowHead):
            noise = draws.normal(f"rung/{block.number}", *shape)
            values = self.head.sample(noise, state, block, steps=settings.steps, guidance=guidance)
            return values * codec.deviation(block.rung)
        logits = self.head(state).float()
        if settings.guidance != 1:
            told, free = logits.chunk(2)
            logits = free + guidance * (told - free)
        uniform = draws.uniform(f"rung/{block.number}", *logits.shape[1:])
        codes = draw_codes(logits, uniform, settings)
        return codec.decode(codes.unflatten(-1, block.size), block.rung)

    def _context_of(self, schedule: ScaleSchedule) -> int:
        """Frames that a latent of a size may be given beside its rungs: never all there is, and
        none where finished segments are read anyway."""
        if len(self.schedule) > 1 or self.context_frames >= schedule.size.t:
            return 0
        return self.context_frames

    def _read(
        self,
        memories: Memories,
        block: Block,
        z: Float[Tensor, "B C t h w"],
        given: Float[Tensor, "B C r h w"] | None,
        condition: Condition,
    ) -> None:
        """Take a given block into the memories: a finished segment, or the clip's beginning."""
        present = None
        if len(self.schedule) > 1:
            frames = z[:, :, block.start : block.start + block.span]
        elif given is None:
            return
        else:
            frames = torch.zeros_like(z[:, :, : block.span])
            frames[:, :, : given.shape[2]] = given
            present = (torch.arange(block.span, device=z.device) < given.shape[2]).expand(
                len(condition.text), -1
            )
        rows = frames.repeat(len(condition.text) // len(frames), 1, 1, 1, 1)
        self.transformer.extend(memories, block, rows, condition, present)

    def _forced(
        self, codec: Codec, given: Float[Tensor, "B C r h w"] | None
    ) -> tuple[Float[Tensor, "B C _t _h _w"], ...]:
        """What the rungs of given segments say; nothing where frames are given as context."""
        if given is None:
            return ()
        if len(self.schedule) > 1:
            return codec.split(given, quantise=not self.writes_values).residuals
        self.context.accept(given)
        return ()

    def _corrupt(self, draws: Draws, codec: Codec, rungs: Sequence[Rung]) -> Corrupt:
        """The errors that the coarser scales of a batch are read with; none in the last rung of a
        segment, which no later one could correct."""
        share = (draws.uniform("corrupt") * self.corruption).view(-1, 1, 1, 1, 1)

        def corrupt(values: Tensor, number: int) -> Tensor:
            last = number + 1 == len(rungs) or rungs[number + 1].depth == 0
            if last or not self.corruption:
                return values
            shape = values.shape[1:]
            if self.writes_values:
                noise = draws.normal(f"corrupt/{number}", *shape)
                return values + share * codec.deviation(rungs[number]) * noise
            wrong = (draws.uniform(f"code/{number}", *shape) * self.levels).long()
            return torch.where(draws.uniform(f"corrupt/{number}", *shape) < share, wrong, values)

        return corrupt

    @staticmethod
    def _input(block: Block, split: Split, rungs: Sequence[Rung]) -> Float[Tensor, "B C _t _h _w"]:
        """What goes into a rung, or a finished segment as it was written, with all errors."""
        if block.rung is None:
            last = [k for k, rung in enumerate(rungs) if rung.start == block.start]
            return split.states[last[-1]]
        if block.rung.depth == 0:
            first = split.states[block.number]
            return first.new_zeros(*first.shape[:2], *block.size)
        return pool(split.states[block.number - 1], block.rung.scale)


def guidance_at(depth: int, rungs: int, guidance: float) -> float:
    """Weight of guidance at a rung of its ladder: half of the full weight at the first, and never
    below 1."""
    return max(1.0, guidance * (0.5 + 0.5 * depth / max(rungs - 1, 1)))


@torch.no_grad()
def _accuracies(
    codes: Sequence[CodePair], rungs: Sequence[tuple[Block, Tensor]]
) -> dict[str, Float[Tensor, ""]]:
    """Share of codes that are the likeliest ones, per rung."""
    return {
        f"codes/accuracy_{block.number}_{block.size}": (pair.logits.argmax(-1) == pair.codes)
        .float()
        .mean()
        for (block, _), pair in zip(rungs, codes, strict=True)
    }

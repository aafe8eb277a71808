"""From prompts to clips: condition, sample the latent, decode, go on from where a block ends."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from hstvg.data.batch import to_layout
from hstvg.generate.bundle import VideoModel
from hstvg.generator.generator import Generator, Sampling
from hstvg.nn.haar_bank import style_statistics
from hstvg.paths.draws import Draws
from hstvg.scales import upsample
from hstvg.scene.layout import Places
from hstvg.scene.raster import in_latent_frames
from hstvg.types import Hints, LatentPyramid, Layout, StyleReference


@torch.no_grad()
def write_clips(
    model: VideoModel,
    prompts: Sequence[str],
    *,
    seed: int,
    first: int = 0,
    settings: Sampling | None = None,
    num_frames: int | None = None,
    given: UInt8[np.ndarray, "B Tg H W 3"] | None = None,
    reference: UInt8[np.ndarray, "R T H W 3"] | None = None,
    shown: Sequence[Places] | None = None,
    device: torch.device | None = None,
) -> UInt8[np.ndarray, "B T H W 3"]:
    """A clip per prompt, block after block, each going on from what the generator remembers of the
    ones before or, where it remembers nothing, from the last frames of the one before.

    The noise of prompt i is that of (seed, first + i): the same whatever else is in the batch.

    Args:
        settings: how to sample; the defaults of `Sampling` if not given.
        num_frames: one block if not given.
        given: frames that the clips begin with; the last of them are what is gone on from.
        reference: a video that each of them is to look like, or one for all.
        shown: what each of them is to show where in its frames; later ones are like the last.

    Raises:
        ValueError: the bundle holds no generator, one that cannot go on from frames, or one that
            takes no style or layout.
    """
    generator = _generator(model)
    where = device or torch.device("cpu")
    model.to(where)
    draws = Draws(seed, range(first, first + len(prompts)), where)
    wanted = num_frames or model.window.num_frames
    style = None if reference is None else read_style(model, reference, len(prompts), where)
    clips = None if given is None else to_pixels(given, where)
    layout = None
    if shown is not None:
        boxes, labels = ([getattr(one, name) for one in shown] for name in ("boxes", "labels"))
        layout = to_layout(np.stack(boxes), np.stack(labels), where)
    if generator.remember is not None:
        return to_frames(_write_on(model, prompts, draws, settings, clips, wanted, style, layout))
    block, particles = 0, None
    while clips is None or clips.shape[2] < wanted:
        tail = None if clips is None else _tail(clips, model, generator)
        own = draws.within(f"block/{block}")
        begun = 0 if clips is None or tail is None else clips.shape[2] - tail.shape[2]
        placed = _layout_of_block(model, layout, begun)
        hints = Hints(style=style, layout=placed, particles=particles)
        levels = sample_block(model, prompts, own, settings, tail, hints)
        particles = levels.particles
        fresh = model.tokenizer.decode(levels.finest)
        if clips is None or tail is None:
            clips = fresh
        else:
            clips = torch.cat([clips, fresh[:, :, tail.shape[2] :]], dim=2)
        block += 1
    return to_frames(clips[:, :, :wanted])


@torch.no_grad()
def write_scales(
    model: VideoModel,
    prompts: Sequence[str],
    *,
    seed: int,
    first: int = 0,
    settings: Sampling | None = None,
    device: torch.device | None = None,
) -> list[UInt8[np.ndarray, "B T H W 3"]]:
    """One block per prompt as it comes into being: its decoded states, coarse to fine."""
    where = device or torch.device("cpu")
    model.to(where)
    draws = Draws(seed, range(first, first + len(prompts)), where).within("block/0")
    levels = sample_block(model, prompts, draws, settings, None).levels
    size = _generator(model).latent_size
    return [to_frames(model.tokenizer.decode(upsample(level, size))) for level in levels]


def sample_block(
    model: VideoModel,
    prompts: Sequence[str],
    draws: Draws,
    settings: Sampling | None,
    tail: Float[Tensor, "B 3 T H W"] | None,
    hints: Hints | None = None,
) -> LatentPyramid:
    """The latents of one block, appearance alone.

    Args:
        tail: pixels that the block begins with.
    """
    generator, tokenizer = _generator(model), model.tokenizer
    given = None if tail is None else tokenizer.encode(tail)
    settings = settings or Sampling()
    sampled = generator.sample(prompts, tokenizer.codec, draws, settings, given, hints)
    return replace(sampled, levels=tuple(z[:, : tokenizer.channels] for z in sampled.levels))


def _write_on(
    model: VideoModel,
    prompts: Sequence[str],
    draws: Draws,
    settings: Sampling | None,
    given: Float[Tensor, "B 3 Tg H W"] | None,
    wanted: int,
    style: StyleReference | None,
    layout: Layout | None,
) -> Float[Tensor, "B 3 T H W"]:
    """Clips by a generator that remembers its blocks.

    Only given frames are encoded, and all blocks are decoded as one stream: between two of them
    there is no seam but what the generator makes.
    """
    generator, tokenizer = _generator(model), model.tokenizer
    assert generator.remember is not None
    tail = None if given is None else _tail(given, model, generator)
    begun = 0 if tail is None else tail.shape[2]
    known = 0 if given is None else given.shape[2]
    alone, past, particles, blocks = int(tokenizer.first_alone), None, None, []
    frames = 0
    while known + frames - begun < wanted:
        own = draws.within(f"block/{len(blocks)}")
        placed = _layout_of_block(model, layout, known - begun + frames)
        hints = Hints(style=style, layout=placed, past=past, particles=particles)
        start = None if blocks else tail
        levels = sample_block(model, prompts, own, settings, start, hints)
        z, particles = levels.finest, levels.particles
        past = generator.remember(past, z)
        blocks.append(z)
        frames = alone + (len(blocks) * z.shape[2] - alone) * tokenizer.strides.t
    clips = [] if given is None else [given]
    if blocks:
        fresh = torch.cat(list(tokenizer.decode_stream(blocks)), dim=2)
        clips.append(fresh[:, :, begun:])
    return torch.cat(clips, dim=2)[:, :, :wanted]


def _layout_of_block(model: VideoModel, layout: Layout | None, first: int) -> Layout | None:
    """At the latent frames of a block that begins with a frame of the clips."""
    if layout is None:
        return None
    length = model.window.num_frames
    # A given picture may stand still for frames before the first one.
    which = (first + torch.arange(length)).clamp(0, layout.boxes.shape[2] - 1)
    block = replace(layout, boxes=layout.boxes[:, :, which.to(layout.boxes.device)])
    return in_latent_frames(block, _generator(model).latent_size.t)


def read_style(
    model: VideoModel, reference: UInt8[np.ndarray, "R T H W 3"], count: int, device: torch.device
) -> StyleReference:
    """How `count` clips look that are to look like a video each, or all like one, whose last frame
    stands if it is shorter than a clip."""
    length = model.window.num_frames
    frames = reference[:, np.minimum(np.arange(length), reference.shape[1] - 1)]
    seen = style_statistics(model.tokenizer.encode(to_pixels(frames, device)))
    known = torch.ones(count, dtype=torch.bool, device=device)
    return StyleReference(statistics=seen.expand(count, -1), known=known)


def to_frames(pixels: Float[Tensor, "B 3 T H W"]) -> UInt8[np.ndarray, "B T H W 3"]:
    """Frames for files and metrics, from pixels in [-1, 1]."""
    scaled = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 4, 1).cpu().numpy()


def to_pixels(
    frames: UInt8[np.ndarray, "B T H W 3"], device: torch.device
) -> Float[Tensor, "B 3 T H W"]:
    """Undo to_frames."""
    return torch.from_numpy(frames).permute(0, 4, 1, 2, 3).to(device).float() / 127.5 - 1


def _generator(model: VideoModel) -> Generator:
    if model.generator is None:
        raise ValueError("this is a tokenizer's run; generating needs a run of stage=generator")
    return model.generator


def _tail(
    clips: Float[Tensor, "B 3 T H W"], model: VideoModel, generator: Generator
) -> Float[Tensor, "B 3 Tt H W"]:
    """The last frames of the clips, as many as the generator goes on from.

    They are encoded as the beginning of a clip, which is how the generator knows given frames. A
    picture that is too short for a group of the tokenizer stands still.
    """
    if generator.context_frames == 0:
        raise ValueError(
            "this generator writes one block and cannot go on from frames; "
            "train it with generator.context_frames=1"
        )
    alone = int(model.tokenizer.first_alone)
    count = alone + (generator.context_frames - alone) * model.tokenizer.strides.t
    missing = count - clips.shape[2]
    if missing > 0:
        clips = torch.cat([clips[:, :, :1].expand(-1, -1, missing, -1, -1), clips], dim=2)
    return clips[:, :, -count:]

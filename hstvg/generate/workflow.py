"""From prompts to clips: condition, sample the latent, decode."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from hstvg.generate.bundle import VideoModel
from hstvg.paths.draws import Draws


def write_clips(
    model: VideoModel,
    prompts: Sequence[str],
    *,
    seed: int,
    first: int = 0,
    steps: int = 12,
    guidance: float = 5.0,
    device: torch.device | None = None,
) -> UInt8[np.ndarray, "B T H W 3"]:
    """One block per prompt.

    The noise of prompt i is that of (seed, first + i): the same whatever else is in the batch.

    Args:
        steps: Euler steps per pyramid level.
        guidance: classifier-free guidance weight; 1 is none.

    Raises:
        ValueError: the bundle holds no generator.
    """
    if model.generator is None:
        raise ValueError("this is a tokenizer's run; generating needs a run of stage=generator")
    where = device or torch.device("cpu")
    model.to(where)
    draws = Draws(seed, range(first, first + len(prompts)), where)
    latents = model.generator.sample(prompts, draws, steps=steps, guidance=guidance)
    z = latents.finest[:, : model.generator.latent_channels]
    with torch.no_grad():
        return to_frames(model.tokenizer.decode(z))


def to_frames(pixels: Float[Tensor, "B 3 T H W"]) -> UInt8[np.ndarray, "B T H W 3"]:
    """Frames for files and metrics, from pixels in [-1, 1]."""
    scaled = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 4, 1).cpu().numpy()

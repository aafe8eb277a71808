"""Guidance: away from what a generator would make unasked, by a weight per kind of condition."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from hstvg.generator.generator import Sampling
from hstvg.paths.pyramid_flow import Velocity
from hstvg.types import Condition


def guided(
    network: Callable[[Tensor, Tensor, int, Condition], Tensor],
    condition: Condition,
    nothing: Condition,
    settings: Sampling,
) -> Velocity:
    """Classifier-free guidance by text (arXiv 2207.12598) and, where there is one, by style.

        v = v(0, 0) + w_style (v(0, style) - v(0, 0)) + w_text (v(text, style) - v(0, style))

    The style comes first (as the picture does in arXiv 2211.09800), so that a weight of 1 leaves
    v(0, 0) out: the network is then asked no more often than without a style.

    Args:
        nothing: the same condition, its style included, without the text.
    """
    unstyled = replace(nothing, style=None)
    moves_style = nothing.style is not None and settings.style_guidance != 1

    def velocity(x: Tensor, tau: Tensor, level: int) -> Tensor:
        told = network(x, tau, level, condition)
        if settings.guidance == 1 and not moves_style:
            return told
        untold = network(x, tau, level, nothing)
        v = untold + settings.guidance * (told - untold)
        if moves_style:
            free = network(x, tau, level, unstyled)
            v = v + (settings.style_guidance - 1) * (untold - free)
        return v

    return velocity

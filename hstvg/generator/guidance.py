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
    unmoved: Callable[[Tensor], Tensor] | None = None,
) -> Velocity:
    """Classifier-free guidance by text (arXiv 2207.12598) and, where there is one, by style.

        v = v(0, 0) + w_style (v(0, style) - v(0, 0)) + w_text (v(text, style) - v(0, style))

    The style comes first (as the picture does in arXiv 2211.09800), so that a weight of 1 leaves
    v(0, 0) out: the network is then asked no more often than without a style.

    And away from what it would make if it did not see how its own sample moves (inner guidance,
    arXiv 2502.02492), on the level where the motion is decided: + w_motion (v(x) - v(unmoved x)).

    Args:
        nothing: the same condition, its style included, without the text.
        unmoved: x with its motion hidden.
    """
    unstyled = replace(nothing, style=None)
    moves_style = nothing.style is not None and settings.style_guidance != 1

    def velocity(x: Tensor, tau: Tensor, level: int) -> Tensor:
        v = told = network(x, tau, level, condition)
        if settings.guidance != 1 or moves_style:
            untold = network(x, tau, level, nothing)
            v = untold + settings.guidance * (told - untold)
            if moves_style:
                free = network(x, tau, level, unstyled)
                v = v + (settings.style_guidance - 1) * (untold - free)
        if unmoved is not None and settings.motion_guidance and level == 0:
            still = network(unmoved(x), tau, level, condition)
            v = v + settings.motion_guidance * (told - still)
        return v

    return velocity

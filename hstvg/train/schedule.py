"""The learning rate as a pure function of the step: a resumed run needs no scheduler state."""

import math


def learning_rate(
    step: int, *, peak: float, warmup_steps: int, total_steps: int, final_ratio: float
) -> float:
    """Linear warm-up to `peak`, then a cosine down to final_ratio * peak at the last step.

    Args:
        step: counted from 1.
    """
    if step <= warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return peak * (
        final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))
    )

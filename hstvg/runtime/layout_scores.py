"""Layouts of an evaluation: whether things are where a scene has them.

Every held-out prompt is asked for once more, from the same noise, with the boxes of its own clip's
scene. The sample without them shows how much of the overlap the words bring alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import reduce
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from hstvg.generate.bundle import VideoModel
from hstvg.generate.workflow import write_clips
from hstvg.generator.generator import Sampling
from hstvg.metrics.layout import LayoutOverlap
from hstvg.scene.grammar import style_of
from hstvg.scene.layout import NOTHING, Places

Clip = UInt8[np.ndarray, "T H W 3"]
JUDGED = ("real", "reconstruction", "generated", "placed")


def places_of(block: Mapping[str, np.ndarray]) -> list[Places]:
    """Of the clips of a block that was read with layouts."""
    return [
        Places(boxes=boxes, labels=labels)
        for boxes, labels in zip(block["boxes"], block["labels"], strict=True)
    ]


def sample_placed(
    model: VideoModel,
    captions: Sequence[str],
    shown: Sequence[Places],
    *,
    seed: int,
    first: int,
    settings: Sampling,
    device: torch.device,
) -> list[dict[str, Clip]]:
    """Per caption the sample that is told where its objects are."""
    how: dict[str, Any] = {"seed": seed, "first": first, "settings": settings, "device": device}
    return [{"placed": clip} for clip in write_clips(model, captions, shown=shown, **how)]


def overlaps_of(
    clips: Mapping[str, Clip], caption: str, shown: Places | None
) -> dict[str, LayoutOverlap]:
    """Of every clip of a prompt; nothing where the scene is not known."""
    if shown is None or style_of(caption) is None or (shown.labels == NOTHING).all():
        return {}
    return {
        name: LayoutOverlap.empty().update(
            generated=[clips[name]], captions=[caption], layouts=[shown]
        )
        for name in JUDGED
        if name in clips
    }


def layout_scores(overlaps: Sequence[Mapping[str, LayoutOverlap]]) -> dict[str, Any]:
    """Of all prompts of a split, by what the clips are."""
    whole = {
        name: reduce(LayoutOverlap.merge, (one[name] for one in overlaps if name in one))
        for name in JUDGED
        if any(name in one for one in overlaps)
    }
    return {
        name: asdict(estimate)
        for name, overlap in whole.items()
        for estimate in overlap.compute().values()
    }

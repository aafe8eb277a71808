"""What a clip's caption tells a generator while it is trained: words, states, or nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hstvg.generator.layout import read_labels
from hstvg.paths.draws import Draws
from hstvg.scene.text import TextEncoder
from hstvg.types import Condition, Hints


@dataclass(frozen=True, kw_only=True)
class Told:
    """The captions of a batch, some of them dropped."""

    mask: Bool[Tensor, "B L"]
    ids: Int[Tensor, "B L"] | None = None
    """Tokens; None where they are encoded already."""
    text: Float[Tensor, "B L D"] | None = None
    """Encoded by a frozen encoder; else None."""

    def condition(self, text: TextEncoder) -> Condition:
        if self.text is not None:
            # Of the precision of the weights: an engine may have lowered theirs.
            return Condition(text=self.text.to(text.encoder.dtype), text_mask=self.mask)
        assert self.ids is not None
        return Condition(text=text(self.ids, self.mask), text_mask=self.mask)


def tell(
    captions: Sequence[str],
    known: Condition | None,
    text: TextEncoder,
    nothing: Float[Tensor, "L D"] | None,
    draws: Draws,
    *,
    dropout: float,
    device: torch.device,
) -> Told:
    """The captions, a share of them replaced by the empty one for classifier-free guidance.

    Args:
        known: the captions as a frozen encoder encodes them, where that is done already.
        nothing: the empty caption, encoded; of `encode_nothing`.
    """
    dropped = draws.coins("text_dropout", dropout)
    if known is not None:
        assert nothing is not None, "captions are encoded beforehand by frozen encoders alone"
        known = replace_rows(known, dropped, nothing)
        return Told(text=known.text, mask=known.text_mask)
    words = ["" if drop else caption for caption, drop in zip(captions, dropped, strict=True)]
    ids, mask = text.tokenize(words)
    return Told(ids=ids.to(device), mask=mask.to(device))


@torch.no_grad()
def encode_nothing(text: TextEncoder) -> Float[Tensor, "L D"] | None:
    """The empty caption, which stands for a dropped one; None where its encoder is trained.

    To be called while all weights are whole and on the CPU: an engine may spread them over workers.
    """
    if not text.frozen:
        return None
    ids, mask = (part.to(text.device) for part in text.tokenize([""]))
    return text(ids, mask)[0]


def read_prompts(
    prompts: Sequence[str],
    text: TextEncoder,
    device: torch.device,
    hints: Hints | None = None,
) -> tuple[Condition, Condition]:
    """The prompts, and as many empty ones beside them, padded alike and with the same hints."""
    hints = hints or Hints()
    layout = None if hints.layout is None else read_labels(hints.layout, text).objects(text)
    known = {"style": hints.style, "objects": layout, "history": hints.past}
    ids, mask = (part.to(device) for part in text.tokenize([*prompts, ""]))
    states = text(ids, mask)
    told = Condition(text=states[:-1], text_mask=mask[:-1], **known)
    free = Condition(
        text=states[-1:].expand_as(told.text),
        text_mask=mask[-1:].expand_as(told.text_mask),
        **known,
    )
    return told, free


def replace_rows(
    condition: Condition, rows: Sequence[bool], text: Float[Tensor, "L D"]
) -> Condition:
    """The condition with `text` in place of the rows that are True."""
    chosen = torch.tensor(rows, dtype=torch.bool, device=condition.text.device)
    missing = max(0, len(text) - condition.text.shape[1])
    states = F.pad(condition.text, (0, 0, 0, missing))
    mask = F.pad(condition.text_mask, (0, missing))
    other = F.pad(text.to(states), (0, 0, 0, states.shape[1] - len(text)))
    real = torch.arange(states.shape[1], device=mask.device) < len(text)
    return Condition(
        text=torch.where(chosen[:, None, None], other, states),
        text_mask=torch.where(chosen[:, None], real, mask),
    )

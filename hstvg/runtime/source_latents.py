"""A data set of videos and a trained tokenizer, as the source of a data set of latents."""

import os
from dataclasses import dataclass
from pathlib import Path

from hstvg.runtime.storage import absolute


@dataclass(frozen=True, kw_only=True)
class LatentSource:
    """A data set of videos and the trained tokenizer that encodes it.

    Args:
        path: of the data set; a folder or a URI.
        tokenizer_run: folder of its run.
        windows: encoded per clip, evenly spread; the training draws one.
        dtype: fp32, bf16 or fp16.
        text: id or folder of the frozen text encoder that the generator will have; None leaves
            captions to the training.
        max_tokens: of that encoder; longer captions are cut.
        batch: clips that an encoder takes at a time; changes no value beyond rounding.
    """

    path: str
    tokenizer_run: str
    windows: int = 1
    dtype: str = "bf16"
    text: str | None = None
    max_tokens: int = 128
    batch: int = 8

    def __post_init__(self) -> None:
        # Absolute at once: a Ray worker has another working directory.
        object.__setattr__(self, "path", absolute(self.path))
        object.__setattr__(self, "tokenizer_run", os.path.abspath(self.tokenizer_run))
        if self.text is not None and os.path.isdir(self.text):
            object.__setattr__(self, "text", os.path.abspath(self.text))

    @property
    def export(self) -> Path:
        return Path(self.tokenizer_run) / "export"

"""FeatureNetwork: reads from a clip which words its caption holds; what it sees on the way is what
a perceptual distance compares (idea of arXiv 1801.03924).

Its weights come from a run of stage=features; see `load_features`.
"""

import json
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from hstvg.nn.conv import ResidualBlock
from hstvg.nn.norm import ChannelNorm


class FeatureNetwork(nn.Module):
    """A small 3D convolutional network over clips of any size.

    Args:
        num_words: logits, one per word.
        base: channels of the first level, doubled by every further one.
        depth: levels. The first halves rows and columns, every further one frames too.
    """

    def __init__(self, *, num_words: int, base: int = 32, depth: int = 3) -> None:
        super().__init__()
        self.num_words = num_words
        widths = [3, *(base * 2**i for i in range(depth))]
        self.steps = nn.ModuleList(
            nn.Conv3d(before, after, 3, stride=(1 if before == 3 else 2, 2, 2), padding=1)
            for before, after in pairwise(widths)
        )
        self.blocks = nn.ModuleList(ResidualBlock(width, causal=False) for width in widths[1:])
        self.norms = nn.ModuleList(ChannelNorm(width) for width in widths[1:])
        self.leave = nn.Linear(2 * widths[-1], num_words)

    def levels(self, pixels: Float[Tensor, "B 3 T H W"]) -> list[Tensor]:
        """What is seen at each level, fine to coarse: [B, C, t, h, w]."""
        x, seen = pixels, []
        for step, block, norm in zip(self.steps, self.blocks, self.norms, strict=True):
            x = F.silu(norm(block(step(x))))
            seen.append(x)
        return seen

    def forward(self, pixels: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B N"]:
        """Logits of the words, above 0 where the clip shows what the word says."""
        last = self.levels(pixels)[-1].flatten(2)
        # A word may be true of one place or of the whole picture.
        return self.leave(torch.cat([last.mean(2), last.amax(2)], dim=1))


def load_features(folder: str | Path) -> FeatureNetwork:
    """The trained network of the export folder of a run of stage=features, at rest, on the CPU.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds another kind of model.
    """
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    if config["stage"] != "features":
        raise ValueError(f"{folder} is of stage={config['stage']}; name one of stage=features")
    arguments = {key: value for key, value in config["features"].items() if key != "_target_"}
    network = FeatureNetwork(**arguments)
    weights = load_file(folder / "model.safetensors")
    network.load_state_dict({name.removeprefix("features."): w for name, w in weights.items()})
    return network.eval().requires_grad_(False)

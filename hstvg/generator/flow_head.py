"""FlowHead: writes the values of a scale instead of codes, by flow matching inside the scale.

After arXiv 2412.15205: the transformer's states of a scale condition a small network that carries
noise to the scale's values, all its tokens together. Nothing is quantised, and what the tokens of
a scale have to agree on is settled between them, where codes are drawn independently.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hstvg.generator.blocks import Block
from hstvg.nn.conv import zero_init
from hstvg.nn.embed import embed_time, rotary_angles
from hstvg.nn.transformer import Modulation, TransformerLayer


class FlowHead(nn.Module):
    """Velocity of a rung's values at path time tau, given the states of its tokens.

    Args:
        width: of the states, and inside.
        channels: C of the latent.
        depth: layers; each attends over the tokens of the rung.
    """

    def __init__(self, width: int, channels: int, *, depth: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.enter = nn.Linear(channels, width)
        self.state = nn.Linear(width, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = Modulation(width)
        self.layers = nn.ModuleList(
            TransformerLayer(width, head_dim=head_dim) for _ in range(depth)
        )
        self.leave = zero_init(nn.Linear(width, channels))

    def forward(
        self,
        x: Float[Tensor, "B C t h w"],
        tau: Float[Tensor, "B"],
        states: Float[Tensor, "B N D"],
        block: Block,
    ) -> Float[Tensor, "B C t h w"]:
        assert block.rung is not None
        cells = x.to(states.dtype).flatten(2).transpose(1, 2)
        normed = F.layer_norm(states, states.shape[-1:], eps=1e-6)
        hidden = self.enter(cells) + self.state(normed)
        reference = (block.span, block.rung.size.h, block.rung.size.w)
        angles = rotary_angles(block.size, reference, self.head_dim, x.device, start=block.start)
        time = self.time(embed_time(tau, states.shape[-1]).to(states.dtype))
        modulation = self.modulation(time)
        for layer in self.layers:
            hidden = layer(hidden, modulation, angles, None)
        out = self.leave(F.layer_norm(hidden, hidden.shape[-1:], eps=1e-6))
        return out.transpose(1, 2).reshape(x.shape).float()

    def sample(
        self,
        noise: Float[Tensor, "B C t h w"],
        states: Float[Tensor, "rows N D"],
        block: Block,
        *,
        steps: int,
        guidance: float,
    ) -> Float[Tensor, "B C t h w"]:
        """Values from noise by Euler steps.

        Args:
            states: those of the captions and then, if guidance is not 1, of the empty ones.
        """
        x = noise
        for step in range(steps):
            rows = x.repeat(len(states) // len(x), 1, 1, 1, 1)
            tau = torch.full((len(rows),), step / steps, device=x.device)
            velocity = self(rows, tau, states, block)
            if len(rows) > len(x):
                told, free = velocity.chunk(2)
                velocity = free + guidance * (told - free)
            x = x + velocity / steps
        return x

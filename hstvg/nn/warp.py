"""Moving what a latent shows along a field of displacements."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def warp(
    x: Float[Tensor, "B C t h w"], by: Float[Tensor, "B 2 t h w"]
) -> Float[Tensor, "B C t h w"]:
    """Each cell p takes what lies at p + by(p) in its frame, bilinearly; beyond the border, what
    lies on it. float32.

    Args:
        by: (x, y) in cells of each axis: x along the columns, y down the rows.
    """
    B, C, t, h, w = x.shape
    columns, rows = torch.arange(w, device=x.device), torch.arange(h, device=x.device)
    x_at, y_at = columns + by[:, 0].float(), rows[:, None] + by[:, 1].float()
    # grid_sample counts from -1 to 1 between the outer edges of the cells.
    grid = torch.stack([(2 * x_at + 1) / w - 1, (2 * y_at + 1) / h - 1], dim=-1)
    frames = x.float().transpose(1, 2).flatten(0, 1)
    moved = F.grid_sample(frames, grid.flatten(0, 1), padding_mode="border", align_corners=False)
    return moved.reshape(B, t, C, h, w).transpose(1, 2)

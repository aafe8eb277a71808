"""What a file of LPIPS weights holds, without a download: the published heads on a random trunk."""

from pathlib import Path

import torch
import torchmetrics

HEADS = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models"
"""The published linear heads."""
CONVOLUTIONS = {
    "alex": {
        0: (64, 3, 11),
        3: (192, 64, 5),
        6: (384, 192, 3),
        8: (256, 384, 3),
        10: (256, 256, 3),
    },
    "vgg": {
        number: (after, before, 3)
        for number, before, after in zip(
            (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
            (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512),
            (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
            strict=True,
        )
    },
}
"""Of torchvision's `features`: number -> channels out and in, kernel."""


def published(net):
    """Random weights of a trunk (alex or vgg) by their published names, and the published heads."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.load(HEADS / f"{net}.pth", map_location="cpu", weights_only=True)
    for number, (after, before, kernel) in CONVOLUTIONS[net].items():
        spread = (2 / (before * kernel**2)) ** 0.5
        shape = (after, before, kernel, kernel)
        weights[f"features.{number}.weight"] = spread * torch.randn(shape, generator=generator)
        weights[f"features.{number}.bias"] = 0.1 * torch.randn(after, generator=generator)
    return weights

"""LPIPS: distance of images by the features of a classifier (arXiv 1801.03924), in plain torch.

The trunk's published weights are not part of this project. A file with all that is needed holds

    features.N.weight, features.N.bias    the convolutions of torchvision's alexnet or vgg16
    linK.model.1.weight                   the five linear heads of lpips v0.1, [1, C, 1, 1]

and is made of the trunk's file at download.pytorch.org/models, alexnet-owt-7be5be79.pth or
vgg16-397923af.pth, and of the heads that torchmetrics brings:

    import pathlib, torch, torchmetrics
    trunk = torch.load("alexnet-owt-7be5be79.pth", map_location="cpu", weights_only=True)
    folder = pathlib.Path(torchmetrics.__file__).parent / "functional/image/lpips_models"
    heads = torch.load(folder / "alex.pth", map_location="cpu", weights_only=True)  # or vgg.pth
    kept = {name: value for name, value in trunk.items() if name.startswith("features.")}
    torch.save({**kept, **heads}, "lpips_alex.pt")  # or safetensors.torch.save_file
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

ALEX_TAPS = {1: 64, 4: 192, 7: 384, 9: 256, 11: 256}
VGG_TAPS = {3: 64, 8: 128, 15: 256, 22: 512, 29: 512}
"""Layers after which features are compared, and their channels."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""From pixels in [-1, 1] to the standardised ones the classifiers were trained on."""


class Lpips(nn.Module):
    """Frozen; which trunk it is follows from the weights.

    Args:
        weights: by the names above.

    Raises:
        ValueError: they are of neither trunk, or one is missing.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        first = weights.get("features.0.weight")
        if first is None or first.shape[-1] not in (11, 3):
            raise ValueError(f"{_NOT_LPIPS}: features.0.weight is missing or of another network")
        alex = first.shape[-1] == 11
        self.layers = nn.ModuleList(_alexnet() if alex else _vgg16())
        self.taps = ALEX_TAPS if alex else VGG_TAPS
        self.heads = nn.ModuleList(
            nn.Conv2d(width, 1, 1, bias=False) for width in self.taps.values()
        )
        own = {
            **{f"layers.{name}": f"features.{name}" for name in self.layers.state_dict()},
            **{f"heads.{k}.weight": f"lin{k}.model.1.weight" for k in range(len(self.taps))},
        }
        missing = [name for name in own.values() if name not in weights]
        if missing:
            raise ValueError(f"{_NOT_LPIPS}: {missing[0]} is missing")
        try:
            self.load_state_dict({name: weights[theirs] for name, theirs in own.items()})
        except RuntimeError as error:
            raise ValueError(f"{_NOT_LPIPS}: {str(error).splitlines()[-1].strip()}") from error
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))
        self.shift: Tensor
        self.scale: Tensor
        self.eval().requires_grad_(False)

    def forward(
        self, guess: Float[Tensor, "N 3 H W"], target: Float[Tensor, "N 3 H W"]
    ) -> Float[Tensor, "N"]:
        """Distances of images in [-1, 1]."""
        total = torch.zeros(len(guess), device=guess.device)
        for head, ours, theirs in zip(
            self.heads, self._seen(guess), self._seen(target), strict=True
        ):
            difference = (_direction(ours) - _direction(theirs)).square()
            total = total + head(difference).mean((1, 2, 3))
        return total

    def _seen(self, images: Float[Tensor, "N 3 H W"]) -> list[Tensor]:
        x, seen = (images - self.shift) / self.scale, []
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number in self.taps:
                seen.append(x)
        return seen


def load_lpips(file: str | Path) -> Lpips:
    """From a safetensors file, or one of torch.save that holds tensors alone; runs no code of it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no weights of LPIPS.
    """
    if Path(file).suffix == ".safetensors":
        return Lpips(load_file(file))
    return Lpips(torch.load(file, map_location="cpu", weights_only=True))


_NOT_LPIPS = "these are no weights of LPIPS with its trunk"


def _alexnet() -> list[nn.Module]:
    """torchvision's alexnet.features up to the last tap."""
    return [
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    ]


def _vgg16() -> list[nn.Module]:
    """torchvision's vgg16.features up to the last tap."""
    layers: list[nn.Module] = []
    before = 3
    for width, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers += [nn.MaxPool2d(2, 2)] if layers else []
        for _ in range(repeats):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
    return layers


def _direction(x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
    # The published epsilon; inside the root too, whose slope at 0 is infinite.
    return x / ((x.square().sum(1, keepdim=True) + 1e-20).sqrt() + 1e-10)

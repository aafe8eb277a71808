"""How close decoded clips are to their originals: PSNR and SSIM, a value per clip."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from hstvg.metrics.interval import mean_interval
from hstvg.types import Estimate

BEST_PSNR = 100.0
"""dB given to a clip without any error, whose PSNR is infinite."""


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """PSNR in dB and SSIM in [-1, 1]; pixels are rounded to 8 bits first, as a viewer sees them."""

    psnr: tuple[float, ...] = ()
    """Per clip."""
    ssim: tuple[float, ...] = ()
    """Per clip: the mean over its frames."""

    @classmethod
    def empty(cls) -> "Reconstruction":
        return cls()

    def update(
        self,
        *,
        reconstructed: Float[Tensor, "B 3 T H W"],
        reference: Float[Tensor, "B 3 T H W"],
        **_: object,
    ) -> "Reconstruction":
        """Both in [0, 1]; what lies outside is clipped."""
        pairs = [
            _compare(ours, theirs)
            for ours, theirs in zip(_as_seen(reconstructed), _as_seen(reference), strict=True)
        ]
        return self.merge(
            Reconstruction(
                psnr=tuple(psnr for psnr, _ in pairs), ssim=tuple(ssim for _, ssim in pairs)
            )
        )

    def merge(self, other: "Reconstruction") -> "Reconstruction":
        return Reconstruction(psnr=self.psnr + other.psnr, ssim=self.ssim + other.ssim)

    def compute(self) -> Mapping[str, Estimate]:
        """Means over clips; nothing when no clip was seen."""
        if not self.psnr:
            return {}
        return {"psnr": mean_interval(self.psnr), "ssim": mean_interval(self.ssim)}


def _as_seen(pixels: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B T 3 H W"]:
    levels = (pixels.detach().float().clamp(0.0, 1.0) * 255.0).round() / 255.0
    return levels.transpose(1, 2)


def _compare(
    ours: Float[Tensor, "T 3 H W"], theirs: Float[Tensor, "T 3 H W"]
) -> tuple[float, float]:
    # Seconds to import, and only evaluation needs it.
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    psnr = peak_signal_noise_ratio(ours, theirs, data_range=1.0)
    ssim = structural_similarity_index_measure(ours, theirs, data_range=1.0)
    return min(float(psnr), BEST_PSNR), float(ssim)  # pyright: ignore[reportArgumentType]

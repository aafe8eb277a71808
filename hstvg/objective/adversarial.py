"""AdversarialTerm: decoded pixels look real to an adversary (hinge GAN, arXiv 1705.02894).

The adversary's gradient is scaled to that of a reference term, as in arXiv 2012.09841. There both
are taken at the decoder's last layer, whose weights no rank holds whole under ZeRO 3; here at the
decoded pixels, one step further on, and per clip, so that no clip's scale depends on its batch.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from hstvg.objective.reconstruction import ReconstructionTerm
from hstvg.types import Prediction, Term, TrainingBatch

LARGEST_SCALE = 1e4
"""An adversary that is sure of everything has hardly a gradient, and what it has is noise."""


class AdversarialTerm:
    """Minus the realism of the pixels; 0 before the adversary begins.

    The value is not scaled, its gradient is: a weight of 0.1 gives the adversary a tenth of the
    reference's say in every clip.

    Args:
        reference: term of the pixels; ReconstructionTerm() if not given.
    """

    def __init__(self, reference: Term | None = None) -> None:
        self.reference = reference or ReconstructionTerm()

    def __call__(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        assert prediction.pixels is not None, "AdversarialTerm needs Prediction.pixels"
        guess = prediction.pixels.guess
        if prediction.realism is None:
            return torch.zeros(len(guess), device=guess.device)
        value = -prediction.realism.float()
        if not value.requires_grad:
            return value
        own = _steepness(value, guess)
        scale = _steepness(self.reference(prediction, batch), guess) / own.clamp_min(1e-12)
        return value.detach() + scale.clamp_max(LARGEST_SCALE) * (value - value.detach())


def _steepness(value: Float[Tensor, "B"], pixels: Float[Tensor, "B *axes"]) -> Tensor:
    """Norm of the gradient of each clip's value, [B]."""
    (slope,) = torch.autograd.grad(value.sum(), pixels, retain_graph=True)
    return slope.float().flatten(1).norm(dim=1)

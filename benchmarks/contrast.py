"""ContrastTerm: a guessed clip looks more like the true one than like the others of its batch.

InfoNCE (arXiv 1807.03748) of the statistics that StyleTerm compares, as a reading of L_style for
benchmarks.ablate_loss. What a clip costs depends on which others stand beside it, and so on the
number of workers: it is no term of the system.
"""

from math import log

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hstvg.nn.correspondence import TEMPERATURE
from hstvg.objective.objective import weighted_mean
from hstvg.types import Pair, Prediction, TrainingBatch


class ContrastTerm:
    """Nats by which the true clip is not told from the others; log(clips) if it is not at all."""

    def __call__(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        pair = prediction.style
        assert pair is not None, "ContrastTerm needs Prediction.style"
        known = pair.target[:, 0].detach().float()  # the same for all draws of a clip
        typical = known.mean(0)
        guess, known = (F.normalize(x - typical, dim=-1) for x in (pair.guess.float(), known))
        likeness = torch.einsum("bns,js->bnj", guess, known) / TEMPERATURE
        own = torch.arange(len(known), device=known.device)
        nats = -likeness.log_softmax(-1)[own, :, own]  # B n
        return weighted_mean(nats[..., None], pair)

    def trivial(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        pair = prediction.style
        assert isinstance(pair, Pair)
        return weighted_mean(torch.full_like(pair.guess[..., :1], log(len(pair.guess))), pair)

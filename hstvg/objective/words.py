"""WordsTerm: a clip is read as its caption: the loss of stage=features."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hstvg.types import Prediction, TrainingBatch


class WordsTerm:
    """Cross-entropy in nats of every word's being shown or not, averaged over the words."""

    def __call__(self, prediction: Prediction, batch: TrainingBatch) -> Float[Tensor, "B"]:
        pair = prediction.words
        assert pair is not None, "WordsTerm needs Prediction.words"
        target = pair.target.detach().float()
        losses = F.binary_cross_entropy_with_logits(pair.guess.float(), target, reduction="none")
        return losses.flatten(1).mean(1)

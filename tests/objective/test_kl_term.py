import math

import pytest
import torch

from hstvg.objective.kl import KLTerm
from hstvg.types import Posterior, Prediction


@pytest.mark.parametrize(
    ("mean", "logvar", "nats"),
    [
        (0.0, 0.0, 0.0),
        (1.0, 0.0, 0.5),
        # (4 - 1 - ln 4) / 2
        (0.0, math.log(4), 0.806853),
        # (9 + 1/e - 1 + 1) / 2
        (3.0, -1.0, 4.683940),
    ],
)
def test_kl_by_hand(mean, logvar, nats, batch):
    shape = (1, 4, 1, 2, 2)
    posterior = Posterior(mean=torch.full(shape, mean), logvar=torch.full(shape, logvar))
    value = KLTerm()(Prediction(posterior=posterior), batch)
    assert value.item() == pytest.approx(nats, abs=1e-5)

import math

import pytest
import torch

from hstvg.objective.words import WordsTerm
from hstvg.types import Pair, Prediction


def value(logits, shown, batch):
    pair = Pair(guess=torch.tensor([logits]), target=torch.tensor([shown]))
    return WordsTerm()(Prediction(words=pair), batch).item()


def test_cross_entropy_by_hand(batch):
    assert value([0.0, 0.0], [1.0, 0.0], batch) == pytest.approx(math.log(2))
    # Odds of 3 to 1 for the right word, of 1 to 3 for another that is wrong.
    odds = math.log(3)
    assert value([odds, -odds], [1.0, 0.0], batch) == pytest.approx(math.log(4 / 3))
    assert value([odds, -odds], [0.0, 0.0], batch) == pytest.approx(
        (math.log(4) + math.log(4 / 3)) / 2
    )

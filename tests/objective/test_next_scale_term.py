import math

import pytest
import torch

from hstvg.objective.next_scale import NextScaleTerm
from hstvg.types import CodePair, Pair, Prediction


def rung(tokens, odds):
    """One clip and channel of three codes, the true one `odds` to 1 against each other."""
    logits = torch.tensor([math.log(odds), 0.0, 0.0]).expand(1, 1, tokens, 3)
    return CodePair(logits=logits, codes=torch.zeros(1, 1, tokens, dtype=torch.long))


def test_cross_entropy_by_hand(batch):
    prediction = Prediction(codes=(rung(1, 2.0), rung(4, 1.0)))
    # Probabilities of 2 / 4 and 1 / 3; weights of 1 and 2, the roots of 1 and 4 tokens.
    want = (math.log(2) + 2 * math.log(3)) / 3
    assert NextScaleTerm()(prediction, batch).item() == pytest.approx(want)
    want = (math.log(2) + 4 * math.log(3)) / 5
    assert NextScaleTerm(power=1.0)(prediction, batch).item() == pytest.approx(want)


def test_all_codes_alike_are_the_trivial_guess(batch):
    prediction = Prediction(codes=(rung(1, 2.0), rung(4, 7.0)))
    assert NextScaleTerm().trivial(prediction, batch).item() == pytest.approx(math.log(3))


def test_of_values_the_velocity_of_zero_is_the_trivial_guess(batch):
    def pair(cells, size):
        target = torch.full((1, 2, cells, 1, 1), size)
        return Pair(guess=torch.ones_like(target), target=target)

    prediction = Prediction(residuals=(pair(1, 2.0), pair(4, 3.0)))
    assert NextScaleTerm()(prediction, batch).item() == pytest.approx((1 + 2 * 4) / 3)
    assert NextScaleTerm().trivial(prediction, batch).item() == pytest.approx((4 + 2 * 9) / 3)

import pytest
import torch

from hstvg.objective.adversarial import AdversarialTerm
from hstvg.objective.objective import squared_error
from hstvg.types import Pair, Prediction


class SquaredError:
    def __call__(self, prediction, batch):
        return squared_error(prediction.pixels)


def judged(slopes, errors):
    """Clips of 12 values each, wrong by `errors` in each, which raise realism by `slopes`."""
    guess = torch.tensor(errors).view(-1, 1, 1, 1, 1).repeat(1, 3, 1, 2, 2).requires_grad_()
    realism = 0.5 + (guess * torch.tensor(slopes).view(-1, 1, 1, 1, 1)).flatten(1).sum(1)
    pixels = Pair(guess=guess, target=torch.zeros_like(guess))
    return guess, Prediction(pixels=pixels, realism=realism)


def test_the_value_is_minus_the_realism(batch):
    _, prediction = judged([2.0, -1.0], [0.1, 0.2])
    value = AdversarialTerm()(prediction, batch)
    # 0.5 + 12 * 0.1 * 2 and 0.5 - 12 * 0.2
    assert value.tolist() == pytest.approx([-2.9, 1.9])


def test_every_clip_has_the_gradient_of_the_reference_in_the_adversarys_direction(batch):
    guess, prediction = judged([2.0, -1e-3], [0.3, 0.6])
    AdversarialTerm(SquaredError())(prediction, batch).sum().backward()
    # The squared error's slope is 2 e / 12 in each of the 12 pixels.
    want = torch.tensor([-0.3 / 6, 0.6 / 6]).view(-1, 1, 1, 1, 1).expand_as(guess)
    torch.testing.assert_close(guess.grad, want)


def test_an_adversary_without_a_slope_moves_nothing(batch):
    guess, prediction = judged([0.0], [0.3])
    AdversarialTerm(SquaredError())(prediction, batch).sum().backward()
    assert guess.grad.tolist() == torch.zeros_like(guess).tolist()


def test_a_perfect_guess_is_left_alone(batch):
    guess, prediction = judged([2.0], [0.0])
    AdversarialTerm(SquaredError())(prediction, batch).sum().backward()
    assert guess.grad.abs().max() == 0


def test_before_the_adversary_begins_it_costs_nothing(batch):
    _, prediction = judged([2.0], [0.3])
    value = AdversarialTerm()(Prediction(pixels=prediction.pixels), batch)
    assert value.tolist() == [0]
    assert not value.requires_grad


def test_held_out_clips_need_no_gradient(batch):
    with torch.no_grad():
        _, prediction = judged([2.0], [0.1])
    value = AdversarialTerm()(Prediction(pixels=prediction.pixels, realism=torch.ones(1)), batch)
    assert value.tolist() == [-1]

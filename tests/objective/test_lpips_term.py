import pytest
import torch

from hstvg.nn.lpips import Lpips
from hstvg.objective.lpips import LpipsTerm
from hstvg.types import Pair, Prediction


class Red(Lpips):
    """Stands for the network: the distance of two images is that of their red."""

    def __init__(self):
        torch.nn.Module.__init__(self)

    def forward(self, guess, target):
        return (guess - target)[:, 0].abs().mean((1, 2))


def test_it_is_averaged_over_the_frames_of_each_clip(batch):
    target = torch.zeros(2, 3, 4, 8, 8)
    guess = target.clone()
    guess[0, 0, 1] = 1.0
    guess[1, 0] = 0.5
    guess[1, 1:] = 9.0
    prediction = Prediction(pixels=Pair(guess=guess, target=target))
    assert LpipsTerm(Red())(prediction, batch).tolist() == [0.25, 0.5]


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"lpips.pt is no file; hstvg/nn/lpips.py tells how"):
        LpipsTerm(tmp_path / "lpips.pt")

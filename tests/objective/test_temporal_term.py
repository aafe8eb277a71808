import pytest
import torch

from hstvg.objective.temporal import TemporalTerm
from hstvg.types import Pair, Prediction


def value(guess, target, batch):
    def clip(frames):
        return torch.tensor(frames).reshape(1, 1, -1, 1, 1).expand(1, 3, -1, 2, 2)

    prediction = Prediction(pixels=Pair(guess=clip(guess), target=clip(target)))
    return TemporalTerm()(prediction, batch).item()


def test_frame_differences_by_hand(batch):
    # The changes are 0.2, 0.2 instead of 0.1, -0.3: |0.1| and |0.5|, on average 0.3.
    assert value([0.0, 0.2, 0.4], [0.0, 0.1, -0.2], batch) == pytest.approx(0.3)


def test_what_is_wrong_in_all_frames_alike_costs_nothing(batch):
    assert value([0.5, 0.7], [0.0, 0.2], batch) == pytest.approx(0.0, abs=1e-6)


def test_one_frame_has_no_change(batch):
    assert value([0.5], [0.0], batch) == 0

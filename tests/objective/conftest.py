import pytest
import torch

from hstvg.types import VideoBatch


@pytest.fixture
def batch():
    """One clip; the terms here read the prediction alone."""
    return VideoBatch(
        pixels=torch.zeros(1, 3, 2, 4, 4),
        fps=torch.tensor([8.0]),
        captions=("",),
        positions=torch.zeros(1, dtype=torch.long),
        keys=("",),
        motion=torch.zeros(1, 2, 2, 1, 1),
        motion_confidence=torch.zeros(1, 1, 2, 1, 1),
    )

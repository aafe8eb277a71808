import pytest
import torch

from hstvg.train.ema import Ema


def weights(value):
    return {"layer.weight": torch.full((2, 3), value), "layer.bias": torch.full((2,), -value)}


def test_the_decay_warms_up_by_hand():
    ema = Ema(weights(0.0), decay=0.999)
    ema.update(weights(1.0))
    # Decay 2/11.
    assert ema.average["layer.weight"][0, 0].item() == pytest.approx(9 / 11)
    ema.update(weights(2.0))
    # Decay 3/12: 0.25 * 9/11 + 0.75 * 2.
    assert ema.average["layer.weight"][0, 0].item() == pytest.approx(0.25 * 9 / 11 + 1.5)
    assert ema.average["layer.bias"][0].item() == pytest.approx(-0.25 * 9 / 11 - 1.5)
    assert ema.updates == 2


def test_the_decay_stops_at_its_limit():
    ema = Ema(weights(0.0), decay=0.1)
    ema.update(weights(1.0))
    assert ema.average["layer.bias"][0].item() == pytest.approx(-0.9)


def test_averages_are_full_precision_copies():
    half = {"w": torch.ones(2, dtype=torch.bfloat16)}
    ema = Ema(half, decay=0.999)
    half["w"].fill_(5)
    assert ema.average["w"].dtype == torch.float32
    assert ema.average["w"].tolist() == [1, 1]
    ema.update({"w": torch.full((2,), 1.0078125, dtype=torch.bfloat16)})
    assert 1 < ema.average["w"][0] < 1.0078125


def test_a_restored_average_goes_on_as_if_nothing_had_happened():
    ema = Ema(weights(0.0), decay=0.99)
    for value in (1.0, 2.0, 3.0):
        ema.update(weights(value))
    resumed = Ema(weights(7.0), decay=0.99)
    resumed.restore(ema.average.items(), updates=ema.updates)
    for each in (ema, resumed):
        each.update(weights(4.0))
    assert resumed.updates == ema.updates == 4
    for name, value in ema.average.items():
        assert torch.equal(resumed.average[name], value)

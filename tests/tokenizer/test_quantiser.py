import pytest
import torch

from hstvg.tokenizer.quantiser import BSQ, FSQ, Quantiser

ALL_QUANTISERS = {"FSQ-3": FSQ(3), "FSQ-5": FSQ(5), "FSQ-7": FSQ(7, reach=2.5), "BSQ": BSQ()}
each_quantiser = pytest.mark.parametrize(
    "quantiser", ALL_QUANTISERS.values(), ids=list(ALL_QUANTISERS)
)
PLACES = torch.linspace(-4, 4, 1000)
"""None of them lies on a border of two codes."""


# ---- the contract -----------------------------------------------------------------------------


@each_quantiser
def test_decoding_a_code_and_encoding_it_again_gives_it(quantiser):
    assert isinstance(quantiser, Quantiser)
    codes = torch.arange(quantiser.levels)
    assert torch.equal(quantiser.encode(quantiser.decode(codes)), codes)


@each_quantiser
def test_codes_are_from_0_to_levels_all_of_them_in_rising_order(quantiser):
    codes = quantiser.encode(PLACES)
    assert codes.dtype == torch.long
    assert torch.equal(codes.unique(), torch.arange(quantiser.levels))
    assert (codes.diff() >= 0).all()


@each_quantiser
def test_a_value_gets_the_nearest_code(quantiser):
    values = quantiser.decode(torch.arange(quantiser.levels))
    nearest = (PLACES[:, None] - values).abs().argmin(1)
    assert torch.equal(quantiser.encode(PLACES), nearest)


@each_quantiser
def test_values_are_symmetric(quantiser):
    values = quantiser.decode(torch.arange(quantiser.levels))
    assert values.dtype == torch.float32
    assert torch.allclose(values, -values.flip(0), atol=1e-6)


@each_quantiser
def test_any_axes_pass(quantiser):
    x = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    codes = quantiser.encode(x)
    assert codes.shape == quantiser.decode(codes).shape == x.shape
    assert torch.equal(codes[1, 2], quantiser.encode(x[1, 2]))


# ---- by hand ----------------------------------------------------------------------------------


def test_fsq_by_hand():
    """Five values from -2 to 2 are the whole numbers; borders lie half-way."""
    quantiser = FSQ(5, reach=2)
    assert quantiser.decode(torch.arange(5)).tolist() == [-2, -1, 0, 1, 2]
    x = torch.tensor([-9.0, -1.6, -1.4, -0.4, 0.0, 0.6, 1.4, 1.6, 9.0])
    assert quantiser.encode(x).tolist() == [0, 0, 1, 2, 2, 3, 3, 4, 4]


def test_bsq_by_hand():
    """The mean magnitude of a standard normal, sqrt(2 / pi), with either sign."""
    assert BSQ().decode(torch.tensor([0, 1])).tolist() == pytest.approx([-0.797885, 0.797885])
    assert BSQ().encode(torch.tensor([-9.0, -0.1, 0.1, 9.0])).tolist() == [0, 0, 1, 1]
    assert BSQ(reach=0.5).decode(torch.tensor([1, 0])).tolist() == [0.5, -0.5]


@pytest.mark.parametrize("levels", [3, 5, 7, 9])
def test_fsq_has_a_code_for_nothing(levels):
    quantiser = FSQ(levels)
    assert quantiser.encode(torch.zeros(1)).item() == levels // 2
    assert quantiser.decode(torch.tensor([levels // 2])).item() == 0


@pytest.mark.parametrize("levels", [-3, 0, 1, 2, 4, 8])
def test_levels_without_a_code_for_nothing_are_refused(levels):
    with pytest.raises(ValueError, match=f"FSQ of {levels} levels has no code for 0"):
        FSQ(levels)


@pytest.mark.parametrize("make", [FSQ, BSQ])
@pytest.mark.parametrize("reach", [0.0, -1.0])
def test_no_reach_is_refused(make, reach):
    with pytest.raises(ValueError, match=f"reach={reach} must be above 0"):
        make(reach=reach)

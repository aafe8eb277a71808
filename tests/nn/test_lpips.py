from pathlib import Path

import pytest
import torch
from lpips_weights import CONVOLUTIONS, published
from safetensors.torch import save_file

from hstvg.nn.lpips import Lpips, load_lpips


@pytest.fixture(scope="module", params=CONVOLUTIONS)
def weights(request):
    return published(request.param)


def images(seed):
    return torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@torch.no_grad()
def test_it_is_a_distance(weights):
    net = Lpips(weights)
    one, other = images(1), images(2)
    assert net(one, one).tolist() == [0, 0]
    assert (net(one, other) > 0.01).all()
    torch.testing.assert_close(net(one, other), net(other, one))
    nearer = net(one, one + 0.1 * (other - one))
    assert (nearer < net(one, other)).all()


@torch.no_grad()
def test_it_is_linear_in_the_heads(weights):
    one, other = images(1), images(2)
    heads = [name for name in weights if name.startswith("lin")]
    assert len(heads) == 5
    whole = Lpips(weights)(one, other)
    twice = Lpips({**weights, **{name: 2 * weights[name] for name in heads}})(one, other)
    torch.testing.assert_close(twice, 2 * whole)
    none = {name: torch.zeros_like(weights[name]) for name in heads}
    parts = [Lpips({**weights, **none, name: weights[name]})(one, other) for name in heads]
    assert all((part > 0).all() for part in parts)
    torch.testing.assert_close(torch.stack(parts).sum(0), whole)


@torch.no_grad()
def test_the_first_layer_by_hand():
    """Heads that are 1 at the first tap alone: 1 - cosine of what the first layer sees, twice."""
    weights = published("alex")
    for name in [name for name in weights if name.startswith("lin")]:
        weights[name] = torch.full_like(weights[name], float(name.startswith("lin0")))
    one, other = images(1), images(2)
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    seen = [
        torch.nn.functional.conv2d(
            (image - shift) / scale,
            weights["features.0.weight"],
            weights["features.0.bias"],
            stride=4,
            padding=2,
        ).relu()
        for image in (one, other)
    ]
    cosine = torch.nn.functional.cosine_similarity(*seen, dim=1)
    torch.testing.assert_close(Lpips(weights)(one, other), (2 - 2 * cosine).mean((1, 2)))


def test_a_black_place_has_a_gradient_without_nan(weights):
    dark = {name: torch.zeros_like(value) for name, value in weights.items() if "bias" in name}
    net = Lpips({**weights, **dark})
    # What the scaling maps to zeros, so that nothing is seen anywhere.
    nothing = net.shift.expand(1, 3, 32, 32).clone().requires_grad_()
    net(nothing, images(1)[:1, :, :, :32]).sum().backward()
    assert torch.isfinite(nothing.grad).all()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_of_either_kind_is_read(suffix, weights, tmp_path):
    file = tmp_path / f"lpips{suffix}"
    (torch.save if suffix == ".pt" else save_file)(weights, file)
    net = load_lpips(file)
    assert not any(weight.requires_grad for weight in net.parameters())
    assert torch.equal(net(images(1), images(2)), Lpips(weights)(images(1), images(2)))


def test_a_file_that_would_run_code_is_not_run(tmp_path):
    torch.save({"features.0.weight": Path}, tmp_path / "evil.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        load_lpips(tmp_path / "evil.pt")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"features.0.weight": None}, "features.0.weight is missing"),
        ({"lin3.model.1.weight": None}, "lin3.model.1.weight is missing"),
        ({"features.0.weight": torch.zeros(4, 3, 7, 7)}, "of another network"),
        ({"lin1.model.1.weight": torch.zeros(1, 7, 1, 1)}, r"size mismatch for heads\.1"),
    ],
)
def test_other_weights_are_refused_by_name(change, said):
    weights = published("alex") | change
    with pytest.raises(ValueError, match=said):
        Lpips({name: value for name, value in weights.items() if value is not None})

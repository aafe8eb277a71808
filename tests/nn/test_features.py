import json

import pytest
import torch
from safetensors.torch import save_file

from hstvg.nn.features import FeatureNetwork, load_features


def network(**sizes):
    torch.manual_seed(0)
    return FeatureNetwork(num_words=5, **{"base": 4, "depth": 3, **sizes})


def clips(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(8, 16, 24), (1, 8, 8), (9, 7, 5), (1, 1, 1)])
def test_clips_of_any_size_are_read(size):
    assert network()(clips(2, 3, *size)).shape == (2, 5)


def test_each_level_is_half_as_large():
    shapes = [tuple(level.shape[1:]) for level in network().levels(clips(2, 3, 8, 16, 24))]
    assert shapes == [(4, 8, 8, 12), (8, 4, 4, 6), (16, 2, 2, 3)]


def test_a_clip_is_read_alike_in_any_batch():
    net, pixels = network(), clips(3, 3, 4, 8, 8)
    assert torch.allclose(net(pixels)[1:2], net(pixels[1:2]), atol=1e-6)


def test_a_trained_network_is_loaded_at_rest(tmp_path):
    net = network()
    node = {"_target_": "hstvg.nn.features.FeatureNetwork", "num_words": 5, "base": 4, "depth": 3}
    (tmp_path / "config.json").write_text(json.dumps({"stage": "features", "features": node}))
    weights = {f"features.{name}": value for name, value in net.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors")
    loaded = load_features(tmp_path)
    assert not loaded.training
    assert not any(weight.requires_grad for weight in loaded.parameters())
    pixels = clips(1, 3, 4, 8, 8)
    assert torch.equal(loaded(pixels), net(pixels))


def test_another_kind_of_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"stage": "tokenizer"}))
    with pytest.raises(ValueError, match="stage=tokenizer; name one of stage=features"):
        load_features(tmp_path)

import pytest
import torch

from hstvg.nn.transformer import Memory, Modulation, Order, TransformerLayer, attend


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def order(real=None):
    steps = torch.tensor([0, 0, 1, 2, 2, 2])
    return Order(
        query=steps, key=steps, real=torch.ones(2, 6, dtype=bool) if real is None else real
    )


def layer(width=16, head_dim=8):
    torch.manual_seed(0)
    made = TransformerLayer(width, head_dim=head_dim)
    torch.nn.init.normal_(made.table, std=0.5)
    return made


def test_a_token_sees_its_step_and_those_before():
    dense = order().dense()[0, 0]
    steps = [0, 0, 1, 2, 2, 2]
    for q, mine in enumerate(steps):
        for k, theirs in enumerate(steps):
            assert dense[q, k] == (theirs <= mine)


def test_nobody_sees_a_token_that_is_not_real():
    real = torch.ones(2, 6, dtype=bool)
    real[1, 3] = False
    dense = order(real).dense()
    assert dense[0, 0, :, 3].tolist() == [False, False, False, True, True, True]
    assert not dense[1, 0, :, 3].any()


def test_flex_attention_and_its_block_mask_say_the_same():
    real = torch.ones(2, 6, dtype=bool)
    real[1, 1] = False
    q, k, v = (noise(2, 2, 6, 8, seed=i) for i in range(3))
    dense, blocks = order(real).dense(), order(real).blocks()
    assert torch.allclose(attend(q, k, v, dense), attend(q, k, v, blocks), atol=1e-5)


def test_a_layer_begins_as_the_identity():
    x = noise(2, 6, 16)
    fresh = TransformerLayer(16, head_dim=8)
    modulation = Modulation(16)(noise(2, 16))
    assert modulation.shape == (2, 6, 16)
    assert torch.equal(fresh(x, modulation, torch.zeros(6, 4), None), x)


def test_tokens_read_one_step_after_another_come_out_as_all_at_once():
    x, modulation, angles = noise(2, 6, 16), noise(2, 6, 16, seed=1), noise(6, 4, seed=2)
    whole = layer()(x, modulation, angles, order().dense())
    memory = Memory()
    parts = [
        layer()(x[:, part], modulation, angles[part], None, memory)
        for part in (slice(0, 2), slice(2, 3), slice(3, 6))
    ]
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)


@pytest.mark.parametrize("changed", range(6))
def test_what_comes_later_changes_nothing_before(changed):
    modulation, angles = noise(1, 6, 16), noise(6, 4)
    steps = torch.tensor([0, 0, 1, 2, 2, 2])
    mask = Order(query=steps, key=steps, real=torch.ones(1, 6, dtype=bool)).dense()
    x = noise(1, 6, 16)
    other = x.clone()
    other[:, changed] += noise(16, seed=7)
    moved = (layer()(x, modulation, angles, mask) - layer()(other, modulation, angles, mask)) != 0
    moved = moved.any(-1)[0]
    assert moved.tolist() == [bool(step >= steps[changed]) for step in steps]

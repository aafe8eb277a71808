import pytest
import torch

from hstvg.generator.hst_unet import HSTUNet, ModulatedBlock
from hstvg.generator.paged import check_kinds
from hstvg.types import Condition


def unet(kinds, awake=False, **sizes):
    torch.manual_seed(0)
    made = HSTUNet(
        channels=5,
        latent_size=(8, 8, 8),
        num_levels=2,
        text_width=12,
        widths=(16, 24, 32)[: len(kinds)],
        kinds=kinds,
        head_dim=8,
        **sizes,
    )
    if awake:
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def condition(count=2, tokens=3):
    torch.manual_seed(1)
    mask = torch.ones(count, tokens, dtype=torch.bool)
    return Condition(text=torch.randn(count, tokens, 12), text_mask=mask)


KINDS = [("global",), ("local", "global"), ("local", "regional", "global")]


@pytest.mark.parametrize("size", [(4, 4, 4), (8, 8, 8), (4, 8, 4)])
@pytest.mark.parametrize("kinds", KINDS)
@torch.no_grad()
def test_shapes_of_every_size_it_serves(kinds, size):
    x, tau = torch.randn(2, 5, *size), torch.rand(2)
    for level in (0, 1):
        assert unet(kinds)(x, tau, level, condition()).shape == x.shape


@pytest.mark.parametrize("kinds", [("local", "regionl"), ("local",), ("local", "global", "local")])
def test_levels_and_their_kinds_go_together(kinds):
    with pytest.raises(ValueError, match=r"regional.* for each of 2 widths"):
        check_kinds(kinds, 2, None)


@torch.no_grad()
def test_the_velocity_starts_at_zero():
    x, tau = torch.randn(2, 5, 4, 4, 4), torch.rand(2)
    assert unet(("local", "global"))(x, tau, 0, condition()).abs().sum() == 0


@torch.no_grad()
def test_time_level_text_and_place_are_heard():
    model, told = unet(("local", "global"), awake=True), condition()
    x, tau = torch.randn(2, 5, 4, 4, 4), torch.full((2,), 0.3)
    base = model(x, tau, 0, told)
    other = Condition(text=told.text.flip(0), text_mask=told.text_mask)
    for changed in (
        model(x, tau + 0.2, 0, told),
        model(x, tau, 1, told),
        model(x, tau, 0, other),
        model(x.flip(3), tau, 0, told).flip(3),
    ):
        assert not torch.allclose(changed, base, atol=1e-3)


@torch.no_grad()
def test_clips_do_not_see_each_other():
    model, told = unet(("local", "regional", "global"), awake=True), condition()
    x, tau = torch.randn(2, 5, 8, 8, 8), torch.tensor([0.2, 0.9])
    alone = Condition(text=told.text[1:], text_mask=told.text_mask[1:])
    together = model(x, tau, 1, told)[1:]
    assert torch.allclose(model(x[1:], tau[1:], 1, alone), together, atol=1e-5)


@torch.no_grad()
def test_padded_tokens_are_not_heard():
    model, told = unet(("local", "global"), awake=True), condition()
    padded = Condition(
        text=torch.cat([told.text, torch.full((2, 2, 12), 50.0)], dim=1),
        text_mask=torch.cat([told.text_mask, torch.zeros(2, 2, dtype=torch.bool)], dim=1),
    )
    x, tau = torch.randn(2, 5, 4, 4, 4), torch.rand(2)
    assert torch.allclose(model(x, tau, 0, padded), model(x, tau, 0, told), atol=1e-5)


def test_recomputing_levels_changes_no_gradient():
    told, tau = condition(), torch.rand(2, generator=torch.Generator().manual_seed(2))
    x = torch.randn(2, 5, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    found = []
    for checkpointing in (False, True):
        model = unet(("local", "global"), awake=True, checkpointing=checkpointing)
        model(x, tau, 1, told).square().sum().backward()
        found.append({name: weight.grad for name, weight in model.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_a_modulated_block_starts_as_the_identity():
    x = torch.randn(2, 8, 2, 4, 4)
    assert torch.equal(ModulatedBlock(8, 6)(x, torch.randn(2, 6)), x)

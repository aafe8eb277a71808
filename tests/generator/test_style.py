"""A style reference: what it says, by which ways alone, and what it changes."""

from dataclasses import replace

import pytest
import torch
from test_hierarchical import CAPTIONS, CODEC, batch_of, draws, example, generator, latents
from test_joint import generator as joint

from hstvg.generator.generator import Sampling
from hstvg.generator.guidance import guided
from hstvg.generator.style import StyleAdapter, Styling, pair_looks
from hstvg.nn.haar_bank import num_statistics, style_statistics
from hstvg.objective.diffusion import DiffusionTerm
from hstvg.objective.flow import FlowTerm
from hstvg.objective.objective import Objective, WeightedTerm
from hstvg.objective.style import StyleTerm
from hstvg.types import Condition, Hints, StyleReference

S = num_statistics(4, 4, 4)
STYLING = Styling(width=8, tokens=3, dropout=0.0)
OBJECTIVE = Objective(
    {
        "diffusion": WeightedTerm(DiffusionTerm(), 1.0),
        "flow": WeightedTerm(FlowTerm(), 0.1),
        "style": WeightedTerm(StyleTerm(), 0.1),
    }
)


def reference(known=(True, True, True, True), seed=0):
    noise = torch.Generator().manual_seed(seed)
    z = torch.randn(len(known), 4, 4, 4, 4, generator=noise)
    return StyleReference(statistics=style_statistics(z), known=torch.tensor(known))


def styled(**changes):
    return generator(**({"style": STYLING} | changes))


def evaluated(model, style, text="a red circle", level=1):
    ids, mask = model.text.tokenize([text])
    condition = Condition(text=model.text(ids, mask), text_mask=mask, style=style)
    x = torch.randn(1, 6, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    return model.unet(x, torch.tensor([0.3]), level, condition)


def wake(model, only=""):
    """Move the weights whose names have a part `only`."""
    with torch.no_grad():
        noise = torch.Generator().manual_seed(1)
        for name, weight in model.named_parameters():
            if only in name:
                weight.add_(0.05 * torch.randn(weight.shape, generator=noise))
    return model


def test_the_adapter_comes_last_and_is_silent_at_first():
    bare, model = generator(), styled()
    ours = dict(model.named_parameters())
    for name, weight in bare.named_parameters():
        assert torch.equal(ours[name], weight)
    for made in (bare, model):
        with torch.no_grad():
            made.unet.leave.weight.normal_(generator=torch.Generator().manual_seed(0))
    plain = evaluated(bare, None)
    assert plain.any()
    assert torch.equal(evaluated(model, None), plain)
    assert torch.equal(evaluated(model, reference((True,))), plain)


def test_no_reference_says_nothing_ever():
    model = wake(styled())
    unknown = reference((False,))
    silent = evaluated(model, unknown)
    assert torch.equal(evaluated(model, None), silent)
    assert torch.equal(evaluated(model, reference((False,), seed=1)), silent)
    assert not torch.allclose(evaluated(model, reference((True,))), silent, atol=1e-4)


@pytest.mark.parametrize("way", ["cues.style.vector", "cues.style.0.leave"])
def test_each_way_carries_the_style_alone(way):
    """The vector into every block, and the tokens into the cross-attention."""
    model = styled()
    for part in ("unet.leave", "modulate", "conv2", way):  # else later layers are silent
        wake(model, part)
    first, second = (evaluated(model, reference((True,), seed)) for seed in (0, 1))
    assert not torch.allclose(first, second, atol=1e-6)
    assert not torch.allclose(first, evaluated(model, None), atol=1e-6)


def test_an_adapter_reads_every_clip_alone():
    torch.manual_seed(0)
    adapter = wake(StyleAdapter(STYLING, S, 16))
    style = reference((True, False, True, True))
    vector, tokens = said(adapter, style, 4)
    assert vector.shape == (4, 16)
    assert tokens.shape == (4, 3, 8)
    assert not vector[1].any()
    assert not tokens[1].any()
    one = StyleReference(statistics=style.statistics[2:3], known=style.known[2:3])
    assert torch.allclose(said(adapter, one, 1)[0], vector[2:3], atol=1e-6)


def said(adapter, style, count):
    told = Condition(
        text=torch.zeros(count, 1, 4), text_mask=torch.ones(count, 1).bool(), style=style
    )
    signal = torch.zeros(count, 16)
    return adapter.signal(signal, told), adapter.tokens(signal, told)


@pytest.mark.parametrize(
    "style", [None, reference((False,) * 4), reference((True, False, True, False)), reference()]
)
def test_every_parameter_takes_part_at_every_step(style):
    for model in (styled(), wake(styled())):
        prediction = model(model.example(latents(style=style), CODEC, draws()))
        OBJECTIVE(prediction, batch_of(4))[0].backward()
        assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
        for weight in model.parameters():
            assert torch.isfinite(weight.grad).all()


def test_every_parameter_of_the_adapter_learns_from_references():
    model = wake(styled())
    OBJECTIVE(model(model.example(latents(style=reference()), CODEC, draws())), batch_of(4))[
        0
    ].backward()
    own = {name: weight for name, weight in model.named_parameters() if "style" in name}
    assert len(own) > 8
    assert [name for name, weight in own.items() if not weight.grad.any()] == []


def test_references_are_dropped_clip_by_clip():
    model = styled(style=replace(STYLING, dropout=0.5))
    whole = model.example(latents(style=reference()), CODEC, draws()).style
    assert not torch.equal(whole.known, torch.ones(4, dtype=torch.bool))
    part = StyleReference(statistics=whole.statistics[2:], known=reference().known[2:])
    alone = model.example(latents(slice(2, 4), style=part), CODEC, draws(12, 2)).style
    assert torch.equal(alone.known, whole.known[2:])
    everything = styled(style=replace(STYLING, dropout=1.0))
    assert not everything.example(latents(style=reference()), CODEC, draws()).style.known.any()


@pytest.mark.parametrize(
    "wrong", [{"width": 0}, {"tokens": 0}, {"dropout": 1.5}, {"late": 1.0}, {"late": -0.1}]
)
def test_settings_out_of_range_are_refused(wrong):
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=f"style.{name}=.* is out of its range"):
        replace(STYLING, **wrong)


# ---- the prediction ---------------------------------------------------------------------------


@pytest.mark.parametrize("late", [0.0, 0.5])
def test_looks_of_a_right_velocity_are_right(late):
    model = styled(draws=(3, 4))
    path = example(model).paths[-1]
    pair = pair_looks(model.path, path, path.velocity[:, :4].unflatten(0, (4, 4)), late)
    assert pair.guess.shape == (4, 4, S)
    assert torch.allclose(pair.guess, pair.target, atol=2e-3)
    assert torch.allclose(pair.target[:, 0], style_statistics(latents().latent), atol=1e-5)
    asked = (path.tau >= late).unflatten(0, (4, 4))
    assert torch.equal(pair.weight[..., 0] > 0, asked)
    assert asked.all() if late == 0 else 0 < asked.float().mean() < 1


def test_another_generator_predicts_no_style():
    model = generator()
    assert model(example(model)).style is None


# ---- sampling ---------------------------------------------------------------------------------


def sampled(model, style=None, captions=CAPTIONS[:2], **settings):
    asked = Sampling(**{"steps": 2, "guidance": 1.0, **settings})
    return model.sample(
        captions, CODEC, draws(0, len(captions)), asked, hints=Hints(style=style)
    ).finest


def test_a_sample_listens_to_its_reference():
    model = wake(styled())
    two = reference((True, True))
    assert not torch.allclose(sampled(model, two), sampled(model), atol=1e-4)
    assert torch.equal(sampled(model, reference((False, False))), sampled(model))


def test_guidance_in_its_limits():
    """v = v00 + w_style (v0s - v00) + w_text (vts - v0s)."""
    condition = Condition(
        text=torch.ones(1, 1, 1), text_mask=torch.ones(1, 1) > 0, style=reference((True,))
    )
    nothing = replace(condition, text=torch.zeros(1, 1, 1))
    asked = []

    def network(x, tau, level, condition):
        asked.append(condition)
        text, style = condition.text.item(), condition.style is not None
        return x + 10 * text + 3 * style + 5 * text * style

    def velocity(guidance, style_guidance):
        asked.clear()
        settings = Sampling(guidance=guidance, style_guidance=style_guidance)
        move = guided(network, condition, nothing, settings)
        return move(torch.zeros(1), torch.zeros(1), 0).item()

    assert velocity(1, 1) == 18
    assert len(asked) == 1
    assert velocity(0, 1) == 3
    assert velocity(4, 1) == 3 + 4 * 15
    assert len(asked) == 2
    assert velocity(0, 0) == 0
    assert velocity(1, 0) == 15
    assert velocity(4, 2) == 2 * 3 + 4 * 15
    assert len(asked) == 3


def test_inner_guidance_by_motion_in_its_limits():
    """+ w_motion (v(x) - v(unmoved x)), on the first level alone."""
    condition = Condition(text=torch.ones(1, 1, 1), text_mask=torch.ones(1, 1) > 0)
    nothing = replace(condition, text=torch.zeros(1, 1, 1))

    def velocity(motion_guidance, level=0, guidance=1.0):
        settings = Sampling(guidance=guidance, motion_guidance=motion_guidance)
        move = guided(
            lambda x, tau, level, condition: 7 * x + 10 * condition.text.item(),
            *(condition, nothing, settings),
            unmoved=torch.zeros_like,
        )
        return move(torch.ones(1), torch.zeros(1), level).item()

    assert velocity(0) == 17
    assert velocity(2) == 17 + 2 * 7
    assert velocity(2, guidance=3.0) == 7 + 3 * 10 + 2 * 7
    assert velocity(2, level=1) == 17


def test_motion_may_be_hidden_and_then_guide():
    model = wake(generator(motion_dropout=0.5))
    made = model.example(latents(), CODEC, draws())
    assert 0 < int(made.unmoved.sum()) < 4
    prediction = model(made)
    seen = model(replace(made, unmoved=None))
    for ours, theirs in zip(prediction.motion, seen.motion, strict=True):
        weight = ours.weight.flatten(1).sum(1) > 0
        assert torch.equal(weight, ~made.unmoved)
        same = torch.isclose(ours.guess, theirs.guess, atol=1e-5).flatten(1).all(1)
        assert torch.equal(same, ~made.unmoved)
    assert not torch.allclose(sampled(model, motion_guidance=2.0), sampled(model), atol=1e-4)
    with pytest.raises(ValueError, match="motion_dropout"):
        sampled(generator(), motion_guidance=1.0)


def test_without_a_reference_its_weight_is_nothing():
    model, asked = wake(styled()), []
    plain = sampled(model, guidance=2.0)
    model.unet.register_forward_hook(lambda *call: asked.append(1))
    assert torch.equal(sampled(model, guidance=2.0, style_guidance=3.0), plain)
    assert len(asked) == 2 * 2 * 2


def test_a_generator_without_an_adapter_refuses_a_reference():
    assert not generator().takes_style
    with pytest.raises(ValueError, match=r"trained with \+term=style"):
        sampled(generator(), reference((True, True)))


def test_the_joint_generator_passes_it_on():
    model = wake(joint(style=STYLING))
    assert model.takes_style
    two = reference((True, True))
    for kappa in (0, 1):
        plain, like = (sampled(model, style, kappa=kappa) for style in (None, two))
        assert not torch.allclose(plain, like, atol=1e-4)
    with pytest.raises(ValueError, match="leaves nothing to the denoiser"):
        sampled(model, two, kappa=CODEC.schedule.num_levels)
    prediction = model(model.example(latents(style=reference()), CODEC, draws()))
    assert prediction.style is not None


def test_the_style_is_learnt_by_way_of_the_reference():
    """Clips without words that differ in brightness alone: the reference is all that tells it."""
    model = styled()
    z = latents().latent * 0.1 + torch.tensor([-1.0, -1.0, 1.0, 1.0]).view(-1, 1, 1, 1, 1)
    partners = StyleReference(
        statistics=style_statistics(z[[1, 0, 3, 2]]), known=torch.ones(4, dtype=torch.bool)
    )
    clips = latents(latent=z, captions=("",) * 4, style=partners)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(60):
        made = model.example(clips, CODEC, draws(4 * step))
        loss, _ = OBJECTIVE(model(made), batch_of(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = sampled(model, partners, captions=("",) * 4, steps=8)[:, :4].flatten(1).mean(1)
    assert found[:2].max() < -0.5
    assert found[2:].min() > 0.5

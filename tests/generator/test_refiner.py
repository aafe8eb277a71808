import pytest
import torch

from hstvg.generator.neighbours import Before
from hstvg.generator.refiner import CrossFrameRefiner

SIZE = (2, 3, 5, 4, 6)


def refiner(*, awake=True, steps=2):
    torch.manual_seed(0)
    made = CrossFrameRefiner(channels=3, seconds=0.25, width=8, depth=1, steps=steps)
    if awake:
        with torch.no_grad():
            made.leave.weight.normal_(std=0.3)
    return made


def latent():
    noise = torch.Generator().manual_seed(0)
    return torch.randn(SIZE, generator=noise), 0.5 * torch.randn(2, 2, 5, 4, 6, generator=noise)


def before_of(z, known=(True, True)):
    return Before(
        latent=z[:, :, :1].flip(3), motion=torch.zeros(2, 2, 1, 4, 6), known=torch.tensor(known)
    )


def frames_that_differ(one, other):
    return (one - other).abs().amax((0, 1, 3, 4)).gt(1e-5).tolist()


def test_it_is_the_identity_at_first():
    z, motion = latent()
    steps = refiner(awake=False)(z, motion, before_of(z))
    assert len(steps) == 2
    for step in steps:
        assert torch.equal(step, z)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_each_step_sees_one_frame_to_each_side(steps):
    z, motion = latent()
    model, other = refiner(steps=steps), z.clone()
    other[:, :, 0] += 1
    with torch.no_grad():
        made, changed = model(z, motion), model(other, motion)
    for k in range(steps):
        seen = [i <= k + 1 for i in range(5)]
        assert frames_that_differ(made[k], changed[k]) == seen


def test_the_block_before_reaches_as_many_frames_as_there_are_steps():
    z, motion = latent()
    model, before = refiner(), before_of(z)
    other = Before(latent=before.latent + 1, motion=before.motion, known=before.known)
    with torch.no_grad():
        made, changed = (model(z, motion, one) for one in (before, other))
    assert frames_that_differ(made[0], changed[0]) == [True, False, False, False, False]
    assert frames_that_differ(made[1], changed[1]) == [True, True, False, False, False]


def test_where_nothing_is_known_before_nothing_is_read():
    z, motion = latent()
    model = refiner()
    with torch.no_grad():
        alone = model(z, motion)[-1]
        mixed = model(z, motion, before_of(z, known=(False, True)))[-1]
    assert torch.allclose(mixed[0], alone[0], atol=1e-6)
    assert not torch.allclose(mixed[1], alone[1], atol=1e-3)


def test_the_steps_know_their_number():
    z, motion = latent()
    model = refiner()
    with torch.no_grad():
        first, _ = model(z, motion)
        model.step.weight.copy_(model.step.weight.flip(0))
        assert not torch.allclose(model(z, motion)[0], first, atol=1e-3)


def test_every_parameter_takes_part_from_the_first_step():
    """A parameter without a gradient, be it zero, would stop a sharded optimiser."""
    z, motion = latent()
    for model, silent in ((refiner(awake=False), True), (refiner(), False)):
        sum(step.square().sum() for step in model(z, motion)).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert silent or parameter.grad.abs().sum() > 0, name


def test_a_frame_alone_is_refined_too():
    z, motion = (x[:, :, :1] for x in latent())
    assert refiner()(z, motion)[-1].shape == z.shape


def test_a_refiner_without_steps_is_refused():
    with pytest.raises(ValueError, match="steps=0"):
        refiner(steps=0)

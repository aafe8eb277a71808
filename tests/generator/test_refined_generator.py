"""A generator with a refiner: trained beside the denoiser without moving it, used at the end."""

import pytest
import torch

from hstvg.generate.bundle import assemble
from hstvg.generator.generator import Sampling
from hstvg.generator.hierarchical import HierarchicalGenerator
from hstvg.generator.refining import Refining
from hstvg.objective.diffusion import DiffusionTerm
from hstvg.objective.flow import FlowTerm
from hstvg.objective.objective import Objective, WeightedTerm
from hstvg.objective.refinement import RefinementTerm
from hstvg.paths.draws import Draws
from hstvg.paths.pyramid_flow import PyramidFlow
from hstvg.runtime.config import compose
from hstvg.scales import ScaleSchedule
from hstvg.scene.text import TextEncoder
from hstvg.tokenizer.codec import ScaleCodec
from hstvg.tokenizer.quantiser import FSQ
from hstvg.types import LatentBatch

CODEC = ScaleCodec(4, ScaleSchedule.of_kind("cubic", (4, 4, 4)), FSQ())
TERMS = {"diffusion": DiffusionTerm(), "flow": FlowTerm(), "refinement": RefinementTerm()}
CAPTIONS = ("a red circle", "")


def generator(refiner, *, awake=True):
    torch.manual_seed(0)
    made = HierarchicalGenerator(
        codec=CODEC,
        path=PyramidFlow(boundaries=(0.5, 1.0)),
        text=TextEncoder(width=16, layers=1, heads=2),
        widths=(16, 32),
        head_dim=16,
        refiner=refiner,
    )
    if awake:
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return made


@pytest.fixture
def refining():
    return Refining(num_frames=16, fps=8.0, width=16, depth=1)


@pytest.fixture
def batch():
    noise = torch.Generator().manual_seed(0)
    return LatentBatch(
        latent=torch.randn(2, 4, 4, 4, 4, generator=noise),
        motion=torch.randn(2, 2, 4, 4, 4, generator=noise),
        motion_confidence=torch.rand(2, 1, 4, 4, 4, generator=noise),
        captions=CAPTIONS,
        positions=torch.arange(2),
        keys=("0", "1"),
    )


def draws():
    return Draws(0, range(2), torch.device("cpu"))


def silent(model, *names):
    """Parameters to which the named terms send no gradient."""
    objective = Objective({name: WeightedTerm(TERMS[name], 1.0) for name in names})
    return objective, lambda: {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or parameter.grad.abs().sum() == 0
    }


def test_the_terms_of_the_denoiser_and_of_the_refiner_share_no_parameter(refining, batch):
    model = generator(refining)
    refined = {name for name, _ in model.named_parameters() if name.startswith("refiner.")}
    others = {name for name, _ in model.named_parameters()} - refined
    assert refined
    assert others
    for names, moved in ((("refinement",), refined), (("diffusion", "flow"), others)):
        model.zero_grad()
        objective, unmoved = silent(model, *names)
        objective(model(model.example(batch, CODEC, draws())), batch)[0].backward()
        assert unmoved() == (refined | others) - moved


def test_every_parameter_takes_part_from_the_first_step(refining, batch):
    model = generator(refining, awake=False)
    objective, _ = silent(model, *TERMS)
    objective(model(model.example(batch, CODEC, draws())), batch)[0].backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_a_refiner_changes_nothing_of_what_the_denoiser_sees(refining, batch):
    plain, with_one = generator(None), generator(refining)
    with_one.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        one, other = (m(m.example(batch, CODEC, draws())) for m in (plain, with_one))
    assert one.refined == ()
    assert torch.equal(one.velocity[-1].guess, other.velocity[-1].guess)
    assert torch.equal(one.velocity[-1].target, other.velocity[-1].target)


def test_samples_go_through_it_at_the_end(refining):
    plain, with_one = generator(None), generator(refining)
    with_one.load_state_dict(plain.state_dict(), strict=False)
    raw, mended = (
        m.sample(CAPTIONS, CODEC, draws(), Sampling(steps=2)).levels for m in (plain, with_one)
    )
    assert torch.equal(raw[0], mended[0])
    assert torch.equal(raw[-1][:, 4:], mended[-1][:, 4:])
    assert not torch.allclose(raw[-1][:, :4], mended[-1][:, :4], atol=1e-3)
    with torch.no_grad():
        assert torch.equal(with_one.refine(raw[-1]), mended[-1])
        assert torch.equal(plain.refine(raw[-1]), raw[-1])


@torch.no_grad()
def test_a_block_is_fitted_to_the_one_before(refining):
    model = generator(refining)
    latent = torch.randn(2, 6, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    alone = model.refine(latent)
    one, other = (model.refine(latent, before=x) for x in (latent[:, :, :1], latent[:, :, 1:2]))
    assert not torch.allclose(one[:, :, 0], alone[:, :, 0], atol=1e-4)
    differing = (one - other).abs().amax((0, 1, 3, 4)) > 1e-6
    assert differing.tolist() == [True, True, False, False]


def test_one_choice_in_the_config_adds_it():
    config = compose(
        "train",
        ["data.path=data", "run.name=run", "stage=generator", "+term=refinement", "dry_run=true"],
    )
    made = assemble(config["generator"], codec=assemble(config["tokenizer"]).codec)
    assert made.refiner is not None
    assert made.refiner.seconds == pytest.approx(2 / 8)
    entry = assemble(config["objective"]).terms["refinement"]
    assert entry.weight == 0.5
    assert isinstance(entry.term, RefinementTerm)

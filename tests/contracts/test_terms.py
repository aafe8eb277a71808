"""Every loss term keeps the contract of hstvg.types.Term. A new term joins ALL_TERMS."""

import pkgutil
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from lpips_weights import published
from torch import Tensor

import hstvg.objective
from hstvg.nn.features import FeatureNetwork
from hstvg.nn.lpips import Lpips
from hstvg.objective.adversarial import AdversarialTerm
from hstvg.objective.attention import AttentionTerm
from hstvg.objective.codec import CodecTerm
from hstvg.objective.commitment import CommitmentTerm
from hstvg.objective.diffusion import DiffusionTerm
from hstvg.objective.flow import FlowTerm
from hstvg.objective.kl import KLTerm
from hstvg.objective.lpips import LpipsTerm
from hstvg.objective.next_scale import NextScaleTerm
from hstvg.objective.perceptual import PerceptualTerm
from hstvg.objective.reconstruction import ReconstructionTerm
from hstvg.objective.refinement import RefinementTerm
from hstvg.objective.style import StyleTerm
from hstvg.objective.temporal import TemporalTerm
from hstvg.objective.wavelet import WaveletTerm
from hstvg.objective.words import WordsTerm
from hstvg.types import GaugedTerm, Pair, Posterior, Prediction, Term, VideoBatch

SHAPE = (4, 4, 3, 2, 2)


class Case(NamedTuple):
    term: Term
    predict: Callable[[Tensor, Tensor], Prediction]
    """From guess and target of SHAPE; where guess equals target, the term is at its minimum, 0."""


def pair(guess: Tensor, target: Tensor) -> Pair:
    return Pair(guess=guess, target=target)


def trusted(guess: Tensor, target: Tensor) -> Pair:
    return Pair(guess=guess, target=target, weight=torch.full((len(guess), 1, 3, 2, 2), 0.5))


def posterior(guess: Tensor, target: Tensor) -> Posterior:
    """The target of the KL is fixed: mean 0 and log-variance 0."""
    mean, logvar = (guess - target.detach()).chunk(2, dim=1)
    return Posterior(mean=mean, logvar=logvar)


def video(guess: Tensor, target: Tensor) -> Pair:
    """Three channels, large enough for a classifier of images."""

    def large(x: Tensor) -> Tensor:
        return x[:, :3].repeat_interleave(16, 3).repeat_interleave(16, 4)

    return pair(large(guess), large(target))


def rows(guess: Tensor, target: Tensor) -> Pair:
    """Attention over the last axes: of a guess as log probabilities, of a target as such."""
    logits, truth = guess.float().flatten(2), target.float().flatten(2).softmax(-1)
    return pair(logits.log_softmax(-1), truth)


def words(guess: Tensor, target: Tensor) -> Pair:
    """Sure of no word, and less so the farther the guess lies from the target."""
    logits = 5 * (guess.float() - target.detach().float()).flatten(1).square() - 20
    return pair(logits, torch.zeros_like(logits))


def reader() -> FeatureNetwork:
    torch.manual_seed(0)
    return FeatureNetwork(num_words=2, base=4, depth=2)


ALL_TERMS = [
    Case(
        AdversarialTerm(),
        lambda g, t: Prediction(
            pixels=pair(g, t), realism=-(g.float() - t.detach().float()).square().flatten(1).mean(1)
        ),
    ),
    Case(AttentionTerm(), lambda g, t: Prediction(attention=(rows(g, t), rows(g, t)))),
    Case(
        CodecTerm(), lambda g, t: Prediction(coarse=(pair(g, t), pair(0.5 * (g + t.detach()), t)))
    ),
    Case(CommitmentTerm(), lambda g, t: Prediction(commitment=pair(g, t))),
    Case(DiffusionTerm(), lambda g, t: Prediction(velocity=(pair(g, t), pair(g, t)))),
    Case(FlowTerm(), lambda g, t: Prediction(motion=(trusted(g, t), trusted(g, t)))),
    Case(KLTerm(), lambda g, t: Prediction(posterior=posterior(g, t))),
    Case(NextScaleTerm(), lambda g, t: Prediction(residuals=(pair(g, t), pair(g, t)))),
    Case(LpipsTerm(Lpips(published("alex"))), lambda g, t: Prediction(pixels=video(g, t))),
    Case(PerceptualTerm(reader()), lambda g, t: Prediction(pixels=video(g, t))),
    Case(ReconstructionTerm(), lambda g, t: Prediction(pixels=pair(g, t))),
    Case(
        RefinementTerm(),
        lambda g, t: Prediction(
            refined=(pair(torch.zeros_like(t), t), pair(g, t), pair(g, t)),
            refined_change=(trusted(torch.zeros_like(t), t), trusted(g, t), trusted(g, t)),
        ),
    ),
    Case(StyleTerm(), lambda g, t: Prediction(style=trusted(g, t))),
    Case(TemporalTerm(), lambda g, t: Prediction(pixels=pair(g, t))),
    Case(WaveletTerm(), lambda g, t: Prediction(pixels=pair(g, t))),
    Case(WordsTerm(), lambda g, t: Prediction(words=words(g, t))),
]

each_term = pytest.mark.parametrize(
    "case", ALL_TERMS, ids=[type(case.term).__name__ for case in ALL_TERMS]
)


GAUGED = [case for case in ALL_TERMS if isinstance(case.term, GaugedTerm)]
each_gauged_term = pytest.mark.parametrize(
    "case", GAUGED, ids=[type(case.term).__name__ for case in GAUGED]
)


def trivial(case, guess, target):
    return case.term.trivial(case.predict(guess, target), batch_of(len(guess)))


@pytest.fixture
def guess():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def target():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


def batch_of(count):
    return VideoBatch(
        pixels=torch.zeros(count, 3, 2, 4, 4),
        fps=torch.full((count,), 8.0),
        captions=("",) * count,
        positions=torch.arange(count),
        keys=("",) * count,
        motion=torch.zeros(count, 2, 2, 1, 1),
        motion_confidence=torch.zeros(count, 1, 2, 1, 1),
    )


def value(case, guess, target):
    return case.term(case.predict(guess, target), batch_of(len(guess)))


def test_every_term_file_is_listed():
    files = {info.name for info in pkgutil.iter_modules(hstvg.objective.__path__)} - {"objective"}
    listed = {type(case.term).__module__.rpartition(".")[2] for case in ALL_TERMS}
    assert listed == files


@each_term
def test_a_term_is_named_after_its_file(case):
    file = type(case.term).__module__.rpartition(".")[2]
    name = type(case.term).__name__
    assert name.lower() == file.replace("_", "") + "term"
    assert isinstance(case.term, Term)


@each_term
def test_one_finite_value_per_clip(case, guess, target):
    values = value(case, guess, target)
    assert values.shape == (len(guess),)
    assert torch.isfinite(values).all()
    assert (values > 0).all()


@each_term
def test_a_perfect_guess_costs_nothing(case, target):
    assert value(case, target.clone(), target).abs().max() < 1e-6


@each_term
def test_a_clip_costs_the_same_in_any_batch(case, guess, target):
    whole = value(case, guess, target)
    halves = [value(case, guess[rows], target[rows]) for rows in (slice(0, 1), slice(1, 4))]
    assert torch.allclose(torch.cat(halves), whole, rtol=1e-6)


@each_term
def test_half_precision_is_measured_in_full(case, guess, target):
    values = value(case, guess.bfloat16(), target.bfloat16())
    assert values.dtype == torch.float32
    assert torch.allclose(values, value(case, guess, target), rtol=0.05)


@each_term
def test_the_gradient_moves_the_guess_and_not_the_target(case, guess, target):
    guess.requires_grad_()
    target.requires_grad_()
    value(case, guess, target).sum().backward()
    assert torch.isfinite(guess.grad).all()
    assert (guess.grad.flatten(1).abs().amax(1) > 0).all()
    assert target.grad is None or target.grad.abs().sum() == 0


@each_gauged_term
def test_a_trivial_guess_costs_something_whatever_is_guessed(case, guess, target):
    values = trivial(case, guess.requires_grad_(), target)
    assert values.shape == (len(guess),)
    assert torch.isfinite(values).all()
    assert (values > 0).all()
    assert not values.requires_grad
    assert torch.equal(trivial(case, 2 * guess.detach() + 1, target), values)
    assert values.dtype == torch.float32


@each_gauged_term
def test_a_trivial_guess_costs_the_same_in_any_batch(case, guess, target):
    whole = trivial(case, guess, target)
    halves = [trivial(case, guess[rows], target[rows]) for rows in (slice(0, 1), slice(1, 4))]
    assert torch.allclose(torch.cat(halves), whole, rtol=1e-6)


@each_term
def test_a_term_needs_its_own_part_of_the_prediction(case):
    with pytest.raises(AssertionError, match=f"{type(case.term).__name__} needs Prediction"):
        case.term(Prediction(), batch_of(1))

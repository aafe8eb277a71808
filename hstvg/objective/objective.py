"""Objective: the only place that averages, weights, normalises and sums losses.

L = sum over terms of weight(progress) / normaliser * mean over clips of the term's value, with the
normaliser 1 unless a term asks for another.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

import torch
from jaxtyping import Float
from torch import Tensor

from hstvg.nn.statistics import Statistic
from hstvg.types import GaugedTerm, Pair, Prediction, Term, TrainingBatch


@dataclass(frozen=True)
class WeightedTerm:
    """A term and its weight; weight 0 still computes the term, so that charts stay comparable.

    Args:
        warmup: share of the run, from its beginning, over which the weight rises from 0 in a line.
        decay: share of the run, up to its end, over which the weight falls to 0 in a line.
        normalise: divide the term by what its trivial predictor scores, so that weights compare
            how much better than nothing the terms are, and not their units.

    Raises:
        ValueError: the weight is negative, the shares are none or overlap, or the term has no
            trivial predictor to be normalised by.
    """

    term: Term
    weight: float
    warmup: float = 0.0
    decay: float = 0.0
    normalise: bool = False

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"a weight of {self.weight} would reward the loss; give 0 or more")
        if self.warmup < 0 or self.decay < 0 or self.warmup + self.decay > 1:
            raise ValueError(
                f"warmup={self.warmup} and decay={self.decay} are shares of the run: from 0, and "
                "together at most 1"
            )
        if self.normalise and not isinstance(self.term, GaugedTerm):
            raise ValueError(
                f"{type(self.term).__name__} knows no trivial predictor; leave out normalise=true"
            )

    @property
    def changes(self) -> bool:
        """Whether the weight is another at another time."""
        return self.warmup > 0 or self.decay > 0

    def weight_at(self, progress: float) -> float:
        """The weight when this share of the run's samples has been seen."""
        rise = progress / self.warmup if self.warmup else 1.0
        fall = (1 - progress) / self.decay if self.decay else 1.0
        return self.weight * max(0.0, min(1.0, rise, fall))


class Objective:
    """The weighted sum of named terms, with every unweighted value by name.

    Of the steps it has seen it keeps what trivial predictors scored, and nothing else: the same on
    all ranks, for any number of them, and in a resumed run.
    """

    def __init__(self, terms: Mapping[str, WeightedTerm]) -> None:
        if not terms:
            raise ValueError("an objective needs at least one term")
        self.terms = dict(terms)
        # Nothing is known at the first step; 1 is no worse a guess than what its few clips say.
        self._normalisers = {
            name: Statistic(torch.ones(())) for name, entry in terms.items() if entry.normalise
        }

    def __call__(
        self, prediction: Prediction, batch: TrainingBatch, progress: float | None = None
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """The total, and each term's unweighted mean over the clips of this batch.

        Args:
            progress: share of the run's samples seen before; None takes every weight in full.
        """
        means = {name: entry.term(prediction, batch).mean() for name, entry in self.terms.items()}
        total = torch.stack([self._factor(name, progress) * mean for name, mean in means.items()])
        return total.sum(), means

    @torch.no_grad()
    def trivial(self, prediction: Prediction, batch: TrainingBatch) -> dict[str, Float[Tensor, ""]]:
        """What trivial predictors score on the same clips, of the terms that know one."""
        return {
            name: entry.term.trivial(prediction, batch).mean()
            for name, entry in self.terms.items()
            if isinstance(entry.term, GaugedTerm)
        }

    def weights(self, progress: float) -> dict[str, float]:
        """The weights that change, as they are now."""
        changing = {name: entry for name, entry in self.terms.items() if entry.changes}
        return {name: entry.weight_at(progress) for name, entry in changing.items()}

    def observe(self, trivial: Mapping[str, float]) -> None:
        """After a step: take in what trivial predictors scored on all its clips; not what is no
        number, for an engine leaves out such a step, too."""
        for name, normaliser in self._normalisers.items():
            if isfinite(trivial[name]):
                normaliser.observe(torch.tensor(trivial[name]))

    def state(self) -> dict[str, dict[str, float]]:
        """What is kept of the steps seen, for a checkpoint's manifest."""
        return {
            name: {"trivial": float(kept.value), "steps": float(kept.count)}
            for name, kept in self._normalisers.items()
        }

    def restore(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Go on from `state`; a term that it does not name begins anew."""
        for name in self._normalisers.keys() & state.keys():
            self._normalisers[name].value.fill_(state[name]["trivial"])
            self._normalisers[name].count.fill_(state[name]["steps"])

    def _factor(self, name: str, progress: float | None) -> float:
        entry = self.terms[name]
        weight = entry.weight if progress is None else entry.weight_at(progress)
        if not entry.normalise:
            return weight
        # 0 where all targets were: no motion known, say. The term is 0 then, too.
        return weight / (float(self._normalisers[name].value) or 1.0)


def skill(loss: float, trivial: float) -> float:
    """R^2: 1 of a perfect guess, 0 of a trivial one, below 0 of a worse; 0 where nothing was to be
    guessed."""
    return 1 - loss / trivial if trivial > 0 else 0.0


def squared_error(pair: Pair) -> Float[Tensor, "B"]:
    """Mean squared error per clip, weighted by the pair's confidence."""
    error = (pair.guess.float() - pair.target.detach().float()).square()
    return weighted_mean(error, pair)


def squared_size(pair: Pair) -> Float[Tensor, "B"]:
    """The squared error of the guess 0."""
    return weighted_mean(pair.target.detach().float().square(), pair)


def weighted_mean(error: Float[Tensor, "B *axes"], pair: Pair) -> Float[Tensor, "B"]:
    """Mean over all but the clip; where no element is trusted, 0 with a gradient of 0."""
    if pair.weight is None:
        return error.flatten(1).mean(1)
    weight = pair.weight.float().expand_as(error)
    return (error * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1e-6)

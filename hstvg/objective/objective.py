"""Objective: the only place that averages, weights and sums losses.

L = sum over terms of weight * mean over clips of the term's value.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hstvg.types import Pair, Prediction, Term, TrainingBatch


@dataclass(frozen=True)
class WeightedTerm:
    """A term and its weight; weight 0 still computes the term, so that charts stay comparable."""

    term: Term
    weight: float

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"a weight of {self.weight} would reward the loss; give 0 or more")


class Objective:
    """The weighted sum of named terms, with every unweighted value by name."""

    def __init__(self, terms: Mapping[str, WeightedTerm]) -> None:
        if not terms:
            raise ValueError("an objective needs at least one term")
        self.terms = dict(terms)

    def __call__(
        self, prediction: Prediction, batch: TrainingBatch
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """The total, and each term's mean over the clips of this batch, detached."""
        means = {name: entry.term(prediction, batch).mean() for name, entry in self.terms.items()}
        total = torch.stack([self.terms[name].weight * mean for name, mean in means.items()]).sum()
        return total, {name: mean.detach() for name, mean in means.items()}


def squared_error(pair: Pair) -> Float[Tensor, "B"]:
    """Mean squared error per clip, weighted by the pair's confidence."""
    error = (pair.guess.float() - pair.target.detach().float()).square()
    return weighted_mean(error, pair)


def weighted_mean(error: Float[Tensor, "B *axes"], pair: Pair) -> Float[Tensor, "B"]:
    """Mean over all but the clip; where no element is trusted, 0 with a gradient of 0."""
    if pair.weight is None:
        return error.flatten(1).mean(1)
    weight = pair.weight.float().expand_as(error)
    return (error * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1e-6)

"""eval/metrics.json as things to show: attributes a judge read, and plain scores."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hstvg.report.curves import number

CONDITIONS = {
    "generated": "made from the prompt",
    "real": "the real clips: what the judge can reach",
    "shuffled": "generated clips against other clips' prompts",
    "frozen": "one frame held still",
    "reconstruction": "what the tokenizer keeps of the real clips",
    "reference": "made from the prompt without its style, with a clip that shows one",
    "no_reference": "the same prompts without that clip",
}
JUDGED = ("control", "style", "chance")
"""Keys of the file that `splits` shows."""
UNITS = {"psnr": " dB"}
SCALE_SCORES = {"explained": "explained variance", "psnr": "PSNR", "ssim": "SSIM"}


@dataclass(frozen=True, kw_only=True)
class Score:
    """A value with its 95 % interval, as text and as places on a 0 to 100 % track."""

    name: str
    value: str
    interval: str
    n: str
    value_percent: float
    low_percent: float
    high_percent: float


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One attribute: generated clips beside the baselines and chance."""

    attribute: str
    scores: tuple[Score, ...]
    chance: float | None
    n: str
    """Number of clips if it is the same for all, else empty."""
    verdict: str
    clear: bool
    """The interval of the generated clips lies above chance; of those with a reference, if any."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """The panels of one set of prompts."""

    name: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Scores that stand alone, like the tokenizer's."""

    name: str
    scores: tuple[Score, ...]


@dataclass(frozen=True, kw_only=True)
class ScaleRow:
    """What the codes keep up to one scale."""

    scale: str
    tokens: str
    entropy: str
    """Of its codes, as a share of the most there can be."""
    scores: tuple[Score, ...]
    """Explained variance of the latent, then of the decoded clips."""


def scales(scores: Mapping[str, Any]) -> tuple[ScaleRow, ...]:
    """Per scale, coarse to fine; empty where the tokenizer was not scored so."""
    rows = scores.get("scales") or []
    return tuple(
        ScaleRow(
            scale=str(row["scale"]),
            tokens=str(row["tokens"]),
            entropy=_share(row["entropy"]) if _finite(row["entropy"]) else "",
            scores=tuple(_score(name, row[name], number) for name in SCALE_SCORES),
        )
        for row in rows
    )


def splits(scores: Mapping[str, Any]) -> tuple[Split, ...]:
    """Attribute control and then styles, one entry per set of prompts; empty for footage without
    known truth."""
    chance = scores.get("chance") or {}
    named = [*(scores.get("control") or {}).items()]
    named += [(f"{name}, styles", rows) for name, rows in (scores.get("style") or {}).items()]
    return tuple(
        Split(name=name, panels=tuple(_panels(by_condition, chance)))
        for name, by_condition in named
    )


def groups(scores: Mapping[str, Any]) -> tuple[Group, ...]:
    """Every other estimate in the file, whatever it is called."""
    named = {k: v for k, v in scores.items() if k not in JUDGED and _is_mapping(v)}
    loose = {k: v for k, v in named.items() if _is_estimate(v)}
    nested = {k: v for k, v in named.items() if k not in loose}
    found = {**nested, **({"scores": loose} if loose else {})}
    listed = (
        Group(name=name, scores=tuple(_score(n, e, number) for n, e in _estimates(group)))
        for name, group in found.items()
    )
    return tuple(group for group in listed if group.scores)


def _panels(by_condition: Mapping[str, Any], chance: Mapping[str, float]) -> Iterator[Panel]:
    conditions = sorted(by_condition, key=_condition_order)
    attributes = dict.fromkeys(name for c in conditions for name in by_condition[c])
    for attribute in attributes:
        found = {c: by_condition[c][attribute] for c in conditions if attribute in by_condition[c]}
        level = float(chance[attribute]) if attribute in chance else None
        clear, verdict = _verdict(found.get("reference", found.get("generated")), level)
        counts = {str(estimate["n"]) for estimate in found.values()}
        yield Panel(
            attribute=attribute,
            scores=tuple(_score(c, e, _share) for c, e in found.items()),
            chance=level,
            n=counts.pop() if len(counts) == 1 else "",
            verdict=verdict,
            clear=clear,
        )


def _verdict(generated: Mapping[str, Any] | None, chance: float | None) -> tuple[bool, str]:
    if not generated or chance is None or not _finite(generated["low"]):
        return False, ""
    if generated["low"] > chance:
        return True, "clear of chance"
    return False, "not clear of chance"


def _score(name: str, estimate: Mapping[str, Any], text: Callable[[float], str]) -> Score:
    value, low, high = (estimate[k] for k in ("value", "low", "high"))
    unit = UNITS.get(name.split(".")[-1], "")
    known = _finite(low) and _finite(high)
    return Score(
        name=name,
        value=f"{text(value)}{unit}" if _finite(value) else "not measured",
        interval=f"{text(low)} to {text(high)}" if known else "",
        n=str(estimate["n"]),
        value_percent=_percent(value),
        low_percent=_percent(low),
        high_percent=_percent(high),
    )


def _estimates(group: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in group.items():
        if _is_estimate(value):
            yield prefix + name, value
        elif _is_mapping(value):
            yield from _estimates(value, f"{prefix}{name}.")


def _condition_order(name: str) -> int:
    order = list(CONDITIONS)
    return order.index(name) if name in order else len(order)


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


def _is_estimate(value: Any) -> bool:
    return _is_mapping(value) and {"value", "low", "high", "n"} <= set(value)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _share(value: float) -> str:
    return f"{value:.2f}"


def _percent(value: Any) -> float:
    return round(100 * min(max(float(value), 0.0), 1.0), 2) if _finite(value) else 0.0

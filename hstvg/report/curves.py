"""Charts as plain geometry: the template draws them, so every name on them is escaped."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hstvg.report.run_folder import History, Points

WIDTH, HEIGHT = 360.0, 168.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 10.0, 8.0, 24.0
MAX_POINTS = 1000
LOG_FROM_RATIO = 30.0
"""A curve that falls by more than this factor is drawn on a logarithmic axis."""

LABELS = {
    "loss": "loss, weighted sum",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "perf/clips_per_s": "clips per second",
    "perf/step_s": "seconds per step",
    "perf/data_wait": "share of a step spent waiting for data",
    "perf/mfu": "share of the hardware's peak FLOPs",
}
GROUP_LABELS = {
    "skill": "1 - loss / loss of a trivial guess",
    "weight": "weight in force",
    "gradient": "of the unweighted term, at the trunk that the heads share",
    "cosine": "with the gradient of diffusion at the trunk",
}
"""Of keys group/term."""


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A place on an axis in SVG units, with its label."""

    at: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One curve, ready to be drawn."""

    key: str
    label: str
    line: str
    """SVG polyline points of every value."""
    trend: str
    """SVG polyline points of the running mean; empty where the curve is short."""
    dots: tuple[tuple[float, float], ...]
    """SVG places marked one by one; for curves with few values."""
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    hover: Points
    """(SVG x, value) of what the pointer can read, parallel to `points`."""
    points: Points
    first: float
    last: float
    log: bool
    note: str


def charts(history: History, prefixes: Sequence[str] = ()) -> tuple[Chart, ...]:
    """A chart per key of a run, loss first; `prefixes` keeps only keys of these groups."""
    keys = [key for key, points in history.series.items() if points]
    if prefixes:
        keys = [key for key in keys if key.split("/")[0] in prefixes]
    keys = [key for key in keys if "trivial" not in key.split("/")]  # their skill says it
    return tuple(
        chart(key, history.series[key], history.non_finite.get(key, 0))
        for key in sorted(keys, key=_reading_order)
    )


def chart(key: str, points: Points, non_finite: int = 0) -> Chart:
    """The curve of `points`, at least one, all finite."""
    shown = thin(points)
    values = [value for _, value in shown]
    log = min(values) > 0 and max(values) > LOG_FROM_RATIO * min(values)
    x_axis = _Axis(points[0][0], points[-1][0], LEFT, WIDTH - RIGHT, log=False)
    y_axis = _Axis(min(values), max(values), HEIGHT - BOTTOM, TOP, log=log)
    trend = thin(_running_mean(points)) if len(points) >= 40 else ()
    places = [(round(x_axis.at(x), 1), round(y_axis.at(y), 1)) for x, y in shown]
    return Chart(
        key=key,
        label=LABELS.get(key) or GROUP_LABELS.get(key.split("/")[0], ""),
        line=_polyline(places),
        trend=_polyline((x_axis.at(x), y_axis.at(y)) for x, y in trend),
        dots=tuple(places) if len(places) < 40 else (),
        x_ticks=x_axis.ticks(5),
        y_ticks=y_axis.ticks(5),
        hover=tuple((place[0], value) for place, (_, value) in zip(places, shown, strict=True)),
        points=shown,
        first=points[0][1],
        last=points[-1][1],
        log=log,
        note=f"{non_finite} not finite" if non_finite else "",
    )


def thin(points: Points, limit: int = MAX_POINTS) -> Points:
    """At most `limit` points: the lowest and highest of each stretch, so that a spike survives."""
    if len(points) <= limit:
        return points
    size = math.ceil(len(points) / (limit // 2 - 1))
    stretches = [points[i : i + size] for i in range(0, len(points), size)]
    extremes = (
        {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        for stretch in stretches
    )
    kept = {point for pair in extremes for point in pair} | {points[0], points[-1]}
    return tuple(sorted(kept))


def number(value: float) -> str:
    """Four significant digits, as a person would write them."""
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}"


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    """SVG place of `low`."""
    end: float
    log: bool

    def at(self, value: float) -> float:
        low, high, v = (self._scaled(v) for v in (self.low, self.high, value))
        share = (v - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int) -> tuple[Tick, ...]:
        values = self._decades() if self.log else _round_values(self.low, self.high, count)
        return tuple(Tick(at=round(self.at(v), 1), label=number(v)) for v in values)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def _decades(self) -> list[float]:
        low, high = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        every = max(1, (high - low) // 4)
        within = (1, 2, 5) if high - low <= 2 else (1,)
        values = [m * 10.0**exponent for exponent in range(low, high + 1, every) for m in within]
        return [value for value in values if self.low <= value <= self.high]


def _round_values(low: float, high: float, count: int) -> list[float]:
    if high <= low:
        return [low]
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _running_mean(points: Points) -> Points:
    """Centred, so that it does not lag behind a falling curve; narrower towards the ends."""
    sums = list(itertools.accumulate((value for _, value in points), initial=0.0))
    last, reach = len(points) - 1, max(1, len(points) // 60)
    smoothed = []
    for i, (step, _) in enumerate(points):
        near = min(reach, i, last - i)
        total = sums[i + near + 1] - sums[i - near]
        smoothed.append((step, total / (2 * near + 1)))
    return tuple(smoothed)


def _polyline(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _reading_order(key: str) -> tuple[int, str]:
    groups = ("loss", "val", "skill", "weight", "gradient", "cosine", "lr", "grad_norm", "perf")
    group = key.split("/")[0]
    return (groups.index(group) if group in groups else len(groups), key)

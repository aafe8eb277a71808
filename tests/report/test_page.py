"""The report is read by people who have nothing but the file: it must stand alone and be honest."""

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
import yaml

from hstvg.report import write_report
from hstvg.report.curves import MAX_POINTS, chart, charts, number, thin
from hstvg.report.run_folder import read_history
from hstvg.report.videos import Shelf

HOSTILE = '<script>alert(1)</script> & "quotes"'
CHROMIUM = Path("/usr/bin/chromium")


def write_video(path: Path, *, hue: int = 0, size: int = 32, num_frames: int = 12) -> None:
    """A bright square that moves to the right, as H.264 MP4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for t in range(num_frames):
            pixels = np.full((size, size, 3), 24, np.uint8)
            pixels[10:20, 2 + t : 12 + t, hue % 3] = 230
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def estimate(value: float, n: int = 64) -> dict[str, float]:
    half = 1.96 * math.sqrt(max(value * (1 - value), 0.002) / n)
    return {"value": value, "low": max(value - half, 0.0), "high": value + half, "n": n}


def conditions(**by_condition: tuple[float, float, float]) -> dict[str, dict]:
    names = ("colour", "shape", "motion")
    return {
        condition: {name: estimate(value) for name, value in zip(names, values, strict=True)}
        for condition, values in by_condition.items()
    }


SCORES = {
    "num_clips": 64,
    "tokenizer": {
        "psnr": {"value": 27.43, "low": 26.91, "high": 27.95, "n": 64},
        "ssim": {"value": 0.913, "low": 0.904, "high": 0.921, "n": 64},
    },
    "control": {
        "held-out": conditions(
            generated=(0.91, 0.62, 0.66),
            real=(0.99, 0.97, 0.98),
            shuffled=(0.13, 0.34, 0.12),
            frozen=(0.92, 0.61, 0.11),
        ),
        "unseen combinations": conditions(
            generated=(0.86, 0.41, 0.52),
            real=(0.98, 0.96, 0.97),
            shuffled=(0.11, 0.31, 0.09),
            frozen=(0.87, 0.42, 0.1),
        ),
    },
    "style": {
        "held-out": {
            "reference": {"style": estimate(0.71), "shape": estimate(0.6)},
            "no_reference": {"style": estimate(0.125), "shape": estimate(0.62)},
        }
    },
    "scales": [
        {
            "scale": scale,
            "tokens": tokens,
            "entropy": entropy,
            "explained": {"value": explained, "low": 0.1, "high": 0.97, "n": 64},
            "psnr": {"value": psnr, "low": 17.01, "high": 29.01, "n": 64},
            "ssim": {"value": 0.71, "low": 0.7, "high": 0.72, "n": 64},
        }
        for scale, tokens, entropy, explained, psnr in [
            ("1x1x1", 1, 0.74, 0.2345, 17.55),
            ("2x2x2", 8, 0.81, 0.9123, 28.66),
        ]
    ],
    "chance": {"colour": 0.125, "shape": 0.333, "motion": 0.111, "style": 0.125},
}


def write_metrics(path: Path, *, steps: int, terms: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    lines = []
    for step in range(1, steps + 1):
        fall = 0.05 + math.exp(-step / (steps / 6)) + 0.03 * rng.standard_normal() * (step > 3)
        record = {"step": step, "samples": 32 * step, "loss": fall * len(terms)}
        record |= {f"loss/{term}": fall * (1 + i) for i, term in enumerate(terms)}
        record |= {"lr": 1e-3 * math.cos(1.5 * step / steps), "grad_norm": 9 * fall}
        record |= {"perf/step_s": 0.25, "perf/clips_per_s": 128 + 4 * rng.standard_normal()}
        record |= {"perf/data_wait": 0.02}
        if step % max(steps // 8, 1) == 0:
            record["val/loss/" + terms[0]] = fall * 1.1
        lines.append(json.dumps(record))
    path.write_text("\n".join(lines) + "\n")


def write_run(path: Path, *, stage: str = "generator", steps: int = 300) -> Path:
    """A run folder just after training: configuration and metrics, nothing evaluated."""
    path.mkdir(parents=True)
    config = {
        "stage": stage,
        "run": {"name": path.name, "steps": steps, "seed": 0, "global_batch": 32},
        "data": {"path": "data/shapes"},
        "objective": {"terms": {"diffusion": {"weight": 1.0}, "flow": {"weight": 0.1}}},
    }
    if stage == "generator":
        config["tokenizer_run"] = str(path.parent / "tok")
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    overrides = (f"stage={stage}", "data.path=data/shapes", f"run.name={path.name}", "note='a b'")
    (path / "overrides.txt").write_text("\n".join(overrides) + "\n")
    machine = {"cpus": 2, "processor": "Some CPU", "gpus": []}
    env = {"python": "3.11", "git": "4f2c9d1e77aa-dirty", "machine": machine}
    (path / "env.json").write_text(json.dumps(env))
    (path / "lineage.json").write_text(json.dumps({"data": {"checksum": "ab12"}}))
    terms = ("diffusion", "flow") if stage == "generator" else ("reconstruction",)
    write_metrics(path / "metrics.jsonl", steps=steps, terms=terms)
    return path


def add_evaluation(run: Path, *, captions: tuple[str, ...]) -> None:
    rows = []
    for i, caption in enumerate(captions):
        row = {"caption": caption, "split": "held-out"}
        for j, kind in enumerate(("real", "reconstruction", "sample")):
            row[kind] = f"{kind}_{i:02d}.mp4"
            write_video(run / "eval" / row[kind], hue=i + (j == 2))
        rows.append(row)
    (run / "eval" / "rows.json").write_text(json.dumps(rows))
    (run / "eval" / "metrics.json").write_text(json.dumps(SCORES))


def add_samples(run: Path, prompts: tuple[str, ...]) -> None:
    for i, prompt in enumerate(prompts):
        write_video(run / "samples" / f"{i:04d}.mp4", hue=i)
        (run / "samples" / f"{i:04d}.txt").write_text(prompt + "\n")


@pytest.fixture
def finished_run(tmp_path: Path) -> Path:
    write_run(tmp_path / "tok", stage="tokenizer")
    run = write_run(tmp_path / "gen")
    add_evaluation(run, captions=("a red circle moves right", HOSTILE))
    add_samples(run, ("a green square moves up", HOSTILE))
    return run


class Page(HTMLParser):
    """Collects what a browser would make of the page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.numbers: dict = {}
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""
        if dict(attrs).get("id") == "numbers":
            self._inside = "numbers"

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "numbers":
            self.numbers = json.loads(data)
        elif not self._inside:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def page_of(run: Path) -> Page:
    path = write_report(run)
    assert path == run / "report.html"
    return Page(path.read_text())


def test_stands_alone(finished_run: Path):
    page = page_of(finished_run)
    references = [a[k] or "" for _, a in page.tags for k in ("src", "href") if k in a]
    assert references
    assert all(r.startswith(("data:", "#")) for r in references)
    assert not re.search(r"https?://|@import|url\(", (finished_run / "report.html").read_text())


def test_videos_play_and_are_described(finished_run: Path):
    videos = page_of(finished_run).all("video")
    assert len(videos) == 2 * 3 + 2
    for video in videos:
        assert {"autoplay", "loop", "muted", "playsinline", "controls"} <= set(video)
        assert (video["src"] or "").startswith("data:video/mp4;base64,")
    assert "sample: a red circle moves right" in [v["aria-label"] for v in videos]


def test_hostile_caption_is_text(finished_run: Path):
    page = page_of(finished_run)
    assert page.text.count(HOSTILE) >= 2
    assert len(page.all("script")) == 2  # the numbers and the comfort script


def test_holds_every_score(finished_run: Path):
    page = page_of(finished_run)
    assert page.numbers["scores"] == SCORES
    for by_condition in SCORES["control"].values():
        for scores in by_condition.values():
            assert all(f"{score['value']:.2f}" in page.text for score in scores.values())
    for shown in ("27.43 dB", "26.91 to 27.95", "0.913", "clear of chance", "0.333", "0.71"):
        assert shown in page.text


def test_styles_stand_beside_the_content(finished_run: Path):
    text = page_of(finished_run).text
    assert "held-out, styles" in text
    assert "the same prompts without that clip" in text
    assert "what the tokenizer keeps of the real clips" not in text  # no such score


def test_shows_what_each_scale_keeps(finished_run: Path):
    text = page_of(finished_run).text
    for shown in ("1x1x1", "2x2x2", "0.2345", "0.9123", "17.55 dB", "28.66 dB", "0.74", "0.81"):
        assert shown in text


def test_says_how_to_do_it_again(finished_run: Path):
    page = page_of(finished_run)
    assert "python -m pipelines.train" in page.text
    assert "run.name=gen" in page.text
    assert "4f2c9d1e77aa-dirty" in page.text
    assert "2 CPUs, Some CPU" in page.text
    assert "300 of 300" in page.text


def test_charts_cover_run_and_tokenizer(finished_run: Path):
    page = page_of(finished_run)
    labels = " ".join(svg["aria-label"] or "" for svg in page.all("svg"))
    for key in ("loss/diffusion:", "loss/flow:", "val/loss/diffusion:", "lr:", "grad_norm:"):
        assert key in labels
    assert "loss/reconstruction:" in labels
    assert page.numbers["tokenizer_curves"]["loss/reconstruction"]


def test_charts_say_what_terms_are_worth(tmp_path: Path):
    run = write_run(tmp_path / "run")
    lines = [
        {"step": step, "skill/flow": 0.1, "trivial/flow": 1.0, "gradient/flow": 2.0}
        for step in (1, 2)
    ]
    lines[1] |= {"cosine/flow": -0.25, "weight/flow": 0.05}
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    keys = [curve.key for curve in charts(read_history(run / "metrics.jsonl"))]
    assert keys == ["skill/flow", "weight/flow", "gradient/flow", "cosine/flow"]
    assert "with the gradient of diffusion" in page_of(run).text


def test_says_what_is_missing(tmp_path: Path):
    page = page_of(write_run(tmp_path / "gen"))
    assert "Not evaluated yet" in page.text
    assert "No samples yet" in page.text
    assert not page.all("video")


def test_nothing_but_a_configuration(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("stage: tokenizer\n")
    page = page_of(tmp_path)
    assert "No metrics yet" in page.text


def test_missing_video_is_said(finished_run: Path):
    (finished_run / "eval" / "real_00.mp4").unlink()
    assert "real_00.mp4 is missing" in page_of(finished_run).text


def test_only_files_of_the_run_are_read(finished_run: Path):
    secret = finished_run.parent / "secret.mp4"
    shutil.copy(finished_run / "eval" / "real_00.mp4", secret)
    (finished_run / "eval" / "rows.json").write_text(
        json.dumps([{"caption": "c", "split": "s", "real": "../../secret.mp4"}])
    )
    assert "secret.mp4 is missing" in page_of(finished_run).text


def test_real_footage_and_unmeasured_values(tmp_path: Path):
    run = write_run(tmp_path / "tok", stage="tokenizer")
    (run / "eval").mkdir()
    psnr = {"value": math.nan, "low": math.nan, "high": math.nan, "n": 0}
    (run / "eval" / "metrics.json").write_text(json.dumps({"tokenizer": {"psnr": psnr}}))
    page = page_of(run)
    assert "not measured" in page.text
    assert page.numbers["scores"]["tokenizer"]["psnr"]["value"] is None


def test_torn_last_line_is_tolerated(tmp_path: Path):
    run = write_run(tmp_path / "gen")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 301, "lo')
    page = page_of(run)
    assert "300 of 300" in page.text
    assert "1 unreadable line" in page.text


def test_folder_without_run(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no run folder.*pipelines\.train") as error:
        write_report(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_damaged_scores_leave_the_old_page(finished_run: Path):
    write_report(finished_run)
    before = (finished_run / "report.html").read_bytes()
    (finished_run / "eval" / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match=r"metrics\.json cannot be read"):
        write_report(finished_run)
    assert (finished_run / "report.html").read_bytes() == before


def test_thinning_keeps_ends_and_spikes():
    points = tuple((float(step), 1.0) for step in range(5000))
    spiked = (*points[:2500], (2500.0, 99.0), *points[2501:])
    thinned = thin(spiked)
    assert len(thinned) <= MAX_POINTS
    assert {spiked[0], spiked[-1], (2500.0, 99.0)} <= set(thinned)
    assert list(thinned) == sorted(thinned)


@pytest.mark.parametrize("length", [1001, 1002, 1999, 2000, 12345])
def test_thinning_holds_its_limit(length: int):
    wave = tuple((float(step), math.sin(step)) for step in range(length))
    assert len(thin(wave)) <= MAX_POINTS


@pytest.mark.parametrize(
    "values", [(1.0,), (2.0, 2.0), (0.0, 0.0), (-1.0, 3.0), (1e-6, 1.0), (1e9, 2e9)]
)
def test_any_curve_can_be_drawn(values: tuple[float, ...]):
    drawn = chart("loss", tuple((float(i), v) for i, v in enumerate(values)))
    assert len(drawn.line.split()) == len(values)
    assert all(0 <= y <= 200 for _, y in drawn.dots)


def test_numbers_are_short():
    shown = [number(v) for v in (0.0, 1.0, 0.123456, 0.00012, 123456.0)]
    assert shown == ["0", "1", "0.1235", "1.2e-4", "1.23e5"]


def test_videos_over_the_budget_are_linked(tmp_path: Path):
    for name in ("a.mp4", "b c.mp4"):
        (tmp_path / name).write_bytes(bytes(30))
    shelf = Shelf(tmp_path, budget_bytes=50)
    assert shelf.video(tmp_path / "a.mp4", "first").uri
    assert shelf.video(tmp_path / "b c.mp4", "second").link == "b%20c.mp4"


@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs chromium")
def test_real_browser_shows_it(finished_run: Path, tmp_path: Path):
    page = write_report(finished_run)
    probe = tmp_path / "probe.html"
    # The probe writes what the browser made of the page into the title, which --dump-dom prints.
    script = """<script>addEventListener("load", () => setTimeout(() => {
      const films = [...document.querySelectorAll("video")];
      document.body.dataset.seen = films.filter((f) => f.videoWidth === 32).length;
      document.body.dataset.wide = document.documentElement.scrollWidth > innerWidth;
    }, 1500))</script></body>"""
    probe.write_text(page.read_text().replace("</body>", script))
    dom = browse(probe, tmp_path / "profile")
    assert 'data-seen="8"' in dom
    assert 'data-wide="false"' in dom


def browse(page: Path, profile: Path) -> str:
    """The page after its scripts ran, without network."""
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={profile}", "--virtual-time-budget=8000", "--dump-dom"),
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

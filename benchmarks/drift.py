"""How a long video drifts: what its parts show, one after the other.

    python -m benchmarks.drift RUN DATA [clips] [parts]

RUN is of a generator that goes on from given frames, DATA a shape world whose held-out captions are
asked for. A video is cut into parts as long as a training clip, and each is judged as if it were
one. Things that are to rest can be right in all of them; what is to move leaves the frame sooner or
later, as no training clip shows it, and is in a table of its own.
"""

import sys
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

HEADS = ("colour", "shape", "motion", "residual", "flicker")


def main(run: Path, data: Path, clips: int, parts: int) -> None:
    from hstvg.runtime.assemble import open_run
    from hstvg.runtime.index import read_index

    model = open_run(run)
    index = read_index(data)
    rows = sorted(row for split in ("val", "unseen") for row in index.rows_of(split))
    captions = [facts["caption"] for facts in index.take(rows).to_pylist()]
    for kind, wanted in {"rest": True, "move": False}.items():
        asked = [caption for caption in captions if rests(caption) is wanted][:clips]
        print(f"Things that are to {kind}, {len(asked)} captions:\n")
        if not asked:
            continue
        print("| part | " + " | ".join(HEADS) + " |")
        print("|---" * (1 + len(HEADS)) + "|")
        for part, cells in enumerate(judged(model, asked, parts), 1):
            print("| " + " | ".join([str(part), *cells]) + " |", flush=True)
        print()


def rests(caption: str) -> bool:
    """Whether nothing in it is to move, nor the camera."""
    from hstvg.scene.grammar import read_caption

    said = read_caption(caption)
    return said.camera == "still" and all(thing.motion == "still" for thing in said.objects)


def judged(model: Any, captions: Sequence[str], parts: int) -> list[list[str]]:
    """What is right in each part, and how it changes from frame to frame; - where nothing could be
    judged."""
    from hstvg.generate.workflow import write_clips
    from hstvg.generator.generator import Sampling
    from hstvg.runtime.evaluation import Judged

    length, fps = model.window.num_frames, model.window.fps
    settings = Sampling(guidance=3.0)
    videos = write_clips(model, captions, seed=0, settings=settings, num_frames=parts * length)
    rows = []
    for first in range(0, parts * length, length):
        seen = reduce(
            Judged.merge,
            [
                Judged.of(video[first : first + length], caption, fps)
                for video, caption in zip(videos, captions, strict=True)
            ],
        )
        found = {**seen.control.compute(), **seen.coherence.compute()}
        rows.append([shown(found.get(head)) for head in HEADS])
    return rows


def shown(estimate: Any) -> str:
    if estimate is None:
        return "-"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[3:]]
    main(Path(sys.argv[1]), Path(sys.argv[2]), *[*numbers, *(48, 6)[len(numbers) :]])

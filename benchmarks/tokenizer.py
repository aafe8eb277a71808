"""What encoding and decoding cost beside diffusers' video VAEs, and whether streams stay small.

    python -m benchmarks.tokenizer [repetitions] [threads]

The speed of all at the same compression, 4 x 8 x 8 pixels to 16 channels, with about the same
number of parameters (14 million) and random weights, float32, on the same clip of 17 frames of
128 x 128. Nothing here says how well they rebuild it: untrained, none does.

    ours        VideoTokenizer
    wan         AutoencoderKLWan, as Wan 2.1 has it but a third as wide
    cogvideox   AutoencoderKLCogVideoX, a quarter as wide
    ltx         AutoencoderKLLTXVideo, a quarter as wide, two blocks per resolution, and patches of
                2 x 2 in place of 4 x 4, to have the same compression

Then the memory of VideoTokenizer by the length of a video, 64 and 512 frames of 128 x 128: as a
whole, and as a stream in chunks of 16 frames, of which nothing is kept.

Every figure is of a process of its own. Frames per second are the median of passes after a first
one; CPU is of all threads. Memory is the largest resident size beyond that before the first pass,
model and input included in the latter. Medians of the repetitions, which take turns; a ratio is the
median of those within a repetition. Where others use the machine, trust CPU and memory.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CLIP = (17, 128, 128)
PASSES = 3
STRIDES, CHANNELS = (4, 8, 8), 16
MODELS = ("ours", "wan", "cogvideox", "ltx")
LENGTHS, SIDE, CHUNK = (64, 512), 128, 16

Figures = dict[str, float]
Found = dict[tuple[str, ...], list[Figures]]


def main(repetitions: int, threads: int) -> None:
    load = os.getloadavg()[0]
    print(f"{threads} threads on {os.cpu_count()} CPUs, load {load:.1f} before", flush=True)
    speeds = [("speed", name, way) for name in MODELS for way in ("encode", "decode")]
    report_speed(measured(speeds, repetitions, threads))
    ways = [(way, length) for way in ("whole", "stream") for length in LENGTHS]
    sizes = [("memory", half, way, str(n)) for half in ("encode", "decode") for way, n in ways]
    report_memory(measured(sizes, repetitions, threads))
    print(f"load {os.getloadavg()[0]:.1f} after")


def measured(cases: list[tuple[str, ...]], repetitions: int, threads: int) -> Found:
    """Figures of each case, one per repetition."""
    found: Found = {case[1:]: [] for case in cases}
    for _ in range(repetitions):
        for case in random.sample(cases, len(cases)):
            command = [sys.executable, "-m", "benchmarks.tokenizer", "--measure", *case]
            # One arena: else what threads happen to free where is counted as memory in use.
            settings = {"OMP_NUM_THREADS": str(threads), "MALLOC_ARENA_MAX": "1"}
            said = subprocess.run(
                command, stdout=subprocess.PIPE, check=True, env={**os.environ, **settings}
            )
            found[case[1:]].append(json.loads(said.stdout.decode().splitlines()[-1]))
    return found


def report_speed(found: Found) -> None:
    figures = {"fps": "frames/s", "cpu_ms": "CPU ms per frame", "memory": "MB"}
    print(
        f"\n{'':<10}{'million':>8}"
        + "".join(
            f"{f'{way} {unit}':>25}" for way in ("encode", "decode") for unit in figures.values()
        )
    )
    for name in MODELS:
        parts = [f"{name:<10}{found[name, 'encode'][0]['parameters'] / 1e6:>8.1f}"]
        parts += [
            f"{statistics.median(one[figure] for one in found[name, way]):>25.1f}"
            for way in ("encode", "decode")
            for figure in figures
        ]
        print("".join(parts))
    for name in MODELS[1:]:
        said = []
        for way in ("encode", "decode"):
            fps, cpu, memory = (
                ratio(found["ours", way], found[name, way], figure) for figure in figures
            )
            said.append(f"{way} frames/s {fps:.2f}  CPU {cpu:.2f}  memory {memory:.2f}")
        print(f"ours / {name:<10} {'   '.join(said)}")


def report_memory(found: Found) -> None:
    short, long = map(str, LENGTHS)
    print(f"\n{'':<16}" + "".join(f"{f'{n} frames':>14}" for n in LENGTHS) + f"{'ratio':>8}")
    for half in ("encode", "decode"):
        for way in ("whole", "stream"):
            cases = [found[half, way, n] for n in (short, long)]
            peaks = [statistics.median(one["memory"] for one in case) for case in cases]
            grown = ratio(cases[1], cases[0], "memory")
            shown = "".join(f"{peak:>11.1f} MB" for peak in peaks)
            print(f"{half} {way:<9}{shown}{grown:>8.2f}")
        stream, whole = (found[half, way, long] for way in ("stream", "whole"))
        memory, cpu = (ratio(stream, whole, figure) for figure in ("memory", "cpu_s"))
        print(f"{half}: stream / whole, {long} frames: memory {memory:.2f}  CPU {cpu:.2f}")


def ratio(mine: list[Figures], its: list[Figures], figure: str) -> float:
    return statistics.median(a[figure] / b[figure] for a, b in zip(mine, its, strict=True))


# ---- in a process of its own ------------------------------------------------------------------


def speed(name: str, way: str) -> Figures:
    import torch

    model, encode, decode = build(name)
    pixels = torch.rand(1, 3, *CLIP, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latent = torch.randn(1, CHANNELS, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    call, given = (encode, pixels) if way == "encode" else (decode, latent)
    base = memory_mb("VmRSS")
    seconds, cpu = [], []
    with torch.inference_mode():
        assert call(given).shape == (latent if way == "encode" else pixels).shape
        for _ in range(PASSES):
            start, used = time.monotonic(), time.process_time()
            call(given)
            seconds.append(time.monotonic() - start)
            cpu.append(time.process_time() - used)
    return {
        "fps": CLIP[0] / statistics.median(seconds),
        "cpu_ms": 1e3 * statistics.median(cpu) / CLIP[0],
        "memory": memory_mb("VmHWM") - base,
        "parameters": float(sum(weight.numel() for weight in model.parameters())),
    }


def build(name: str) -> tuple[Any, Callable[..., Any], Callable[..., Any]]:
    """A model, and how one encodes and decodes with it."""
    import torch

    torch.manual_seed(0)
    if name == "ours":
        tokenizer = video_tokenizer(CLIP, time_mode="1+n")
        return tokenizer, tokenizer.encode, tokenizer.decode
    import diffusers

    vaes: Any = diffusers
    scaling = (True, True, False, False)
    makers: dict[str, Callable[[], Any]] = {
        "wan": lambda: vaes.AutoencoderKLWan(base_dim=32),
        "cogvideox": lambda: vaes.AutoencoderKLCogVideoX(block_out_channels=(32, 64, 64, 128)),
        "ltx": lambda: vaes.AutoencoderKLLTXVideo(
            latent_channels=CHANNELS,
            block_out_channels=(32, 64, 128, 128),
            decoder_block_out_channels=(32, 64, 128, 128),
            layers_per_block=(2,) * 5,
            decoder_layers_per_block=(2,) * 5,
            spatio_temporal_scaling=scaling,
            decoder_spatio_temporal_scaling=scaling,
            patch_size=2,
        ),
    }
    vae = makers[name]().eval()
    return vae, lambda x: vae.encode(x).latent_dist.mean, lambda z: vae.decode(z).sample


def memory(half: str, way: str, length: str) -> Figures:
    import torch

    torch.manual_seed(0)
    tokenizer = video_tokenizer((CHUNK, SIDE, SIDE))
    frames = int(length)
    sizes = {
        "encode": (3, frames, CHUNK, SIDE),
        "decode": (CHANNELS, frames // STRIDES[0], CHUNK // STRIDES[0], SIDE // STRIDES[1]),
    }
    channels, total, chunk, side = sizes[half]

    def chunks() -> Iterator[Any]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(total // chunk):
            yield torch.rand(1, channels, chunk, side, side, generator=generator) * 2 - 1

    with torch.inference_mode():
        whole = torch.cat(list(chunks()), dim=2) if way == "whole" else torch.empty(0)
        base, used = memory_mb("VmRSS"), time.process_time()
        if way == "whole":
            getattr(tokenizer, half)(whole)
        else:
            for _ in getattr(tokenizer, f"{half}_stream")(chunks()):
                pass
    return {"memory": memory_mb("VmHWM") - base, "cpu_s": time.process_time() - used}


def video_tokenizer(clip: tuple[int, int, int], **settings: Any) -> Any:
    from hstvg.tokenizer.video_tokenizer import VideoTokenizer

    return VideoTokenizer(
        clip_size=clip, strides=STRIDES, channels=CHANNELS, base=80, depth=2, **settings
    ).eval()


def memory_mb(line: str) -> float:
    # Not getrusage: that remembers the parent's size from before this program was loaded.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(text.split()[1]) for text in lines if text.startswith(line)) * 1024 / 1e6


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        kind, *case = sys.argv[2:]
        print(json.dumps({"speed": speed, "memory": memory}[kind](*case)))
    else:
        given = [int(argument) for argument in sys.argv[1:]]
        main(*(given + [3, 2][len(given) :]))

"""Members of latents: what is written is read, and nothing else is."""

import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save

from hstvg.data.batch import to_latent_batch, write_member
from hstvg.data.latent import LatentLayout, read_member

LAYOUT = LatentLayout(windows=3, channels=4, size=(2, 3, 5), dtype="bf16")
WITH_TEXT = LatentLayout(
    windows=3, channels=4, size=(2, 3, 5), dtype="bf16", text_width=6, text_tokens=9
)
CPU = torch.device("cpu")


def tensors(dtype=torch.bfloat16, text=None, seed=0):
    noise = torch.Generator().manual_seed(seed)
    made = {
        name: torch.randn(shape, generator=noise).to(dtype) for name, shape in LAYOUT.shapes.items()
    }
    if text:
        made["text"] = torch.randn(text, 6, generator=noise).to(dtype)
    return made


def batch_of(members, layout, share=0.0):
    rows = [read_member(member, layout, share) for member in members]
    columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    texts = np.array(["a"] * len(rows), dtype=object)
    return to_latent_batch(
        {**columns, "caption": texts, "key": texts, "position": np.arange(len(rows))}, CPU
    )


@pytest.mark.parametrize(("share", "window"), [(0.0, 0), (0.34, 1), (0.99999, 2)])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_member_is_read_as_it_was_written(dtype, share, window):
    layout = LatentLayout(windows=3, channels=4, size=(2, 3, 5), dtype=dtype)
    types = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    made = tensors(types[dtype])
    batch = batch_of([write_member(made)] * 2, layout, share)
    for name in ("latent", "motion", "motion_confidence"):
        got = getattr(batch, name)
        assert got.dtype == torch.float32
        assert torch.equal(got[1], made[name][window].float())
    assert batch.text is None


def test_the_same_tensors_are_the_same_bytes():
    made = tensors()
    assert write_member(made) == write_member(dict(reversed(made.items())))
    assert write_member(made) != write_member(tensors(seed=1))


def test_texts_of_true_length_are_padded_to_the_longest_of_the_batch():
    made = [tensors(text=length, seed=length) for length in (4, 7)]
    members = [write_member(clip) for clip in made]
    assert len(members[1]) - len(members[0]) == 3 * 6 * 2  # no padding lies in the shard
    batch = batch_of(members, WITH_TEXT)
    assert batch.text is not None
    assert batch.text.shape == (2, 7, 6)
    assert batch.text_mask.tolist() == [[True] * 4 + [False] * 3, [True] * 7]
    assert torch.equal(batch.text[0, :4], made[0]["text"].float())
    assert not batch.text[0, 4:].any()


def test_a_clip_weighs_what_its_arrays_weigh():
    arrays = read_member(write_member(tensors(text=9)), WITH_TEXT, 0.0)
    assert sum(array.nbytes for array in arrays.values()) == WITH_TEXT.clip_bytes


def changed(**changes):
    return {**tensors(), **changes}


def forged(header: bytes, size: int = 64) -> bytes:
    return struct.pack("<Q", len(header)) + header + b"\0" * size


BAD = {
    "nothing": b"",
    "no safetensors": b"\0" * 100,
    "a pickle": b"\x80\x04\x95" + b"x" * 200,
    "a header longer than the member": struct.pack("<Q", 1 << 40) + b"{}",
    "no JSON": forged(b"{{"),
    "a tensor beyond the end": forged(
        b'{"latent":{"dtype":"BF16","shape":[1000000,1000000],"data_offsets":[0,2000000000000]}}'
    ),
    "cut off": write_member(tensors())[:-7],
    "no motion": save({name: v for name, v in tensors().items() if name != "motion"}),
    "one tensor too many": save(changed(extra=torch.zeros(1))),
    "a wrong name": save({name.upper(): value for name, value in tensors().items()}),
    "another type": save(tensors(torch.float32)),
    "another number of windows": save(changed(latent=tensors()["latent"][:2])),
    "another shape": save(changed(motion=tensors()["motion"].flatten())),
    "unasked text": save(tensors(text=4)),
    "a huge tensor": save(changed(latent=torch.zeros(3, 4, 2, 3, 500, dtype=torch.bfloat16))),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_the_layout_does_not_say_is_damage(kind):
    with pytest.raises(ValueError, match=r"."):
        read_member(BAD[kind], LAYOUT, 0.5)


@pytest.mark.parametrize("shape", [(10, 6), (0, 6), (4, 5), (6,)])
def test_a_text_of_another_shape_is_damage(shape):
    with pytest.raises(ValueError, match="text is"):
        read_member(save(changed(text=torch.zeros(shape, dtype=torch.bfloat16))), WITH_TEXT, 0.5)
    with pytest.raises(ValueError, match="holds"):
        read_member(save(tensors()), WITH_TEXT, 0.5)

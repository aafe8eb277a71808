"""The reader: from references to samples to arrays of clips. Runs inside data tasks.

Every member is fetched by its byte range and held against the checksum of the index, so damage is
seen, not guessed. A damaged sample is replaced in place: batches keep their size, and every later
sample its position.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from hstvg.data.latent import LatentLayout, read_member, start_of
from hstvg.data.sample import Window, read_clip, read_layout
from hstvg.runtime.errors import CommandError
from hstvg.runtime.storage import join, read_range
from hstvg.scene.grammar import without_style
from hstvg.scene.layout import middles
from hstvg.scene.syntax import MAX_OBJECTS

REFERENCE = [
    "shard",
    "key",
    "offset",
    "size",
    "json_offset",
    "json_size",
    "num_frames",
    "fps",
    "caption",
    "checksum",
    "json_checksum",
]
"""Columns of the index that a reader needs; `position` and `window` come with them."""

PARTNER = ["shard", "offset", "size", "checksum"]
"""Columns of the index that a reader needs of a clip's partner."""

LARGEST_MEMBER = 1 << 30
LARGEST_JSON = 1 << 20
"""Bytes. A larger member is no clip, whatever the index says of it."""

DAMAGE = (FileNotFoundError, EOFError, ValueError, KeyError, TypeError, ArithmeticError)
"""What a damaged sample raises. Any other OSError is storage that fails, for good samples too: it
ends the attempt, or else it would depend on the hour which clips are trained."""

Row = Mapping[str, Any]


@runtime_checkable
class Opener(Protocol):
    """Turns the members of one sample into named arrays, of one shape per window."""

    @property
    def needs_facts(self) -> bool:
        """Whether it looks at the JSON member, which is not read otherwise."""
        ...

    def clip_bytes(self, window: int) -> int:
        """Of the arrays of one clip that is shown through a window."""
        ...

    def __call__(self, row: Row, member: bytes, facts: Row) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True, kw_only=True)
class VideoOpener:
    """Decodes windows of videos.

    Args:
        windows: `window` of a row is a number of these.
        motion: whether to find the motion as well.
        layout: whether to say what the scene shows where as well.
        decoder: "pyav" or "torchcodec".
    """

    windows: Sequence[Window]
    seed: int
    motion: bool
    layout: bool = False
    decoder: str = "pyav"

    @property
    def needs_facts(self) -> bool:
        return True

    def clip_bytes(self, window: int) -> int:
        return 3 * self.windows[window].num_pixels

    def __call__(self, row: Row, member: bytes, facts: Row) -> dict[str, np.ndarray]:
        # Where the window lies belongs to the position, as all randomness of a clip does.
        start = np.random.default_rng((self.seed, row["position"])).random()
        window = self.windows[row["window"]]
        place = {"duration_s": row["num_frames"] / row["fps"], "window": window, "start": start}
        clip = read_clip(
            member,
            scene=facts.get("scene"),
            motion=self.motion,
            decoder=self.decoder,
            **place,
        )
        if not self.layout:
            return clip
        return clip | read_layout(facts, moments=np.arange(float(window.num_frames)), **place)


@dataclass(frozen=True, kw_only=True)
class LatentOpener:
    """Reads clips that were encoded before.

    Args:
        partners: whether the latent of another clip comes with each.
        shown: window of a clip that every latent was made of, to say what the scene shows where in
            it; None where nobody asked for that.
    """

    layout: LatentLayout
    seed: int
    partners: bool = False
    shown: Window | None = None

    @property
    def needs_facts(self) -> bool:
        return self.shown is not None

    def clip_bytes(self, window: int) -> int:
        boxes = MAX_OBJECTS * (16 * self.layout.size[0] + 1)
        partner = self.partners * self.layout.latent_bytes
        return self.layout.clip_bytes + partner + self.needs_facts * boxes

    def __call__(self, row: Row, member: bytes, facts: Row) -> dict[str, np.ndarray]:
        share = self._share(row)
        arrays = read_member(member, self.layout, share)
        if self.shown is None:
            return arrays
        return arrays | read_layout(
            facts,
            duration_s=row["num_frames"] / row["fps"],
            window=self.shown,
            start=start_of(self.layout.window_at(share), self.layout.windows),
            moments=middles(self.shown.num_frames, self.layout.size[0]),
        )

    def latent(self, row: Row, member: bytes) -> np.ndarray:
        """Of a clip of which nothing else is wanted."""
        return read_member(member, self.layout, self._share(row))["latent"]

    def _share(self, row: Row) -> float:
        return np.random.default_rng((self.seed, row["position"])).random()


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Reads blocks of references.

    Args:
        root: location of the data set.
        spares: rows of the index that stand in for damaged samples.
    """

    root: str
    opener: Opener
    spares: Sequence[Row] = field(repr=False)

    def __call__(self, block: pa.Table) -> dict[str, np.ndarray]:
        """The clips of a block whose rows share one window.

        Returns:
            the opener's arrays, stacked, and caption, key, position, `reason` (empty where the
            sample is whole) and `substitute` (the key of what is shown instead). Where rows have
            partners also `reference`, the latent of each one's, and `has_reference`; its caption
            then says nothing of the style that the partner shows.

        Raises:
            CommandError: neither a sample nor any spare can be read.
        """
        columns: dict[str, Any] = {}
        for i, row in enumerate(block.to_pylist()):
            arrays, texts = self._clip(row)
            for name, array in arrays.items():
                if name not in columns:
                    columns[name] = np.empty((len(block), *array.shape), array.dtype)
                columns[name][i] = array
            for name, text in texts.items():
                columns.setdefault(name, []).append(text)
        positions = {"position": block.column("position").to_numpy()}
        texts = {name: value for name, value in columns.items() if isinstance(value, list)}
        return columns | positions | {k: np.array(v, dtype=object) for k, v in texts.items()}

    def _clip(self, row: Row) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        try:
            arrays = self.read(row)
            shown, reason = row, ""
        except DAMAGE as error:
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            arrays, shown = self._substitute(row, reason)
        texts = {"key": row["key"], "caption": shown["caption"], "reason": reason}
        if "partner" in row:
            # A substitute has no partner: its style is another one.
            reference = None if reason else self._reference(row)
            if reference is not None:
                texts["caption"] = without_style(texts["caption"])
            arrays["has_reference"] = np.array(reference is not None)
            blank = np.zeros_like(arrays["latent"])
            arrays["reference"] = blank if reference is None else reference
        return arrays, texts | {"substitute": shown["key"] if reason else ""}

    def _reference(self, row: Row) -> np.ndarray | None:
        """The latent of a row's partner; None if it has none, or one that is damaged."""
        if row["partner"] is None:
            return None
        assert isinstance(self.opener, LatentOpener)
        try:
            member, _ = read_sample(self.root, row["partner"], facts=False)
            return self.opener.latent(row, member)
        except DAMAGE:
            return None

    def read(self, row: Row) -> dict[str, np.ndarray]:
        """One sample.

        Raises:
            DAMAGE: it is damaged.
        """
        member, facts = read_sample(self.root, row, facts=self.opener.needs_facts)
        return self.opener(row, member, facts)

    def _substitute(self, row: Row, reason: str) -> tuple[dict[str, np.ndarray], Row]:
        """The first readable spare in an order that belongs to the position alone."""
        order = np.random.default_rng((row["position"], 1)).permutation(len(self.spares))
        for spare in (self.spares[i] for i in order):
            shown = {**spare, "position": row["position"], "window": row["window"]}
            try:
                return self.read(shown), shown
            except DAMAGE:
                continue
        raise CommandError(
            f"{row['key']} cannot be read ({reason}), nor can any of {len(self.spares)} clips that "
            "could stand in for it; check the data with python -m pipelines.prepare "
            f"verify={self.root}"
        )


def references(
    table: pa.Table, positions: np.ndarray, windows: int | Sequence[int] | np.ndarray
) -> pa.Table:
    """Rows of an index as a reader takes them."""
    # Plain text: a dictionary would carry the names of all shards.
    columns = [table.column(name).cast(pa.string()) for name in ("shard",)]
    rest = [table.column(name) for name in REFERENCE[1:]]
    window = np.broadcast_to(np.asarray(windows, dtype=np.int8), positions.shape)
    return pa.table([*columns, *rest, positions, window], names=[*REFERENCE, "position", "window"])


def with_partners(asked: pa.Table, table: pa.Table, partners: Int[np.ndarray, "N"]) -> pa.Table:
    """References, and beside each where its partner lies.

    Args:
        table: of the index.
        partners: rows of it; below 0 for none.
    """
    nobody = partners < 0
    rows = table.select(PARTNER).take(pa.array(np.where(nobody, 0, partners)))
    columns = [rows.column(name) for name in PARTNER]
    columns[0] = columns[0].cast(pa.string())
    places = [column.combine_chunks() for column in columns]
    return asked.append_column(
        "partner", pa.StructArray.from_arrays(places, PARTNER, mask=pa.array(nobody))
    )


def read_sample(root: str, row: Row, *, facts: bool) -> tuple[bytes, dict[str, Any]]:
    """The first member of a sample and, if wanted and there, what its JSON member says.

    Raises:
        DAMAGE: one of them is not what the index says.
    """
    shard = join(root, row["shard"])
    member = _member(shard, row["offset"], row["size"], row["checksum"], LARGEST_MEMBER)
    if not facts or not row["json_size"]:
        return member, {}
    place = (row["json_offset"], row["json_size"], row["json_checksum"])
    said = json.loads(_member(shard, *place, LARGEST_JSON))
    if not isinstance(said, dict):
        raise ValueError("its JSON member is no object")
    return member, said


def _member(shard: str, offset: int, size: int, checksum: str, largest: int) -> bytes:
    if not 0 < size <= largest:
        raise ValueError(f"a member of {size} bytes; at most {largest} are read")
    data = read_range(shard, offset, size)
    if f"sha256:{hashlib.sha256(data).hexdigest()}" != checksum:
        raise ValueError("its bytes do not match the checksum of the index")
    return data

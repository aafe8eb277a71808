"""Reading the headers of somebody's tar, and nothing else of it.

Python's own `tarfile` stops without a word at a broken header and at a missing end. Here every tar
ends in a reason why no more was read, nothing is extracted, and no header costs more than its size.

Source: POSIX.1-2017, pax interchange format; GNU tar manual, "Basic Tar Format".
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

BLOCK = tarfile.BLOCKSIZE
LARGEST_EXTENSION = 1 << 20
"""Bytes of a long name or of pax records; a larger one is an attack or noise."""
WHOLE = ""
"""The reason of a tar that ends with its end mark, as it should."""

FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
KINDS = {
    **dict.fromkeys(FILES, "file"),
    tarfile.DIRTYPE: "folder",
    tarfile.SYMTYPE: "symbolic link",
    tarfile.LNKTYPE: "hard link",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "pipe",
    tarfile.GNUTYPE_SPARSE: "sparse file",
}
DATALESS = ("folder", "symbolic link", "hard link", "device", "pipe")
EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.XGLTYPE,
)
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


@dataclass(frozen=True, kw_only=True)
class Member:
    """One entry of a tar."""

    name: str
    """As it stands there; bytes that are no UTF-8 are surrogates."""
    kind: str
    """One of the values of KINDS, or "unknown type"."""
    offset: int
    """Of its first data byte in the tar."""
    size: int
    """Bytes of data."""


@dataclass(frozen=True, kw_only=True)
class End:
    """Why nothing more was read of a tar."""

    reason: str
    """WHOLE, or `kind: detail` of what is wrong."""
    member: Member | None = None
    """The member that is cut off."""


def read_members(path: Path) -> Iterator[Member | End]:
    """The entries of a tar in order, and last its End. Only headers are read.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        position, extended = 0, _Extended()
        while True:
            block = _read(file, position, BLOCK)
            if len(block) < BLOCK or not any(block):
                yield _end(file, block, position, size)
                return
            try:
                header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                if header.size < 0:
                    raise tarfile.HeaderError("negative size")
                data = position + BLOCK
                if header.type in EXTENSIONS:
                    body = _read(file, data, min(header.size, LARGEST_EXTENSION + 1))
                    extended = _extend(extended, header.type, body, header.size)
                    position = data + _padded(header.size)
                    continue
                if header.type == tarfile.GNUTYPE_SPARSE:
                    data = _after_sparse_map(file, block, data)
            except (tarfile.HeaderError, ValueError) as error:
                yield End(reason=_broken(block, position, str(error)))
                return
            member = extended.applied_to(header, data)
            extended = _Extended()
            if member.offset + member.size > size:
                yield End(
                    reason=f"cut off: it ends inside {member.name}; what followed is lost",
                    member=member,
                )
                return
            yield member
            position = member.offset + _padded(member.size)


def member_at(file: IO[bytes], offset: int) -> Member | None:
    """What the header right before the data at `offset` says, if a valid one is there.

    A name of more than 100 bytes may be cut short there: the rest stands in a header before it.
    """
    try:
        block = _read(file, max(offset - BLOCK, 0), BLOCK)
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    return _Extended().applied_to(header, offset)


@dataclass(frozen=True, kw_only=True)
class _Extended:
    """What the headers before a member say of it."""

    name: str | None = None
    size: int | None = None
    sparse: bool = False

    def applied_to(self, header: tarfile.TarInfo, offset: int) -> Member:
        kind = KINDS.get(header.type, "unknown type")
        size = header.size if self.size is None else self.size
        return Member(
            name=header.name if self.name is None else self.name,
            kind="sparse file" if self.sparse else kind,
            offset=offset,
            size=0 if kind in DATALESS else size,
        )


def _extend(known: _Extended, kind: bytes, body: bytes, size: int) -> _Extended:
    """What is known of the next member after one more header of `size` bytes.

    Raises:
        ValueError: it is too large or malformed.
    """
    if size > LARGEST_EXTENSION:
        raise ValueError(f"an extended header of {size} bytes")
    if len(body) < size:
        raise ValueError("cut inside an extended header")
    if kind == tarfile.GNUTYPE_LONGNAME:
        return _Extended(name=_text(body.split(b"\0")[0]), size=known.size, sparse=known.sparse)
    if kind in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
        return known  # Targets of links, and facts of the whole tar: neither is of use here.
    records = dict(_pax_records(body))
    return _Extended(
        name=records.get("GNU.sparse.name") or records.get("path") or known.name,
        size=_length(records["size"]) if "size" in records else known.size,
        sparse=known.sparse or any(keyword.startswith("GNU.sparse.") for keyword in records),
    )


def _pax_records(body: bytes) -> Iterator[tuple[str, str]]:
    """Keyword and value of each record, "LENGTH KEYWORD=VALUE newline"."""
    position = 0
    while position < len(body) and body[position]:
        digits, _, _ = body[position : position + 20].partition(b" ")
        end = position + _length(digits.decode("ascii"))
        record = body[position + len(digits) + 1 : end]
        keyword, equals, value = record.partition(b"=")
        if end > len(body) or not equals or not value.endswith(b"\n"):
            raise ValueError("malformed pax record")
        yield _text(keyword), _text(value[:-1])
        position = end


def _length(digits: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", digits):
        raise ValueError("malformed pax record")
    return int(digits)


def _after_sparse_map(file: IO[bytes], block: bytes, data: int) -> int:
    """Where the data of a GNU sparse member begins: its map may go on in blocks of its own."""
    more = block[482]
    while more:
        block = _read(file, data, BLOCK)
        if len(block) < BLOCK:
            raise ValueError("cut inside a sparse map")
        more, data = block[504], data + BLOCK
    return data


def _end(file: IO[bytes], block: bytes, position: int, size: int) -> End:
    if not size:
        return End(reason="empty: 0 bytes")
    if not block:
        return End(reason=f"no end mark: it stops at byte {size}, maybe before its last sample")
    if len(block) < BLOCK:
        if position == 0:
            return End(reason=_broken(block, 0, "shorter than a header"))
        return End(
            reason=f"cut off: it ends inside the header at byte {position}; what followed is lost"
        )
    file.seek(position)
    while chunk := file.read(1 << 20):
        if any(chunk):
            return End(reason=f"data after the end: not read from byte {position} on")
    return End(reason=WHOLE)


def _broken(block: bytes, position: int, cause: str) -> str:
    if position:
        return f"broken header: at byte {position} ({cause}); what follows is lost"
    for magic, name in COMPRESSED.items():
        if block.startswith(magic):
            return f"compressed: {name} allows no random access; unpack it to .tar"
    return f"no tar: {cause}"


def _read(file: IO[bytes], position: int, size: int) -> bytes:
    file.seek(position)
    return file.read(size)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")

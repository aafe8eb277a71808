"""What samples a tar holds: its members put together by key, as WebDataset does it, and no other.

Only headers are read. What cannot be a sample, or could be one of two, is refused with its reason.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hstvg.runtime.caption import printable
from hstvg.runtime.tar import WHOLE, Member, read_members

# fmt: off
VIDEO_SUFFIXES = frozenset((
    ".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg",
    ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m",
))
# fmt: on
TEXT_SUFFIXES = frozenset((".json", ".txt"))
LATENT_SUFFIXES = frozenset((".safetensors",))
"""Of what this program encoded; in foreign shards they belong to no sample."""
EXECUTABLE_SUFFIXES = frozenset((".pickle", ".pkl", ".pt", ".pth", ".pyd"))
"""Reading one of these can run what somebody else wrote."""


@dataclass(kw_only=True)
class Group:
    """The members of one key that belong together."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)
    """By suffix, e.g. ".mp4"."""
    repeats: bool = False
    """Whether the key came before in this shard."""
    cut: str = ""
    """Why one of its members is not there as a whole."""

    @property
    def videos(self) -> list[Member]:
        return [member for suffix, member in self.members.items() if suffix in VIDEO_SUFFIXES]

    def fault(self) -> str:
        """Why this is no sample; empty if it may be one."""
        texts = TEXT_SUFFIXES & self.members.keys()
        if self.repeats:
            return "duplicate key: it came before in this shard"
        if self.cut:
            return self.cut
        if not self.videos:
            return f"no video: there is only {' and '.join(sorted(self.members))}"
        if len(self.videos) > 1:
            names = " and ".join(member.name for member in self.videos)
            return f"ambiguous: {names} are two videos of one key"
        return "" if texts else "no caption"


@dataclass(frozen=True, kw_only=True)
class Scan:
    """All that the headers of a shard tell."""

    groups: Sequence[Group]
    """In the order of the first member of each."""
    ignored: Sequence[tuple[str, str]]
    """Name of a member, or empty for the shard itself, and why it is left out."""
    members: Sequence[Member]
    """All entries, in order."""


def scan_shard(path: Path) -> Scan:
    """The groups of a tar. Raises OSError if the file cannot be read."""
    groups: dict[str, list[Group]] = {}
    ignored: list[tuple[str, str]] = []
    members: list[Member] = []
    for entry in read_members(path):
        if isinstance(entry, Member):
            members.append(entry)
            if reason := _unusable(entry):
                ignored.append((entry.name, reason))
            elif parts := split_name(entry.name):
                _group_of(groups, *parts).members[parts[1]] = entry
        elif entry.reason != WHOLE:
            cut = entry.member and not _unusable(entry.member) and split_name(entry.member.name)
            if cut:
                _group_of(groups, *cut).cut = entry.reason
            else:
                ignored.append(("", entry.reason))
    ignored += _dotted(members)
    found = [group for runs in groups.values() for group in runs]
    return Scan(groups=found, ignored=ignored, members=members)


def _group_of(groups: dict[str, list[Group]], key: str, suffix: str) -> Group:
    """The group that a member joins: another one begins where a suffix comes again."""
    runs = groups.setdefault(key, [])
    if not runs or suffix in runs[-1].members:
        runs.append(Group(key=key, repeats=bool(runs)))
    return runs[-1]


def _unusable(member: Member) -> str:
    """Why a member must not be read, or cannot be."""
    parts = member.name.split("/")
    if member.kind == "folder":
        return ""
    if member.name != printable(member.name):
        return "unsafe member: its name is no text"
    if member.name.startswith("/") or ".." in parts:
        return "unsafe member: its path leaves the shard"
    if member.kind != "file":
        return f"unsafe member: a {member.kind}"
    suffix = Path(member.name).suffix.lower()
    if suffix in EXECUTABLE_SUFFIXES:
        return f"unsafe member: {suffix} can run code when it is loaded"
    return ""


def split_name(
    name: str, suffixes: frozenset[str] = VIDEO_SUFFIXES | TEXT_SUFFIXES
) -> tuple[str, str] | None:
    """Key and suffix, cut at the first dot of the last part; None if it is no part of a sample."""
    name = name.removeprefix("./")
    match = re.fullmatch(r"((?:.*/)?[^./]+)(\.[^/.]+)", name)
    if not match or match[2].lower() not in suffixes:
        return None
    return match[1], match[2].lower()


def _dotted(members: Sequence[Member]) -> Iterator[tuple[str, str]]:
    """Each key with a dot in it, once, and what WebDataset would make of it."""
    seen = set()
    for member in members:
        match = re.fullmatch(r"((?:.*/)?)([^./]+)(\.[^/]+)(\.[^/.]+)", member.name)
        if not match or member.kind != "file" or _unusable(member):
            continue
        folder, short, rest, suffix = match.groups()
        key = (folder + short + rest).removeprefix("./")
        if suffix.lower() in VIDEO_SUFFIXES | TEXT_SUFFIXES and key not in seen:
            seen.add(key)
            yield key, f"dotted key: WebDataset would cut {key} to {short}"

"""Storage: reading files by byte range, from local disks and object stores alike.

A location is a folder path or a URI that pyarrow knows: s3://bucket/data, gs://bucket/data.
Credentials come from where those stores look for them (environment, instance role), never from a
config.
"""

import os
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import pyarrow.fs as fs

Result = TypeVar("Result")

ATTEMPTS = 5
FIRST_PAUSE_S = 0.2
"""Doubled after every failed attempt: 3 s in all."""


def join(folder: str, name: str) -> str:
    """The location of a file in a folder; of the file itself if its name is a location."""
    if is_uri(name) or os.path.isabs(name):
        return name
    base, mark, options = folder.partition("?") if is_uri(folder) else (folder, "", "")
    return f"{base.rstrip('/')}/{name}{mark}{options}"  # s3://bucket/data?region=...


def is_uri(location: str) -> bool:
    return "://" in location


def absolute(location: str) -> str:
    """The location as any process can use it."""
    return location if is_uri(location) else os.path.abspath(os.path.expanduser(location))


def exists(location: str) -> bool:
    """Whether there is a file or a folder.

    Raises:
        OSError: the store does not answer.
    """

    def look() -> bool:
        filesystem, path = _resolve(location)
        return filesystem.get_file_info(path).type != fs.FileType.NotFound

    return patiently(look)


def open_file(location: str) -> Any:
    """A pyarrow file with random access.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be opened.
    """

    def look() -> Any:
        filesystem, path = _resolve(location)
        return filesystem.open_input_file(path)

    return patiently(look)


def read_range(location: str, offset: int, size: int) -> bytes:
    """`size` bytes from `offset` on. The file stays open for the next read.

    Raises:
        FileNotFoundError: there is no such file.
        EOFError: the file ends before.
        OSError: it cannot be read.
    """

    def read() -> bytes:
        try:
            return _kept_open(location).read_at(size, offset)
        except OSError:
            _kept_open.cache_clear()  # a broken connection must not be met again
            raise

    data = patiently(read)
    if len(data) < size:
        raise EOFError(f"{location} ends before byte {offset + size}")
    return data


def patiently(call: Callable[[], Result]) -> Result:
    """The result of `call`, tried again after a pause where storage fails in passing.

    pyarrow retries a few named errors of one store; any may heal, save those that are answers.
    """
    pause_s = FIRST_PAUSE_S
    for _ in range(ATTEMPTS - 1):
        try:
            return call()
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError):
            raise
        except OSError:
            time.sleep(pause_s)
            pause_s *= 2
    return call()


@lru_cache(maxsize=64)
def _kept_open(location: str) -> Any:
    filesystem, path = _resolve(location)
    return filesystem.open_input_file(path)


@lru_cache(maxsize=16)
def _filesystem(root: str) -> fs.FileSystem:
    return fs.FileSystem.from_uri(root)[0]


def _resolve(location: str) -> tuple[fs.FileSystem, str]:
    """The file system of a location and the path in it.

    Raises:
        ValueError: no file system is known for it.
    """
    if not is_uri(location):
        return _local(), location
    scheme, _, rest = location.partition("://")
    path, mark, options = rest.partition("?")
    bucket = path.split("/")[0]
    try:
        return _filesystem(f"{scheme}://{bucket}{mark}{options}"), path
    except ValueError as error:
        raise ValueError(f"{location}: {str(error).splitlines()[0]}") from error


@lru_cache(maxsize=1)
def _local() -> fs.FileSystem:
    return fs.LocalFileSystem()

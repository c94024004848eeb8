"""Fetch one file whose digest is known, so that it is whole and right or not there at all."""

from __future__ import annotations

import logging
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from yolotrt_core.errors import ArtifactError, UsageError
from yolotrt_core.progress import Bar, progress
from yolotrt_core.sources import sha256_of_file

log = logging.getLogger(__name__)

_CHUNK_BYTES = 256 << 10
# What a server answers when it may answer better soon (RFC 9110, section 15; 429 of RFC 6585).
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """Where a file is, and what it must be."""

    url: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to try: `attempts` connections, the pause doubling after each; seconds of silence allowed."""

    attempts: int = 4
    pause_seconds: float = 1.0
    timeout_seconds: float = 30.0


class _BrokenError(Exception):
    """The connection failed; another one, from where this one stopped, may do."""


def fetch(remote: RemoteFile, target: Path, patience: Patience | None = None) -> None:
    """Fetch a file once, however many processes ask for it, and check it before it gets its name.

    A broken connection is taken up where it broke, three times by default. Proxies come from the
    environment (`https_proxy`, `no_proxy`). `target` is replaced if it is not the right content.

    Raises:
        UsageError: the file cannot be had, or is not the one that was wanted.
        ArtifactError: the folder of `target` cannot be written.
    """
    if urlsplit(remote.url).scheme not in ("http", "https"):
        raise UsageError(f"expected an address of http or https to fetch from, found `{remote.url}`")
    with _writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(target.name + ".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("another process fetches %s: waiting for it", target.name)
            lock.acquire()
    part = target.with_name(target.name + ".part")
    try:
        if target.is_file() and sha256_of_file(target) == remote.sha256:
            return
        log.info("fetching %s", remote.url)
        _download(remote, part, patience or Patience(), target)
        found = sha256_of_file(part)
        if found != remote.sha256:
            raise UsageError(
                f"`{remote.url}` is not the expected file: its SHA-256 is {found}, expected {remote.sha256}",
                hint=f"it was removed; {_by_hand(remote, target)}",
            )
        with _writing(target.parent):
            part.replace(target)
    finally:
        part.unlink(missing_ok=True)
        lock.release()


def _download(remote: RemoteFile, part: Path, patience: Patience, target: Path) -> None:
    with (
        progress(f"fetching {target.name}", total=remote.size_bytes) as bar,
        _writing(part.parent),
        part.open("wb") as out,
    ):
        for attempt in range(1, patience.attempts + 1):
            try:
                _receive(remote, out, patience.timeout_seconds, bar)
            except _BrokenError as err:
                if attempt == patience.attempts:
                    raise UsageError(
                        f"cannot fetch `{remote.url}`: {err}, in {attempt} attempts", hint=_by_hand(remote, target)
                    ) from err
                log.warning("attempt %d of %d at %s: %s", attempt, patience.attempts, remote.url, err)
                time.sleep(patience.pause_seconds * 2 ** (attempt - 1))
            except UsageError as err:
                err.hint = _by_hand(remote, target)
                raise
            else:
                return


def _receive(remote: RemoteFile, out: BinaryIO, timeout_seconds: float, bar: Bar) -> None:
    """Append what is missing in `out`; raise `_BrokenError` if it ends early, UsageError if it is hopeless."""
    have = out.tell()
    request = urllib.request.Request(remote.url, headers={"User-Agent": "yolotrt"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with _connected(remote.url):
        response = cast(HTTPResponse, urllib.request.urlopen(request, timeout=timeout_seconds))
    with response:
        if have and not (
            response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        ):
            have = 0
            out.seek(0)
            out.truncate()
        total = have + (response.length if response.length is not None else remote.size_bytes - have)
        if total != remote.size_bytes:
            raise UsageError(
                f"`{remote.url}` is not the expected file: it has {total} bytes, expected {remote.size_bytes}"
            )
        while have < remote.size_bytes:
            with _connected(remote.url):
                # read1, not read: what has come before a break is then not lost with it.
                chunk = response.read1(min(_CHUNK_BYTES, remote.size_bytes - have))
            if not chunk:
                raise _BrokenError(f"the connection ended after {have} of {remote.size_bytes} bytes")
            out.write(chunk)
            have += len(chunk)
            bar.update(completed=have)
        with _connected(remote.url):
            if response.read1(1):
                raise UsageError(f"`{remote.url}` is longer than the {remote.size_bytes} bytes expected")


@contextmanager
def _connected(url: str) -> Iterator[None]:
    """Sort what the network can do wrong into what may pass (`_BrokenError`) and what will not (UsageError)."""
    try:
        yield
    except urllib.error.HTTPError as err:
        err.close()
        if err.code in _PASSING:
            raise _BrokenError(f"the server answered {err.code} {err.reason}".lower()) from err
        raise UsageError(f"cannot fetch `{url}`: the server answered {err.code} {err.reason.lower()}") from err
    except (OSError, HTTPException) as err:
        reason = err.reason if isinstance(err, urllib.error.URLError) else err
        if isinstance(reason, socket.gaierror):
            raise UsageError(f"cannot fetch `{url}`: its host is not found, is there a network?") from err
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise UsageError(f"cannot fetch `{url}`: {reason.verify_message}") from err
        if isinstance(reason, TimeoutError):
            raise _BrokenError("the server fell silent") from err
        said = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
        raise _BrokenError(said.lower() or type(reason).__name__) from err


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise ArtifactError(
            f"cannot write to `{folder}`: {(err.strerror or str(err)).lower()}",
            hint="free space there, or name another folder with the variable XDG_CACHE_HOME",
        ) from err


def _by_hand(remote: RemoteFile, target: Path) -> str:
    return f"fetch it by other means and save it as `{target}` (SHA-256 {remote.sha256})"

"""Download of a file with a known digest, atomically and verified."""

from __future__ import annotations

import logging
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from yolotrt_core.console.progress import progress
from yolotrt_core.errors import ArtifactError, UsageError, os_error_reason
from yolotrt_core.files.digest import sha256_of_file

log = logging.getLogger(__name__)

_CHUNK_BYTES = 256 << 10
# Temporary failures of a server (RFC 9110, section 15; 425 of RFC 8470, 429 of RFC 6585).
_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """URL, digest and size of a file."""

    url: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Patience:
    """Retry policy: number of attempts, pause that doubles after each, connection timeout."""

    attempts: int = 4
    pause_seconds: float = 1.0
    timeout_seconds: float = 30.0


class _BrokenError(Exception):
    """A temporary connection failure; the download can be resumed."""


def fetch(remote: RemoteFile, target: Path, patience: Patience | None = None) -> None:
    """Download a file once across processes, and verify it before it gets its name.

    Broken connections are resumed. Proxies come from the environment (`https_proxy`, `no_proxy`). `target` is
    replaced if its digest does not match.

    Raises:
        UsageError: the download failed, or the content is not the expected one.
        ArtifactError: the folder of `target` is not writable.
    """
    if urlsplit(remote.url).scheme not in ("http", "https"):
        raise UsageError(f"expected an http or https URL, found `{remote.url}`")
    part = target.with_name(target.name + ".part")
    lock = FileLock(target.with_name(target.name + ".lock"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for another process to download %s", target.name)
            lock.acquire()
        try:
            if target.is_file() and sha256_of_file(target) == remote.sha256:
                return
            log.info("downloading %s", remote.url)
            _download(remote, part, patience or Patience())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
            lock.release()
    except UsageError as err:
        err.hint = f"download it manually to `{target}` (SHA-256 {remote.sha256})"
        raise
    except OSError as err:
        raise ArtifactError(
            f"cannot write to `{target.parent}`: {os_error_reason(err)}",
            hint="free space there, or choose another folder with the variable XDG_CACHE_HOME",
        ) from err


def _download(remote: RemoteFile, part: Path, patience: Patience) -> None:
    """Write the file to `part`, resuming broken connections, and verify its digest."""
    have = 0
    with progress(f"downloading {part.stem}", total=remote.size_bytes) as bar, part.open("wb") as out:
        for attempt in range(1, patience.attempts + 1):
            try:
                with closing(_chunks(remote, have, patience.timeout_seconds)) as chunks:
                    for start, chunk in chunks:
                        have = start + len(chunk)
                        if have > remote.size_bytes:
                            raise UsageError(f"`{remote.url}` is longer than the expected {remote.size_bytes} bytes")
                        out.seek(start)
                        out.write(chunk)
                        bar.update(completed=have)
                if have == remote.size_bytes:
                    break
                raise _BrokenError(f"the connection closed after {have} of {remote.size_bytes} bytes")
            except _BrokenError as err:
                if attempt == patience.attempts:
                    raise UsageError(f"cannot download `{remote.url}`: {err}, in {attempt} attempts") from err
                log.warning("attempt %d of %d to download %s: %s", attempt, patience.attempts, remote.url, err)
                time.sleep(patience.pause_seconds * 2 ** (attempt - 1))
    found = sha256_of_file(part)
    if found != remote.sha256:
        raise UsageError(f"`{remote.url}` is not the expected file: its SHA-256 is {found}, expected {remote.sha256}")


def _chunks(remote: RemoteFile, have: int, timeout_seconds: float) -> Generator[tuple[int, bytes]]:
    """Yield chunks with their positions, from `have` on or from 0 if the server sends the whole file.

    A generator, to separate network errors from disk errors of the caller.
    """
    headers = {"User-Agent": "yolotrt", **({"Range": f"bytes={have}-"} if have else {})}
    url = remote.url
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout_seconds) as response:
            if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                have = 0
            total = remote.size_bytes if response.length is None else have + response.length
            if total != remote.size_bytes:
                raise UsageError(
                    f"`{url}` is not the expected file: it has {total} bytes, expected {remote.size_bytes}"
                )
            # read1, not read: keeps the bytes received before a failure.
            while chunk := response.read1(_CHUNK_BYTES):
                yield have, chunk
                have += len(chunk)
    except urllib.error.HTTPError as err:
        err.close()
        answer = f"the server answered {err.code} {err.reason}".lower()
        raise (
            _BrokenError(answer) if err.code in _TEMPORARY else UsageError(f"cannot download `{url}`: {answer}")
        ) from err
    except (OSError, HTTPException) as err:
        reason = err.reason if isinstance(err, urllib.error.URLError) else err
        if isinstance(reason, socket.gaierror):
            raise UsageError(f"cannot download `{url}`: host not found") from err
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise UsageError(f"cannot download `{url}`: {reason.verify_message}") from err
        if isinstance(reason, TimeoutError):
            raise _BrokenError("connection timed out") from err
        said = os_error_reason(reason) if isinstance(reason, OSError) else str(reason).lower()
        raise _BrokenError(said or type(reason).__name__) from err

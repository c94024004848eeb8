"""Download of one file whose digest is known: complete and correct, or not there at all."""

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
    """Address, digest and size of a file."""

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
    """A connection failed; another one, from where this one stopped, may succeed."""


def fetch(remote: RemoteFile, target: Path, patience: Patience | None = None) -> None:
    """Download a file once, however many processes ask for it, and check it before it gets its name.

    A broken connection is resumed, three times by default. Proxies come from the environment
    (`https_proxy`, `no_proxy`). `target` is replaced if its content is not the expected one.

    Raises:
        UsageError: the file cannot be downloaded, or has other content than expected.
        ArtifactError: the folder of `target` cannot be written.
    """
    if urlsplit(remote.url).scheme not in ("http", "https"):
        raise UsageError(f"expected an address of http or https to fetch from, found `{remote.url}`")
    part = target.with_name(target.name + ".part")
    lock = FileLock(target.with_name(target.name + ".lock"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("another process fetches %s: waiting for it", target.name)
            lock.acquire()
        try:
            if target.is_file() and sha256_of_file(target) == remote.sha256:
                return
            log.info("fetching %s", remote.url)
            _download(remote, part, patience or Patience())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
            lock.release()
    except UsageError as err:
        err.hint = f"fetch it by other means and save it as `{target}` (SHA-256 {remote.sha256})"
        raise
    except OSError as err:
        raise ArtifactError(
            f"cannot write to `{target.parent}`: {os_error_reason(err)}",
            hint="free space there, or name another folder with the variable XDG_CACHE_HOME",
        ) from err


def _download(remote: RemoteFile, part: Path, patience: Patience) -> None:
    """Write the file's bytes to `part`, with as many connections as needed, and compare their digest."""
    have = 0
    with progress(f"fetching {part.stem}", total=remote.size_bytes) as bar, part.open("wb") as out:
        for attempt in range(1, patience.attempts + 1):
            try:
                with closing(_chunks(remote, have, patience.timeout_seconds)) as chunks:
                    for start, chunk in chunks:
                        have = start + len(chunk)
                        if have > remote.size_bytes:
                            raise UsageError(f"`{remote.url}` is longer than the {remote.size_bytes} bytes expected")
                        out.seek(start)
                        out.write(chunk)
                        bar.update(completed=have)
                if have == remote.size_bytes:
                    break
                raise _BrokenError(f"the connection ended after {have} of {remote.size_bytes} bytes")
            except _BrokenError as err:
                if attempt == patience.attempts:
                    raise UsageError(f"cannot fetch `{remote.url}`: {err}, in {attempt} attempts") from err
                log.warning("attempt %d of %d at %s: %s", attempt, patience.attempts, remote.url, err)
                time.sleep(patience.pause_seconds * 2 ** (attempt - 1))
    found = sha256_of_file(part)
    if found != remote.sha256:
        raise UsageError(f"`{remote.url}` is not the expected file: its SHA-256 is {found}, expected {remote.sha256}")


def _chunks(remote: RemoteFile, have: int, timeout_seconds: float) -> Generator[tuple[int, bytes]]:
    """Yield the bytes from `have` on, or from 0 where the server sends the whole file, each with its position.

    A generator, so that errors of the network are told from errors of the disk that its caller writes to.
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
            # read1, not read: bytes received before a break are then not lost with it.
            while chunk := response.read1(_CHUNK_BYTES):
                yield have, chunk
                have += len(chunk)
    except urllib.error.HTTPError as err:
        err.close()
        answer = f"the server answered {err.code} {err.reason}".lower()
        raise _BrokenError(answer) if err.code in _TEMPORARY else UsageError(f"cannot fetch `{url}`: {answer}") from err
    except (OSError, HTTPException) as err:
        reason = err.reason if isinstance(err, urllib.error.URLError) else err
        if isinstance(reason, socket.gaierror):
            raise UsageError(f"cannot fetch `{url}`: its host is not found, is there a network?") from err
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise UsageError(f"cannot fetch `{url}`: {reason.verify_message}") from err
        if isinstance(reason, TimeoutError):
            raise _BrokenError("the server fell silent") from err
        said = os_error_reason(reason) if isinstance(reason, OSError) else str(reason).lower()
        raise _BrokenError(said or type(reason).__name__) from err

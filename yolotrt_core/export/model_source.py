"""Sources of models: the embedded model, a file or folder, or an official release by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from yolotrt_core.errors import UsageError
from yolotrt_core.files.digest import sha256_of, sha256_of_file
from yolotrt_core.files.paths import existing_path, user_path
from yolotrt_core.store.action import is_name
from yolotrt_core.store.location import weights_cache
from yolotrt_core.types import ModelSource

DEFAULT_MODEL = "parts"
RELEASE_URL = "https://github.com/ultralytics/yolov5/releases/download/v7.0"
RELEASE_URL_VARIABLE = "YOLOTRT_RELEASE_URL"
_ASSETS = Path(__file__).parents[1] / "assets"


@dataclass(frozen=True, slots=True)
class Release:
    """An official checkpoint that is downloaded by name and verified by its digest."""

    sha256: str
    size_bytes: int
    imgsz: tuple[int, int]


# Files of the v7.0 release of ultralytics/yolov5, which publishes no digests. Digests were computed from the file
# (yolov5n) or are confirmed by several unrelated projects (yolov5s, yolov5m).
RELEASES: Mapping[str, Release] = MappingProxyType(
    {
        "yolov5n": Release("4f180cf23ba0717ada0badd6c685026d73d48f184d00fc159c2641284b2ac0a3", 4_062_133, (640, 640)),
        "yolov5s": Release("8b3b748c1e592ddd8868022e8732fde20025197328490623cc16c6f24d0782ee", 14_808_437, (640, 640)),
        "yolov5m": Release("61d933360ba5a7733a36764996c800287d973889d875227f5beedd2473a97a56", 42_806_829, (640, 640)),
    }
)


def default_model_path() -> Path:
    """Return the path of the embedded default checkpoint."""
    return _ASSETS / f"{DEFAULT_MODEL}.pt"


def sample_path() -> Path:
    """Return the path of the bundled 640x480 image for the default model."""
    return _ASSETS / "sample.jpg"


def resolve_source(
    weights: str | Path | None, *, cache_dir: Path | None = None, offline: bool = False, release_url: str | None = None
) -> ModelSource:
    """Find a model, downloading an official release if necessary.

    Args:
        weights: None or `parts` for the embedded model; a file or folder, which takes precedence over a name;
            or a name in `RELEASES`.
        cache_dir: folder of downloads, as `NAME.pt`; created if missing; default `weights_cache`.
        offline: do not use the network.
        release_url: mirror to use instead of `RELEASE_URL`, as the variable `YOLOTRT_RELEASE_URL`. The digest is
            checked in any case.

    Raises:
        UsageError: no such file or name, an unreadable file, a failed download, or unexpected content.
        ArtifactError: the cache cannot be written.
    """
    if weights is not None and str(weights) and (path := existing_path(weights)):
        return _local(path)
    name = DEFAULT_MODEL if weights is None else str(weights)
    if name == DEFAULT_MODEL:
        path = default_model_path()
        return ModelSource(path, sha256_of_file(path), DEFAULT_MODEL, imgsz=(320, 320))
    if name not in RELEASES:
        raise _unknown(name)
    release = RELEASES[name]
    base = release_url or os.environ.get(RELEASE_URL_VARIABLE) or RELEASE_URL
    path = _released(name, release, user_path(cache_dir or weights_cache()), None if offline else base.rstrip("/"))
    return ModelSource(path, release.sha256, name, imgsz=release.imgsz)


def _local(path: Path) -> ModelSource:
    name = path.resolve().name if path.is_dir() else path.stem
    if not is_name(name):
        raise UsageError(
            f"invalid model name {name!a}: it is empty, has a control character, or is not UTF-8",
            hint="rename the file or folder, or pass a link with another name",
        )
    return ModelSource(path, sha256_of(path), name)


def _released(name: str, release: Release, cache_dir: Path, base: str | None) -> Path:
    target = cache_dir / f"{name}.pt"
    kept = target.is_file()
    if kept and sha256_of_file(target) == release.sha256:
        return target
    if base is None:
        found = f"`{target}` is not the official file" if kept else f"`{name}` is not in `{cache_dir}`"
        raise UsageError(
            f"{found}, and `--offline` disables downloads",
            hint=f"download {RELEASE_URL}/{name}.pt to `{target}` (SHA-256 {release.sha256})",
        )
    from yolotrt_core.files.download import RemoteFile, fetch  # urllib.request costs a tenth of a second at import

    fetch(RemoteFile(f"{base}/{name}.pt", release.sha256, release.size_bytes), target)
    return target


def _unknown(name: str) -> UsageError:
    known = ", ".join(f"`{each}`" for each in (DEFAULT_MODEL, *RELEASES))
    stem = name.removesuffix(".pt")
    if stem in RELEASES:
        hint = f"pass `{stem}` to download the official checkpoint"
    else:
        hint = f"pass an existing file, or one of {known}"
    return UsageError(f"unknown model `{name}`: no such file or model name", hint=hint)

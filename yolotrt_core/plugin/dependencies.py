"""What a stage's tools are here, told without importing them: for `available` and `fingerprint`."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from importlib import metadata, util

from yolotrt_core.console.text import not_installed
from yolotrt_core.plugin.stages import Availability


def tools_available(modules: Iterable[str], install: str = "") -> Availability:
    """Say whether every module can be imported.

    Args:
        modules: names as `import` has them.
        install: the command that brings them; without it, `pip install` and the names of those missing.
    """
    missing = [module for module in modules if not _is_there(module)]
    if not missing:
        return Availability(True)
    return Availability(False, not_installed(missing), install or f"pip install {' '.join(missing)}")


def tool_versions(modules: Iterable[str]) -> dict[str, str]:
    """Return module -> version of the distribution that brought it, whatever that is called; none if missing."""
    found = {}
    for module in modules:
        version = _version(module)
        if version is not None:
            found[module] = version
    return found


def _is_there(module: str) -> bool:
    try:
        spec = util.find_spec(module)
        return spec is not None and spec.origin is not None  # a namespace folder is not an installed tool
    except (ModuleNotFoundError, ValueError):  # its package is missing, or it is set to None
        return False


@functools.cache
def _version(module: str) -> str | None:
    if not _is_there(module):
        return None
    try:
        return metadata.version(module)
    except metadata.PackageNotFoundError:  # `tensorflow` of `tensorflow-cpu`; reading every list of files is slow
        names = metadata.packages_distributions().get(module.partition(".")[0], ())
        return metadata.version(names[0]) if names else None

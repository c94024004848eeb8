"""Choice of one exporter where several plugins claim a source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from yolotrt_core.errors import UsageError
from yolotrt_core.plugin.registered import Registered


@dataclass(frozen=True, slots=True)
class Claim:
    """What `yolotrt_select_exporter` returns for a source that it knows by more than its format.

    Attributes:
        exporter: name of the exporter.
        reason: what was recognised in the file, not empty, e.g. ``a YOLOv8 export of 80 classes``; a warning shows it.
    """

    exporter: str
    reason: str

    def __post_init__(self) -> None:
        if not (isinstance(self.reason, str) and self.reason.strip()):
            raise ValueError("`reason` should state what was recognised in the file")


@dataclass(frozen=True, slots=True)
class Claimed:
    """An exporter that a source is claimed for, with the reason of a `Claim` or an empty one."""

    found: Registered
    reason: str


def choose(path: Path, claims: Sequence[Claimed]) -> tuple[Registered, str]:
    """Return the exporter of a source that plugins claim, and a warning, or an empty text.

    A claim with a reason wins over those of the format alone, also over a built-in exporter's: `onnx` claims every
    ONNX file, those with a head that it would refuse included. Otherwise a plugin that claims too many files must not
    take those of the built-in exporters, so these win.

    Args:
        claims: of different exporters, at least one.

    Raises:
        UsageError: two plugins have the same right.
    """
    foremost = [each for each in claims if each.reason] or list(claims)
    winners = [each for each in foremost if each.found.is_own] or foremost
    if len(winners) > 1 and not winners[0].found.is_own:
        raise UsageError(
            f"`{path}` is claimed by several exporters: {_listed(winners)}",
            hint="name the right one with `--exporter NAME`",
        )
    chosen = winners[0]
    others = [each for each in claims if each is not chosen]
    if all(each.found.is_own for each in claims) or not others:
        return chosen.found, ""
    built_in = "the built-in " if chosen.found.is_own else ""
    reason = f" as {chosen.reason}" if chosen.reason else ""
    return chosen.found, (
        f"`{path}` is claimed by the exporters {_listed([chosen, *others])}: {built_in}`{chosen.found.name}` reads "
        f"it{reason}, `--exporter {others[0].found.name}` names the other"
    )


def _listed(claims: Sequence[Claimed]) -> str:
    return " and ".join(f"`{each.found.name}` of `{each.found.dist}`" for each in claims)

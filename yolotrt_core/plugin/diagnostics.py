"""Health of stages for listings: every call that a build makes before it runs them."""

from __future__ import annotations

from yolotrt_core.errors import YolotrtError
from yolotrt_core.plugin.registered import Registered, answering
from yolotrt_core.plugin.stages import Availability
from yolotrt_core.types import PRECISIONS, BuildRequest


def health(found: Registered) -> Availability:
    """Return whether a stage works on this machine; a fault in its code is a reason too."""
    stage = found.stage
    try:
        with answering(f"{found.kind} `{found.name}` of `{found.dist}`", found.dist, "Options"):
            can: Availability = stage.available()
            if can.ok:
                options = stage.Options()
                _ = found.identity  # raises if `sources` names what is not there
                stage.fingerprint(options)
                if found.kind == "builder":
                    stage.runnable()
                if found.kind == "pass":
                    for precision in PRECISIONS:
                        stage.applies(BuildRequest(precision, 1, 640, 640), options)
            return can
    except YolotrtError as err:
        return Availability(False, err.message)


def runs_here(found: Registered) -> Availability:
    """Return whether a builder's engines run on this machine; a fault in its code is a reason too."""
    try:
        can: Availability = found.stage.runnable()
    except YolotrtError as err:
        return Availability(False, err.message)
    return can

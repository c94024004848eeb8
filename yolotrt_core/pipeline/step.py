"""Steps of a build plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yolotrt_core.calibration.images import ChosenImages
from yolotrt_core.pipeline.build_options import ResolvedBuild
from yolotrt_core.store.action import PluginIdentity
from yolotrt_core.types import BuildRequest, Json


@dataclass(frozen=True, slots=True)
class Output:
    """A file that an earlier step of the plan writes."""

    step: str
    file: str


@dataclass(frozen=True, slots=True)
class Step:
    """One stage of a plan.

    Attributes:
        label: unique in the plan, e.g. `export`. kind: as in Action.stage.
        request: of the stage. material: the part of it that enters the key.
        options: the stage's resolved options. prefix: their flag prefix.
        inputs: input name to an earlier step's output, or to the SHA-256 of something outside.
    """

    label: str
    kind: str
    identity: PluginIdentity
    stage: Any
    request: BuildRequest
    material: Mapping[str, Json]
    options: Any
    prefix: str
    inputs: Mapping[str, Output | str]
    tools: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of a build, in order; the last one builds the engine.

    `request` is that of `resolved`, adapted to its builder. `images` are those the network is calibrated
    on, or None.
    """

    resolved: ResolvedBuild
    request: BuildRequest
    steps: tuple[Step, ...]
    images: ChosenImages | None = None


SPEC_FILE = "spec.json"

ENGINE_SPEC_FILE = "engine.json"

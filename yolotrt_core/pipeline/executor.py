"""Execution of a build plan: run the stages whose artifact is not in the store.

The digests of a step's outputs enter the key of the next step.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import re
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from yolotrt_core.console import log
from yolotrt_core.console.progress import progress
from yolotrt_core.console.signals import interruptible
from yolotrt_core.errors import StageError, YolotrtError
from yolotrt_core.pipeline import stage_runners
from yolotrt_core.pipeline.step import Output, Plan, Step
from yolotrt_core.plugin import options
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.store import code_digest
from yolotrt_core.store.action import Action, Record
from yolotrt_core.store.code_digest import core_digest
from yolotrt_core.store.errors import CorruptedArtifactError, MissingArtifactError
from yolotrt_core.store.names import STAGE_LOG
from yolotrt_core.store.store import Store
from yolotrt_core.types import BuildRequest, Json

_log = logging.getLogger(__name__)

# Messages of torch, onnxruntime and C++, which have no exception of their own for this.
_OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|failed to allocate memory|bad[_ ]alloc|out of memory", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class StepResult:
    """Action and record of a step, and whether it was a cache hit."""

    step: Step
    action: Action
    record: Record
    from_cache: bool


def walk(steps: Plan, store: Store) -> Iterator[tuple[Step, Action | None, Record | None]]:
    """Look each step up without running anything; for `explain`.

    Yields the step, its action (None once an earlier step is missing, since the key then cannot be
    known) and its record (None if it would run).
    """
    done: dict[str, Record] = {}
    for step in steps.steps:
        needed = {i.step for i in step.inputs.values() if isinstance(i, Output)}
        if not needed <= done.keys():
            yield step, None, None
            continue
        action = _action(step, done)
        record = store.find(action.key)
        if record is not None:
            done[step.label] = record
        yield step, action, record


def run(steps: Plan, store: Store, registry: Registry, *, force: bool = False) -> list[StepResult]:
    """Run the steps whose artifact is missing; with `force` all of them.

    Raises:
        StageError: a stage failed; the error names stage, key and log.
        ArtifactError: the store cannot be used.
    """
    try:
        return _run(steps, store, registry, force=force, verify=False)
    except (CorruptedArtifactError, MissingArtifactError) as err:
        # A cache hit verifies the last artifact only: a corrupted intermediate shows when it is needed,
        # and gc of another process may remove one between two steps.
        _log.warning("%s; rebuilding it", err)
        return _run(steps, store, registry, force=force, verify=True)


def _run(steps: Plan, store: Store, registry: Registry, *, force: bool, verify: bool) -> list[StepResult]:
    done: dict[str, Record] = {}
    results = []
    for step in steps.steps:
        action = _action(step, done)
        began = time.perf_counter()
        with contextlib.ExitStack() as running:
            record, from_cache = store.obtain(
                action,
                functools.partial(_run_stage, steps, step, action, store, registry),
                verify=verify or step is steps.steps[-1],
                force=force,
                on_start=functools.partial(_start, registry, running, f"{step.label} by {step.identity.name}"),
            )
        seconds = time.perf_counter() - began
        registry.notify("yolotrt_stage_finished", action=action, record=record, from_cache=from_cache, seconds=seconds)
        outcome = "cached" if from_cache else "built"
        _log.info("%-9s %-11s %s  %s  %.2f s", step.label, step.identity.name, outcome, action.key[:12], seconds)
        done[step.label] = record
        results.append(StepResult(step, action, record, from_cache))
    return results


def _start(registry: Registry, running: contextlib.ExitStack, text: str, action: Action) -> None:
    registry.notify("yolotrt_stage_started", action=action)
    running.enter_context(progress(text))


def _action(step: Step, done: Mapping[str, Record]) -> Action:
    inputs = {
        name: done[i.step].outputs[i.file].sha256 if isinstance(i, Output) else i for name, i in step.inputs.items()
    }
    return Action(
        stage=step.kind,
        plugin=step.identity,
        request=step.material,
        options=options.key_material(step.options, step.prefix),
        inputs=inputs,
        tools=step.tools,
        core_sha256=core_digest(code_digest.STAGE),
    )


def _import_tools(step: Step) -> None:
    """Import what the stage requires, with signals held back.

    An exception in the middle of the start of a C++ module, such as onnx, aborts the process or is lost.
    """
    with interruptible():
        for module in step.stage.requires:
            with contextlib.suppress(Exception):  # the stage itself says what is wrong
                importlib.import_module(module)


def _run_stage(
    steps: Plan, step: Step, action: Action, store: Store, registry: Registry, folder: Path
) -> Mapping[str, Json]:
    """Run the stage of a step in its folder and return the facts for the record."""
    given = folder / "in"
    given.mkdir()
    for name, sha256 in action.inputs.items():
        if isinstance(step.inputs[name], Output):
            store.copy_out(sha256, given / name)
    log_file = folder / STAGE_LOG
    try:
        with log.stage_log(log_file):
            _import_tools(step)
            try:
                return stage_runners.WORK[step.kind](steps, step, given, folder / "out", store, registry)
            except (YolotrtError, OSError, KeyboardInterrupt):
                raise
            except (Exception, SystemExit) as err:  # stages may raise anything; the log has the traceback
                with log_file.open("a", encoding="utf-8") as stage_log:  # whatever the levels of loggers are
                    traceback.print_exc(file=stage_log)
                if memory_error := out_of_memory_error(err, step.request):
                    raise memory_error from err
                raise StageError(
                    f"failed with {type(err).__name__}: {err}",
                    hint=f"plugin bug in `{step.identity.name}` of `{step.identity.dist}`: report it with the log",
                ) from err
    except StageError as err:
        err.stage = step.label  # the store adds the key and the log
        raise
    except YolotrtError:
        log_file.unlink(missing_ok=True)  # invalid user input: a log does not help
        raise


def out_of_memory_error(err: BaseException, request: BuildRequest) -> StageError | None:
    """Return the error to show for `err` if memory ran out, else None."""
    if not isinstance(err, MemoryError) and not _OUT_OF_MEMORY.search(str(err)):
        return None
    shapes = [p.max for p in request.profiles] or [(request.batch, request.height, request.width)]
    shown = " and ".join(f"batch {batch} at {height}x{width}" for batch, height, width in shapes)
    return StageError(
        f"out of memory for {shown}",
        hint="use a smaller `--batch` or `--imgsz`" + (", or a smaller `--profile`" if request.profiles else ""),
    )

"""Every TensorRT name, member and signature the plugin uses, against genuine releases of the bindings.

Names come from the source by themselves, so a new use is checked without a word here. Behaviour is not:
that takes builds (`test_builder.py`) and a GPU.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trt_api
import trt_reader
import trt_usage
import trt_wheels

import yolotrt_tensorrt

Find = Callable[..., tuple[list[trt_usage.Use], list[str]]]

PLUGIN = Path(yolotrt_tensorrt.__file__).parent
SOURCES = [(str(p.relative_to(PLUGIN)), p.read_text(encoding="utf-8")) for p in sorted(PLUGIN.rglob("*.py"))]


def api_of(release: trt_wheels.Release, folder: Path) -> trt_usage.Api:
    environment = os.environ | {
        "PYTHONPATH": str(trt_wheels.bindings(release)),
        "LD_LIBRARY_PATH": str(trt_wheels.stand_ins(release, folder)),
    }
    command = [sys.executable, trt_api.__file__, f"{release.module}_bindings"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="session")
def apis(tmp_path_factory: pytest.TempPathFactory) -> dict[str, trt_usage.Api]:
    return {str(r): api_of(r, tmp_path_factory.mktemp(str(r))) for r in trt_wheels.RELEASES}


@pytest.fixture(scope="session")
def find(apis: dict[str, trt_usage.Api]) -> Find:
    """Return `find(api, sources)` -> uses of TensorRT, and accesses on objects of unknown type."""
    return functools.partial(found_in, list(apis.values()))


def found_in(
    apis: list[trt_usage.Api], api: trt_usage.Api, sources: list[tuple[str, str]] = SOURCES
) -> tuple[list[trt_usage.Use], list[str]]:
    known = trt_usage.declared(sources, apis)
    results = [trt_reader.uses(name, text, api, known) for name, text in sources]
    return [u for uses, _ in results for u in uses], [line for _, untyped in results for line in untyped]


@pytest.mark.parametrize("release", [str(r) for r in trt_wheels.RELEASES])
def test_every_use_exists_and_fits(release: str, apis: dict[str, trt_usage.Api], find: Find) -> None:
    uses, _ = find(apis[release])
    assert trt_usage.problems(uses, apis[release]) == []
    # What building cannot do without, so that an empty collection does not pass.
    names = {u.name for u in uses}
    assert {
        "Builder.__init__",
        "Builder.create_network",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "OnnxParser.parse_from_file",
        "ParserError.node_name",
        "IBuilderConfig.set_memory_pool_limit",
        "IBuilderConfig.progress_monitor",
        "IProgressMonitor.step_complete",
        "ILogger.log",
        "IOptimizationProfile.set_shape",
        "INetworkDefinition.get_input",
        "Builder.build_serialized_network",
        "ITensor.dtype",
    } <= names


def test_optional_names_exist_in_some_release(apis: dict[str, trt_usage.Api], find: Find) -> None:
    optional = {u.name for api in apis.values() for u in find(api)[0] if u.optional}
    assert optional
    assert [n for n in sorted(optional) if all(trt_usage.lookup(api, n) is None for api in apis.values())] == []


def test_no_use_escapes_by_an_unknown_type(apis: dict[str, trt_usage.Api], find: Find) -> None:
    names = trt_usage.distinctive(apis.values(), trt_usage.declared(SOURCES, apis.values()))
    untyped = set.intersection(*(set(find(api)[1]) for api in apis.values()))
    escaped = [line for line in sorted(untyped) if line.rpartition(" .")[2] in names]
    assert escaped == [], "annotate where these objects come from, e.g. `engine: tensorrt.ICudaEngine`"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("builder.create_netwrk(0)", "no `Builder.create_netwrk`"),
        ("builder.create_network(0, 1)", "`Builder.create_network` takes no 2 positions"),
        ("builder.create_network(flag=0)", "`Builder.create_network` takes no 0 positions and keywords ('flag',)"),
        ("builder.create_network(trt.NetworkDefinitionCreationFlag.EXPLICIT)", "no `NetworkDefinitionCreationFlag.EX"),
        ("config.set_compute_capability(trt.ComputeCapability.SM86, 0)", "no `IBuilderConfig.set_compute_capability`"),
        ("config.num_optimization_profiles = 2", "`IBuilderConfig.num_optimization_profiles` cannot be set"),
        ("builder.create_network().get_input(0).dtyp", "no `ITensor.dtyp`"),
        ("trt.OnnxPraser(network, logger)", "no `OnnxPraser`"),
        ("trt.OnnxParser(network)", "`OnnxParser.__init__` takes no 1 positions"),
    ],
)
def test_the_check_sees_mistakes(line: str, complaint: str, apis: dict[str, trt_usage.Api], find: Find) -> None:
    text = f"""
    def build(trt, config: tensorrt.IBuilderConfig, network: tensorrt.INetworkDefinition, logger):
        builder = trt.Builder(logger)
        {line}
    """
    source = [("mistake.py", textwrap.dedent(text))]
    api = apis["tensorrt-10.3.0"]
    said = trt_usage.problems(find(api, source)[0], api)
    assert [s for s in said if complaint in s], said


def test_the_check_sees_a_wrong_override_and_respects_a_question(apis: dict[str, trt_usage.Api], find: Find) -> None:
    api = apis["tensorrt-11.4.0.106"]
    wrong = "class Monitor(trt.IProgressMonitor):\n    def step_complete(self, phase_name): ...\n"
    said = trt_usage.problems(find(api, [("a.py", wrong)])[0], api)
    assert [s for s in said if "overridden with 2 parameters" in s], said
    guarded = """
    def aim(library, config: tensorrt.IBuilderConfig):
        if library.has("IBuilderConfig.set_compute_capability", "ComputeCapability"):
            config.set_compute_capability(library.trt.ComputeCapability.SM86, 0)
    """
    uses: list[Any] = find(api, [("a.py", textwrap.dedent(guarded))])[0]
    assert trt_usage.problems(uses, api) == []
    rtx = apis[str(trt_wheels.RTX_OLD)]
    wrong_call = textwrap.dedent(guarded).replace("SM86, 0", "SM86")
    said = trt_usage.problems(find(rtx, [("a.py", wrong_call)])[0], rtx)
    assert [s for s in said if "set_compute_capability` takes no 1 positions" in s], said

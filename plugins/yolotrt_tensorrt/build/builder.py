"""Build of a TensorRT plan from a typed ONNX, with any TensorRT release."""

from __future__ import annotations

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolotrt_core.console.progress import Bar, progress
from yolotrt_core.console.signals import Interrupt, interruptible
from yolotrt_core.errors import StageError
from yolotrt_core.plugin.stages import SideCache
from yolotrt_core.types import BuildRequest, Calibration, EngineSpec, Json, ModelSpec, OnnxModel, TensorSpec
from yolotrt_tensorrt import discovery
from yolotrt_tensorrt.build import build_log, compute_capability, implicit_int8
from yolotrt_tensorrt.build.profiles import add_profiles
from yolotrt_tensorrt.cuda import driver
from yolotrt_tensorrt.library import Library, Messages, load
from yolotrt_tensorrt.options import BUILDER_NAME, ENGINE_FILE

if TYPE_CHECKING:
    import tensorrt

    from yolotrt_tensorrt.options import TensorRTOptions

_log = logging.getLogger(__name__)

FACTS_FILE = "facts.json"
TIMING_CACHE = "timing.cache"
_SHOWN_PARSER_ERRORS = 3
_SYMMETRIC = "use a model without zero points, or `--builder onnxruntime`"
_DTYPES: Mapping[str, str] = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "FP8": "float8_e4m3fn",
}


def build(
    model: OnnxModel,
    request: BuildRequest,
    options: TensorRTOptions,
    out: Path,
    side_cache: SideCache,
    calibration: Calibration | None = None,
) -> EngineSpec:
    """Build a plan from a typed ONNX (strong typing), or from ranges (weak typing).

    Args:
        model: one input `images`, (B, 3, H, W) or (B, H, W, 3); int8 and fp8 as Q/DQ pairs; float32 for weak typing.
        calibration: ranges of this ONNX, for a weakly typed int8 build only.
        request: its profiles become optimization profiles; none for a static model.
        out: receives `model.engine`, a plain plan, and `facts.json`, parsed from the build log.
        side_cache: for the timing cache, where supported.

    Returns:
        The engine's spec: names, types and shapes from TensorRT's network.

    Raises:
        UsageError: an option or shape unsupported by the library or the model.
        StageError: TensorRT refuses the ONNX or fails to build; includes its message.
        KeyboardInterrupt: Ctrl-C; the pipeline removes partial output.
    """
    library = load(options.module)
    tools = discovery.fingerprint(options)
    trt = library.trt
    # Build on the engine's GPU, whatever device the caller's other libraries have made current.
    device = driver.current(options.device) if "gpu" in tools else contextlib.nullcontext()
    with device, library.collecting() as messages, interruptible() as interrupt, progress("TensorRT", 1.0) as bar:
        try:
            builder = trt.Builder(library.logger)
        except TypeError as err:  # raised by pybind11 when a factory returns null
            raise library.failure("create a builder", messages, "TensorRT needs a working GPU and driver") from err
        # The flag's value differs between releases, and TensorRT 11 ignores it.
        typed = 0 if calibration else 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(typed)
        config = builder.create_builder_config()
        if network is None or config is None:
            raise library.failure("create a network", messages)
        parser = _parse(library, network, model, messages)
        add_profiles(library, builder, network, config, request)
        _configure(library, config, options)
        if not request.profiles and library.has("BuilderFlag.REQUIRE_USER_ALLOCATION"):
            # An engine that never allocates can be captured with the kernels around it: one launch per frame.
            # Not with dynamic shapes: TensorRT-RTX 1.6.1 then crashes in user-provided memory.
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        if calibration is not None:
            feed = implicit_int8.Feed(cache=implicit_int8.cache_for(library, calibration, model.sha256, "entropy2"))
            calibrator = implicit_int8.engine_calibrator(library, "entropy2", feed)
            implicit_int8.configure(library, network, config, calibrator, options.constraints)
        cache = _timing_cache(library, config, options, tools, side_cache)
        monitor = _monitor(library, interrupt, bar)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            if interrupt.requested:
                raise KeyboardInterrupt
            raise library.failure("build the engine", messages, _hint(messages, options))
        bar.update(completed=1.0)
        (out / ENGINE_FILE).write_bytes(plan)
        if cache is not None:
            side_cache.save(TIMING_CACHE, tools, bytes(config.get_timing_cache().serialize()))
        spec = _spec(library, network, model.spec)
        facts = _facts(library, network, messages, plan.nbytes)
    del parser  # on some releases it owns the network's weights
    (out / FACTS_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    _report(library, request, facts, messages)
    return EngineSpec(
        model=spec,
        precision=request.precision,
        builder=BUILDER_NAME,
        tools=tools,
        profiles=request.profiles,
        onnx_sha256=model.sha256,
    )


def _parse(
    library: Library, network: tensorrt.INetworkDefinition, model: OnnxModel, messages: Messages
) -> tensorrt.OnnxParser:
    parser = library.trt.OnnxParser(network, library.logger)
    # By path, so that external data is found.
    if parser.parse_from_file(str(model.path)):
        return parser
    errors = []
    for index in range(parser.num_errors):
        error: tensorrt.ParserError = parser.get_error(index)
        at = f"node `{error.node_name()}` ({error.node_operator()}): " if error.node_name() else ""
        code = str(error.code()).rpartition(".")[2]
        errors.append(at + " ".join(error.desc().split()) + f" [{code}]")
    more = f"; and {len(errors) - _SHOWN_PARSER_ERRORS} more" if len(errors) > _SHOWN_PARSER_ERRORS else ""
    text = "; ".join(errors[:_SHOWN_PARSER_ERRORS]) or messages.last_error()
    hint = None
    if "zero point" in text.lower() or "zeropoint" in text.lower():
        remedy = model.spec.provenance.get("zero_points", _SYMMETRIC)
        hint = f"TensorRT supports no zero points of 8-bit integers, but this model has some: {remedy}"
    elif "Failed to import initializer" in text:
        hint = (
            "TensorRT has no tensors of this type, such as integers of 16 bits: quantize to 8 bits, pass the float "
            "model, or `--builder onnxruntime`"
        )
    elif "Integer)" in text or "(DynamicQuantizeLinear)" in text:
        hint = (
            "the model is quantized while it runs (`quantize_dynamic`), which only onnxruntime supports: quantize it "
            "with `quantize_static` and `QuantFormat.QDQ`, pass the float model, or `--builder onnxruntime`"
        )
    raise StageError(f"{library} cannot read the ONNX: {text}{more}", hint=hint)


def _configure(library: Library, config: tensorrt.IBuilderConfig, options: TensorRTOptions) -> None:
    trt = library.trt
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace << 20)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
        if library.installed.is_rtx:
            _log.warning("%s ignores `--tensorrt-optimization-level`: it selects kernels at run time", library)
    if options.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = {
        "detailed": trt.ProfilingVerbosity.DETAILED,
        "layer_names": trt.ProfilingVerbosity.LAYER_NAMES_ONLY,
        "none": trt.ProfilingVerbosity.NONE,
    }[options.profiling]
    compute_capability.apply(library, config, compute_capability.parse(options.compute_capabilities))


def _timing_cache(
    library: Library,
    config: tensorrt.IBuilderConfig,
    options: TensorRTOptions,
    tools: Mapping[str, str],
    side_cache: SideCache,
) -> tensorrt.ITimingCache | None:
    """Load the timing cache for the build; None where unsupported."""
    if options.timing_cache == "off":
        return None
    if library.installed.is_rtx:  # its calls have no effect and log warnings
        if options.timing_cache == "on":
            _log.warning("%s has no timing cache: it does not time kernels at build time", library)
        return None
    saved = side_cache.load(TIMING_CACHE, tools)
    for content in (saved, b""):
        if content is None:
            continue
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
        _log.warning("%s rejected the saved timing cache: starting a new one", library)
    return None


def _monitor(library: Library, interrupt: Interrupt, bar: Bar) -> Any:
    """Create the progress monitor; TensorRT calls it from its own threads."""
    trt = library.trt

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined] # the module is only known at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._done = 0.0
            # Phase to (parent, steps, steps done); one step of a parent contains a whole child phase.
            self._phases: dict[str, tuple[str | None, int, int]] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases[phase_name] = (parent_phase, max(num_steps, 1), 0)
            bar.update(text=f"TensorRT: {phase_name}")

        def step_complete(self, phase_name: str, step: int) -> bool:
            parent, steps, _ = self._phases.get(phase_name, (None, 1, 0))
            self._phases[phase_name] = (parent, steps, step + 1)
            self._done = max(self._done, self._fraction(phase_name))
            bar.update(completed=self._done)
            # TensorRT-RTX 1.7 swallows exceptions raised here; returning False cancels the build.
            return not interrupt.requested

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

        def _fraction(self, phase: str) -> float:
            """Return the overall progress, from this phase and its parents."""
            part, name = 0.0, phase
            for _ in range(len(self._phases)):
                parent, steps, done = self._phases[name]
                part = min((done + part) / steps, 1.0)
                if parent is None or parent not in self._phases:
                    return part
                name = parent
            return self._done

    return Monitor()


def _hint(messages: Messages, options: TensorRTOptions) -> str | None:
    text = " ".join(messages.errors).lower()
    if options.workspace is not None and ("workspace" in text or "outofmemory" in text or "out of memory" in text):
        return f"{options.workspace} MiB of `--tensorrt-workspace` are not enough: omit the option, or use 256 or more"
    return None


def _spec(library: Library, network: tensorrt.INetworkDefinition, model: ModelSpec) -> ModelSpec:
    """Describe the network's inputs and outputs; free axes keep their ONNX names."""
    known = {tensor.name: tensor.shape for tensor in (*model.inputs, *model.outputs)}

    def describe(tensor: tensorrt.ITensor) -> TensorSpec:
        names = known.get(tensor.name, ())
        shape = tuple(
            int(n) if n >= 0 else (str(names[axis]) if axis < len(names) else f"axis{axis}")
            for axis, n in enumerate(tuple(tensor.shape))
        )
        return TensorSpec(tensor.name, _DTYPES.get(tensor.dtype.name, tensor.dtype.name.lower()), shape)

    return replace(
        model,
        inputs=tuple(describe(network.get_input(i)) for i in range(network.num_inputs)),
        outputs=tuple(describe(network.get_output(i)) for i in range(network.num_outputs)),
    )


def _facts(
    library: Library, network: tensorrt.INetworkDefinition, messages: Messages, plan_bytes: int
) -> dict[str, Json]:
    """Collect facts of the engine for the record."""
    names = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == library.trt.LayerType.CONVOLUTION:
            names.append(str(layer.name))
    final = build_log.parse(messages.verbose)
    facts: dict[str, Json] = {"library": f"{library.installed.module} {library.installed.version}", "bytes": plan_bytes}
    if final:
        kinds = Counter(layer.kind for layer in final)
        facts["layers"] = dict(sorted(kinds.items()))
        facts["convolutions"] = dict(build_log.convolutions_by_precision(final, names))
    return facts


def _report(library: Library, request: BuildRequest, facts: Mapping[str, Json], messages: Messages) -> None:
    """Log how many convolutions have the requested precision, and TensorRT's warnings."""
    counts = facts.get("convolutions")
    if isinstance(counts, dict):
        total = sum(int(str(n)) for n in counts.values())
        got = counts.get(request.precision, 0)
        _log.log(logging.INFO if got else logging.WARNING, "%s of %s convolutions in %s", got, total, request.precision)
    warnings = Counter(" ".join(m.text.split()) for m in messages.all if m.severity == "WARNING")
    for text, times in warnings.most_common(3):
        _log.info("warning of %s: %s%s", library, text, f" ({times} times)" if times > 1 else "")

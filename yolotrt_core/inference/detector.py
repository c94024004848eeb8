"""Inference of one engine: frames to detections."""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from yolotrt_core.errors import UsageError
from yolotrt_core.inference.frame_checks import checked_frames, refuse_missing_frames, refuse_selection
from yolotrt_core.inference.image_loader import decode_ahead
from yolotrt_core.inference.image_options import ImageOptions
from yolotrt_core.inference.letterbox import preprocess
from yolotrt_core.media.frames import DeviceFrame, Frame
from yolotrt_core.media.images import FULL_DEPTH
from yolotrt_core.plugin.options import GivenOptions
from yolotrt_core.plugin.registered import Registered
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.plugin.stages import DeviceProgram, Session
from yolotrt_core.store.store import Store
from yolotrt_core.types import Detections, EngineSpec, Json, Selection, without_channels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Detector:
    """Runs one engine on images; a context manager.

    If the session runs the whole pipeline on a GPU, threads may share the detector. Otherwise only one
    thread at a time may call it.

    Attributes:
        spec: the engine's spec. labels: class names by class id.
        opened_by: cache-key material of the session, see `Registered.session_key_material`.
        seconds: total time per step: `preprocess`, `infer`, `postprocess`; or `detect`.
        frames: number of processed frames. image_bits: see `ImageOptions`, for files read for this detector.
        reads_alpha: whether the network has an alpha channel, so that frames may be uint8 (H, W, 4) in BGRA.
    """

    def __init__(
        self,
        session: Session,
        postprocessor: Registered,
        options: Any,
        opened_by: Mapping[str, Json] | None = None,
        image_bits: int = FULL_DEPTH,
    ) -> None:
        self.spec: EngineSpec = session.spec
        self.opened_by: Mapping[str, Json] = opened_by or {}
        self.labels = self.spec.model.labels
        self.image_bits = image_bits
        self.reads_alpha = "a" in self.spec.model.channel_order
        self.seconds: dict[str, float] = defaultdict(float)
        self.frames = 0
        self._counting = threading.Lock()
        self._session = session
        self._postprocessor = postprocessor
        self._options = options
        self._batch, self._size = _limits(self.spec)
        stage = postprocessor.stage
        self._device: tuple[Session, DeviceProgram] | None = None
        if session.detects and stage.decodes_on_device:
            self._device = (session, stage.device_program(self.spec.model))

    @property
    def decoded_by(self) -> Mapping[str, Json]:
        """Cache-key material of the postprocessor and its options."""
        return self._postprocessor.cache_key_material(self._options)

    @property
    def session(self) -> Session:
        """The session opened by the builder, for benchmarks."""
        return self._session

    @property
    def program(self) -> DeviceProgram | None:
        """The device program of a session with GPU postprocessing."""
        return self._device[1] if self._device else None

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the network input in pixels."""
        return self._size

    @classmethod
    def load(
        cls,
        engine: Path,
        spec: EngineSpec,
        builder: Registered,
        settings: GivenOptions,
        *,
        store: Store,
        registry: Registry,
    ) -> Self:
        """Open an engine file built by `builder`.

        Args:
            settings: source of the options of builder and postprocessor, and of those of images.

        Raises:
            StageError: the engine does not run on this machine.
        """
        postprocessor = registry.postprocessor(spec.model.head)
        chosen = settings.resolve(postprocessor.stage.Options, postprocessor.name)
        options = settings.resolve(builder.stage.Options, builder.name)
        session = builder.stage.open(engine, spec, options, store.side_cache())
        bits = settings.resolve(ImageOptions, "image").bits
        return cls(session, postprocessor, chosen, builder.session_key_material(options), bits)

    def detect(self, frames: Sequence[Frame], selection: Selection = Selection()) -> list[Detections]:
        """Detect objects on images of any size.

        Args:
            frames: uint8 (H, W, 3) BGR each, as OpenCV reads them; or `Nv12Frame`; with `reads_alpha` also
                (H, W, 4) BGRA.
            selection: thresholds, see `Selection`.

        Returns:
            One Detections per frame, with boxes in pixels of the frame; of a classification model without boxes, but
            with `classes`.

        Raises:
            UsageError: invalid dtype or shape of a frame, a threshold out of range, or an unknown class id.
        """
        refuse_selection(selection, self.labels)
        if self._device is not None:
            refuse_missing_frames(frames)
            session, program = self._device
            began = time.perf_counter()
            found: list[Detections] = session.detect(frames, program, selection)
            self._count(len(frames), {"detect": time.perf_counter() - began})
            return found
        images = list(checked_frames(frames, alpha=self.reads_alpha))
        found = []
        for first in range(0, len(images), self._batch):
            found += self._detect_batch(images[first : first + self._batch], selection)
        return found

    def detect_at(
        self, frame: NDArray[np.uint8], size: tuple[int, int], selection: Selection = Selection()
    ) -> Detections:
        """Detect objects on one image at another input size; for dynamic engines, with CPU pre- and postprocessing.

        Args:
            frame: uint8 (H, W, 3) BGR. size: (height, width) of the network input, within a profile.

        Raises:
            UsageError: as for `detect`, or a size outside the profiles.
        """
        refuse_selection(selection, self.labels)
        return self._run(list(checked_frames([frame], alpha=self.reads_alpha)), size, selection)[0]

    def stream(self, frames: Iterable[Frame], selection: Selection = Selection()) -> Iterator[Detections]:
        """Detect objects on a stream of frames, in order.

        On a GPU several batches are in flight while `frames` is read; an exception of `frames` is raised
        after the results of earlier frames.

        Args:
            frames: as for `detect`. A frame must not change until its result is yielded, since its upload may
                be pending: a ring of buffers needs one batch more than are in flight.

        Raises:
            UsageError: as for `detect`.
        """
        refuse_selection(selection, self.labels)
        if self._device is not None:
            session, program = self._device
            began = time.perf_counter()
            for found in session.stream(frames, program, selection):
                self._count(1, {"detect": time.perf_counter() - began})
                yield found
                began = time.perf_counter()
            return
        for batch in _batches(checked_frames(frames, alpha=self.reads_alpha), self._batch):
            yield from self._detect_batch(_on_host(batch), selection)

    def detect_files(
        self, paths: Iterable[str | Path], selection: Selection = Selection()
    ) -> Iterator[Detections | UsageError]:
        """Detect objects in image files, decoded ahead, by the GPU's hardware decoder if available.

        Args:
            paths: image files in any format supported by OpenCV.

        Yields:
            The detections or the error of each file, in order.

        Raises:
            UsageError: as for `detect`.
        """
        if isinstance(paths, (str, bytes, Path)):
            raise UsageError(
                f"expected a list of image files as `paths`, found {str(paths)!r}", hint="pass a single file as a list"
            )
        read: deque[UsageError | None] = deque()

        def frames() -> Iterator[Frame]:
            for one in decode_ahead([path if isinstance(path, Path) else Path(path) for path in paths], self):
                if isinstance(one, UsageError):
                    read.append(one)
                else:
                    read.append(None)
                    yield one

        for found in self.stream(frames(), selection):
            while (error := read.popleft()) is not None:
                yield error
            yield found
        for error in read:
            assert error is not None  # every frame has a result
            yield error

    def device_steps(self, frames: Sequence[Frame], selection: Selection = Selection()) -> dict[str, float] | None:
        """Return the GPU time in milliseconds of each step for one batch; None without a GPU.

        Args:
            frames: as for `detect`, at most one batch.
        """
        if self._device is None or not self._session.is_timed:
            return None
        return self._session.time_steps(frames, self._device[1], selection)

    def pinned_frames(self, count: int, shape: tuple[int, ...]) -> list[NDArray[np.uint8]]:
        """Return page-locked frame buffers for a decoder or camera to fill; see `stream`.

        Args:
            shape: (H, W, 3) for BGR, (H * 3 / 2, W) for the planes of an `Nv12Frame`.
        """
        import numpy as np

        if self._device is not None:
            buffers: list[NDArray[np.uint8]] = self._device[0].pinned_frames(count, shape)
            return buffers
        return [np.empty(shape, np.uint8) for _ in range(count)]

    def pinned_copy(self, frame: Frame) -> Frame:
        """Return a page-locked copy of a frame, best called by the decoding thread.

        Args:
            frame: as for `detect`; the result has the same type.
        """
        return self._device[0].pinned_copy(frame) if self._device is not None else frame

    def page_lock(self, memory: NDArray[np.uint8]) -> object:
        """Page-lock memory that another process fills with frames, while the returned object lives.

        Returns:
            None if the session does not benefit from page-locked memory.

        Raises:
            StageError: the memory cannot be locked.
        """
        if self._device is None or not self._session.locks_pages:
            return None
        return self._session.page_lock(memory)

    @property
    def decodes_files(self) -> bool:
        """Whether `decode` is supported: image files are decoded on the GPU."""
        return self._device is not None and self._session.decodes_files

    def decode(self, files: Sequence[bytes]) -> Sequence[DeviceFrame | None]:
        """Decode the contents of image files on the GPU; `detect` and `stream` accept the results as frames.

        Returns:
            None for each file that OpenCV must read instead: not JPEG, with EXIF orientation, or corrupted.
        """
        session = self._session
        return session.decode(files) if session.decodes_files else [None] * len(files)

    def _detect_batch(self, frames: Sequence[NDArray[np.uint8]], selection: Selection) -> list[Detections]:
        return self._run(frames, self._size, selection)

    def _run(
        self, frames: Sequence[NDArray[np.uint8]], size: tuple[int, int], selection: Selection
    ) -> list[Detections]:
        import numpy as np

        marks = [time.perf_counter()]
        model = self.spec.model
        images, geometry = preprocess(frames, size, layout=model.layout, order=model.channel_order, fit=model.fit)
        if not self.spec.profiles and len(frames) < self._batch:  # static engines require full batches
            images = np.concatenate([images, np.zeros((self._batch - len(frames), *images.shape[1:]), images.dtype)])
        marks.append(time.perf_counter())
        raw = self._session.infer(images)
        marks.append(time.perf_counter())
        used = {name: array[: len(frames)] for name, array in raw.items()}
        found: list[Detections] = self._postprocessor.stage.decode(
            used, self.spec.model, geometry, selection, self._options
        )
        marks.append(time.perf_counter())
        steps = ("preprocess", "infer", "postprocess")
        taken = (ended - began for began, ended in itertools.pairwise(marks))
        self._count(len(frames), dict(zip(steps, taken, strict=True)))
        return found

    def _count(self, frames: int, seconds: Mapping[str, float]) -> None:
        with self._counting:
            self.frames += frames
            for step, taken in seconds.items():
                self.seconds[step] += taken

    def close(self) -> None:
        """Free the engine."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _on_host(frames: Sequence[Frame]) -> Sequence[NDArray[np.uint8]]:
    """Narrow the type of frames for sessions that do not decode files."""
    return cast("Sequence[NDArray[np.uint8]]", frames)


def _batches(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    """Group frames; frames before an exception are yielded first."""
    source = iter(frames)
    while True:
        batch: list[Frame] = []
        try:
            while len(batch) < size:
                batch.append(next(source))
        except StopIteration:
            if batch:
                yield batch
            return
        except BaseException:  # raised again after the earlier frames
            if batch:
                yield batch
            raise
        yield batch


def _limits(spec: EngineSpec) -> tuple[int, tuple[int, int]]:
    """Return the maximum batch and the (height, width): the static shape or the first profile's."""
    if spec.profiles:
        first = spec.profiles[0]
        return first.max[0], (first.opt[1], first.opt[2])
    batch, height, width = without_channels(spec.model.inputs[0].shape, spec.model.layout)
    if not (isinstance(batch, int) and isinstance(height, int) and isinstance(width, int)):
        raise UsageError(f"invalid engine spec: dynamic input {spec.model.inputs[0].shape} without a profile")
    return batch, (height, width)

"""Worker of `decode_pool`: forks processes that decode images into shared memory.

Forked, since importing OpenCV takes as long as reading a hundred images.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from yolotrt_core.console.notices import collect_notices
from yolotrt_core.media import images
from yolotrt_core.media.decode_pool import Placed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from yolotrt_core.errors import UsageError
    from yolotrt_core.media.decode_pool import Answer


def main() -> None:
    """Serve each connection in its own process until the other end is closed.

    Command-line arguments are file descriptors of the shared memory and of each connection.
    """
    memory, *connections = map(int, sys.argv[1:])
    import cv2  # before forking; imports NumPy, too
    import numpy as np

    cv2.setNumThreads(1)
    for own in connections:
        if os.fork() == 0:
            try:
                for other in connections:
                    if other != own:  # so that closing it is noticed
                        os.close(other)
                _serve(Connection(own), np.frombuffer(mmap.mmap(memory, os.fstat(memory).st_size), np.uint8))
            finally:
                os._exit(0)  # skips the parent's cleanup
    for connection in connections:
        os.close(connection)
    for _ in connections:
        os.wait()


def _serve(connection: Connection, memory: NDArray[np.uint8]) -> None:
    connection.send(None)  # started
    notices = collect_notices()
    while True:
        try:
            begin, end, files, depth = connection.recv()
            try:
                answer = _read(memory[begin:end], files, depth)
            except Exception:  # noqa: BLE001 - the files are read again in the parent, which reports it
                answer = None
            connection.send((answer, notices))
            notices.clear()
        except (EOFError, OSError):  # the parent closed the connection
            return


def _read(region: NDArray[np.uint8], files: list[str], depth: int) -> Answer:
    import numpy as np

    taken = 0

    def room(shape: tuple[int, ...]) -> NDArray[np.uint8]:
        size = math.prod(shape)
        place = region[taken : taken + size] if taken + size <= len(region) else np.empty(size, np.uint8)
        return place.reshape(shape)

    answer: list[Placed | NDArray[np.uint8] | UsageError] = []
    for path in map(Path, files):
        try:
            known = images.plain_jpeg_size(path)
        except OSError:
            known = None
        one = images.attempt(path, room, known, depth)
        if isinstance(one, np.ndarray) and np.may_share_memory(one, region):
            answer.append(Placed(taken, one.shape))
            taken += one.nbytes
        else:
            answer.append(one)
    return answer

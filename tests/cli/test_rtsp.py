"""`detect` on an RTSP address: what a camera sends is found as in the same video from a file."""

from __future__ import annotations

import json
from pathlib import Path

import cv2

from yolotrt_core.export.model_source import sample_path

from .conftest import call
from .rtsp_camera import rtsp_camera, write_stream


def test_a_camera_is_watched_and_its_password_kept(warm: Path, tmp_path: Path) -> None:
    source_image = cv2.imread(str(sample_path()))
    assert source_image is not None
    video, here = tmp_path / "video.ts", tmp_path / "here"
    here.mkdir()
    write_stream(video, [cv2.convertScaleAbs(source_image, alpha=1 - number / 100) for number in range(40)])
    common = ("--builder", "onnxruntime", "--max-frames", "10", "--json")
    with rtsp_camera(video.read_bytes()) as camera:
        address = f"rtsp://user:secret@127.0.0.1:{camera.server_address[1]}/door"
        watched = call("detect", address, *common, cwd=here, store=warm / "store")
    assert watched.code == 0, watched.err
    assert [method for method, _ in camera.asked][:4] == ["OPTIONS", "DESCRIBE", "SETUP", "PLAY"]
    videoed = call("detect", str(video), *common, "--out", "video", cwd=here, store=warm / "store")
    assert videoed.code == 0, videoed.err
    images, like = (json.loads(ran.out)["images"] for ran in (watched, videoed))
    assert [image["frame"] for image in images] == list(range(10))
    assert [image["detections"] for image in images] == [image["detections"] for image in like]
    assert all(len(image["detections"]) >= 5 for image in images)
    written = [file.read_bytes() for file in (here / "detections").glob("stream-127.0.0.1-*/*")]
    assert len(written) == 2
    assert not any(b"secret" in text for text in (watched.out.encode(), watched.err.encode(), *written))

"""Run by another Python that has PyPI's `yolov5` 7.0.14: upstream's own answers in float64, for `family_table.py`.

    PEER_PYTHON family_float64.py FOLDER

For each NAME.pt with a NAME.npz (`images`) in FOLDER writes NAME.float64.npy, the first output. Its licence is AGPL:
nothing of it is copied here, and the project never imports it.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
warnings.filterwarnings("ignore")
import numpy as np  # noqa: E402
import torch  # noqa: E402
import yolov5  # noqa: E402

sys.path.insert(0, str(Path(yolov5.__file__).parent))  # files name their classes `models.yolo...`


def main(folder: Path) -> None:
    """Answer for each model that has no answer yet."""
    for path in sorted(folder.glob("*.pt")):
        target = path.with_suffix(".float64.npy")
        if target.exists() or not path.with_suffix(".npz").exists():
            continue
        file = torch.load(path, map_location="cpu", weights_only=False)
        model = (file.get("ema") or file["model"]) if isinstance(file, dict) else file
        with np.load(path.with_suffix(".npz")) as arrays:
            images = torch.from_numpy(arrays["images"]).double()
        with torch.no_grad():
            answer = model.double().eval()(images)
        np.save(target, (answer[0] if isinstance(answer, (tuple, list)) else answer).numpy())
        print(path.stem, flush=True)


main(Path(sys.argv[1]))

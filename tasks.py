"""The tasks of yolotrt for `invoke`; `yolotrt` offers the same after `pip install`."""

from yolotrt_core.cli import namespace

ns = namespace()

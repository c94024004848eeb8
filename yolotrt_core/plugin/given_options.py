"""Stage options as flags and a recipe give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from yolotrt_core.plugin import options


@dataclass(frozen=True, slots=True)
class GivenOptions:
    """Stage options as the user gave them: `flags[stage][field]` text, `recipe[stage][field]`."""

    flags: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def resolve(self, cls: type, prefix: str) -> Any:
        return options.resolve(cls, prefix, self.flags.get(prefix), self.recipe.get(prefix))

"""Registries: the parts of one kind (losses, masks, probes ...) by the name that a config gives them."""

import difflib
import importlib
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from hjepa_pl.types import ConfigError
from hjepa_pl.utils.wording import as_typed, either

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Parts by name; `find` also takes the import path of a part outside the package.

    Args:
        key: The key whose value names a part, as it is typed (`regularizers.kind`), for messages.
        parts: The parts of the package. A new one is one more line here, or `REGISTRY["name"] = part` from elsewhere.

    Example:
        >>> losses = Registry("regularizers.kind", {"sigreg": "SIGReg", "vicreg": "VICReg"})
        >>> losses.find("sigreg")
        'SIGReg'
    """

    def __init__(self, key: str, parts: Mapping[str, T]) -> None:
        self.key = key
        self._parts = dict(parts)

    def __getitem__(self, name: str) -> T:
        return self._parts[name]

    def __setitem__(self, name: str, part: T) -> None:
        if name in self._parts:
            raise ValueError(f"{self.key} '{name}' is registered already; give the new part another name.")
        self._parts[name] = part

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def find(self, name: str) -> T:
        """Return the part of a name, or of an import path (`my_package.my_module.MyPart`).

        Raises:
            ConfigError: If there is none.
        """
        if isinstance(name, str) and name in self._parts:
            return self._parts[name]
        module, _, attribute = name.rpartition(".") if isinstance(name, str) else ("", "", "")
        if module:
            try:
                return getattr(importlib.import_module(module), attribute)
            except (ImportError, AttributeError, TypeError, ValueError) as error:
                raise ConfigError(f"invalid `{self.key}={name}`: cannot be imported ({error}).") from None
        near = difflib.get_close_matches(name, self._parts, 1) if isinstance(name, str) else []
        hint = f"; did you mean {near[0]}?" if near else "."
        known = either(self._parts)
        raise ConfigError(
            f"invalid `{self.key}={as_typed(name)}`: must be {known}, or the import path of your own{hint}"
        )

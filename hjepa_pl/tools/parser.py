"""The parser of tools that have a few words of their own."""

import argparse
from typing import NoReturn

from hjepa_pl.types import ConfigError


class Parser(argparse.ArgumentParser):
    """argparse's parser; an error is a `ConfigError`, one sentence, instead of the usage.

    Args:
        name: The command, as `export`.
        description: The text above the options; its lines are kept.
        examples: The text below them.
    """

    def __init__(self, name: str, description: str, examples: str) -> None:
        super().__init__(
            f"hjepa {name}",
            description=description,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.name = name

    def error(self, message: str) -> NoReturn:
        """Raise the error."""
        raise ConfigError(f"{message.rstrip('.')}; see hjepa {self.name} --help.")

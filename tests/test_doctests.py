"""The examples in docstrings run."""

import doctest
import importlib
from pathlib import Path

import pytest

import hjepa_pl

ROOT = Path(hjepa_pl.__file__).parent
WITH_EXAMPLES = sorted(
    ".".join(["hjepa_pl", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if ">>> " in path.read_text()
)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_give_what_they_say(name) -> None:
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert found.attempted > 0
    assert found.failed == 0

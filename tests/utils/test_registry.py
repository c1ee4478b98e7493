"""Registries: by name, by import path, and what they say of neither."""

import pytest

from hjepa_pl.types import ConfigError
from hjepa_pl.utils.registry import Registry


def test_a_part_is_found_by_name_and_by_import_path(tmp_path, monkeypatch) -> None:
    parts: Registry[type] = Registry("part.kind", {"int": int, "str": str})
    assert parts.find("int") is int
    (tmp_path / "outside_part.py").write_text("class Mine: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert parts.find("outside_part.Mine").__name__ == "Mine"
    parts["float"] = float
    assert parts.find("float") is float
    assert list(parts) == ["int", "str", "float"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("strr", "invalid `part.kind=strr`: must be int or str, or the import path of your own; did you mean str?"),
        ("no_such_module.Part", "invalid `part.kind=no_such_module.Part`: cannot be imported"),
        ("pathlib.Pth", "invalid `part.kind=pathlib.Pth`: cannot be imported"),
        ("..a", "invalid `part.kind=..a`: cannot be imported"),
        (["int"], "invalid `part.kind=[int]`: must be int or str"),
        (None, "invalid `part.kind=null`: must be int or str, or the import path of your own."),
    ],
)
def test_an_unknown_name_is_rejected_in_one_sentence(name, sentence) -> None:
    with pytest.raises(ConfigError) as error:
        Registry("part.kind", {"int": int, "str": str}).find(name)
    assert str(error.value).startswith(sentence)


def test_a_name_is_taken_once() -> None:
    parts: Registry[type] = Registry("part.kind", {"int": int})
    with pytest.raises(ValueError, match="registered already"):
        parts["int"] = str

"""Settings: bounds from annotations, one sentence for each error, plain mappings both ways."""

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Le
from jsonargparse import ArgumentParser
from pydantic import TypeAdapter

from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import Count, Hint, Pair, PathText, Positive, from_plain, settings, to_plain


@settings("part")
class PartConfig:
    """A part."""

    depth: Count | None = None
    """Blocks."""
    size: Literal["small", "base"] | None = None
    scale: Pair[Annotated[float, Gt(0), Le(1)]] = (0.1, 1.0)
    lr: Positive = 1e-3
    root: PathText | None = None
    temperature: Annotated[float, Gt(0), Hint("0.1 is usual")] = 1.0
    zero: Annotated[int, Ge(0)] = 0

    def __post_init__(self) -> None:
        """Reject a combination."""
        if self.depth == 7 and self.size == "small":
            raise ConfigError("part.depth 7 does nothing with part.size small; remove one.")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"depth": 0}, "invalid `part.depth=0`: must be a whole number >= 1 or null."),
        ({"depth": True}, "invalid `part.depth=true`: must be a whole number >= 1 or null."),
        ({"depth": "3"}, "invalid `part.depth='3'`: must be a whole number >= 1 or null."),
        ({"depth": 2.0}, "invalid `part.depth=2.0`: must be a whole number >= 1 or null."),
        ({"size": "tiny"}, "invalid `part.size=tiny`: must be small, base or null."),
        ({"scale": [0.0, 2]}, "invalid `part.scale=[0, 2]`: must be a list of 2 numbers in (0, 1]."),
        ({"scale": [0.1]}, "invalid `part.scale=[0.1]`: must be a list of 2 numbers in (0, 1]."),
        ({"lr": float("nan")}, "invalid `part.lr=nan`: must be a number > 0."),
        ({"lr": float("inf")}, "invalid `part.lr=inf`: must be a number > 0."),
        ({"lr": True}, "invalid `part.lr=true`: must be a number > 0."),
        ({"root": 3}, "invalid `part.root=3`: must be text or null."),
        ({"temperature": 0}, "invalid `part.temperature=0`: must be a number > 0; 0.1 is usual."),
        ({"zero": -1}, "invalid `part.zero=-1`: must be a whole number >= 0."),
        ({"depth": 7, "size": "small"}, "part.depth 7 does nothing with part.size small; remove one."),
        ({"dpeth": 2}, "part does not accept 'dpeth'; its keys are depth, size, scale, lr, root, temperature, zero."),
    ],
)
def test_each_error_is_one_sentence_from_python_and_from_a_mapping(given, sentence) -> None:
    for make in (lambda: PartConfig(**given), lambda: from_plain(PartConfig, given, "part")):
        with pytest.raises(ConfigError) as error:
            make()
        assert str(error.value) == sentence


def test_values_are_kept_as_a_config_holds_them() -> None:
    made = PartConfig(scale=[0.2, 1], root=Path("a/b"), lr=1)  # type: ignore[arg-type]
    assert (made.scale, made.root, made.lr) == ((0.2, 1.0), "a/b", 1.0)
    assert from_plain(PartConfig, to_plain(made), "part") == made
    assert dataclasses.replace(made, depth=2).depth == 2
    assert copy.deepcopy(made) == made == pickle.loads(pickle.dumps(made))
    assert hash(made) == hash(copy.deepcopy(made))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.depth = 3


class Holder:
    """Takes settings, as the module does."""

    def __init__(self, part: PartConfig = PartConfig(), parts: list[PartConfig] | None = None) -> None:  # noqa: B008
        self.part, self.parts = part, parts


def test_the_command_line_says_the_same_of_a_value_out_of_bounds() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Holder, "model")
    made = parser.instantiate(parser.parse_args(["--model.part.depth=3", "--model.parts=[{zero: 2}]"]))
    assert (made.model.part.depth, made.model.parts[0].zero) == (3, 2)
    with pytest.raises(Exception, match=r"invalid `part.depth=0`: must be a whole number >= 1 or null"):
        parser.instantiate(parser.parse_args(["--model.part.depth=0"]))


def test_a_json_schema_holds_bounds_and_meanings() -> None:
    schema = TypeAdapter(PartConfig).json_schema()["properties"]
    assert schema["depth"]["anyOf"][0] == {"minimum": 1, "type": "integer"}
    assert schema["depth"]["description"] == "Blocks."


def test_a_subclass_keeps_the_bounds_that_it_inherits() -> None:
    @settings("part")
    class WiderConfig(PartConfig):
        """A part with a width."""

        width: Count = 3

    assert WiderConfig(scale=[0.2, 1]).scale == (0.2, 1.0)  # type: ignore[arg-type]
    for given in ({"depth": 0}, {"width": 0}, {"lr": -1}, {"scale": {0.1, 0.2}}):
        with pytest.raises(ConfigError, match=f"invalid `part.{next(iter(given))}="):
            WiderConfig(**given)

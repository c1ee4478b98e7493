"""The keys as a person finds them: --print_config, --help, and what the documents say of them."""

import inspect
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml

from hjepa_pl import HJEPALightningModule, MultiDatasetDataModule
from hjepa_pl.__main__ import main
from hjepa_pl.cli import help as schema
from hjepa_pl.cli.arguments import read_words
from hjepa_pl.cli.cli import HJEPACLI
from hjepa_pl.cli.main import start
from hjepa_pl.cli.unknown_keys import check_keys_known
from hjepa_pl.data.sources.registry import DATASETS
from hjepa_pl.tools.arguments import sort_words
from hjepa_pl.tools.sweep.command import OWN, take_grids
from hjepa_pl.tools.sweep.grid import cells_of, read_grid
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import to_plain

all_keys = cache(schema.all_keys)
ROOT = Path(__file__).parents[2]
DOTS = "...\n"  # what PyYAML ends a lone word with
DOCUMENTS = [
    ROOT / "README.md", ROOT / "configs" / "README.md", ROOT / "docs" / "model.md", ROOT / "docs" / "data.md",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _from_the_repository(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)


@cache
def parser() -> Any:
    """Return the real parser of `hjepa fit`."""

    class Stopped(HJEPACLI):
        def parse_arguments(self, parser, args) -> None:
            raise StopIteration(parser)

    with pytest.raises(StopIteration) as stopped:
        start(["fit"], Stopped)
    return stopped.value.value


def accepts(words: list[str]) -> str:
    """Return nothing if the real parser takes these words, else what it says."""
    return _accepts(tuple(words))


@cache  # several documents say the same
def _accepts(words: tuple[str, ...]) -> str:
    try:
        read = read_words(["fit", *words])
        check_keys_known(read[1:], parser().parse_args(read)["fit"])
    except (ConfigError, Exception) as error:
        return f"{type(error).__name__}: {error}"
    return ""


# ------------------------------------------------------------------------------------ --print_config, --help


@pytest.mark.parametrize(("group", "kind"), [("model", HJEPALightningModule), ("data", MultiDatasetDataModule)])
def test_print_config_prints_every_key_with_its_default(capsys, group, kind) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--print_config"])
    assert ended.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)[group]["init_args"]
    defaults = {name: p.default for name, p in inspect.signature(kind).parameters.items()}
    assert set(printed) == set(defaults)
    for name, default in defaults.items():
        if default is not inspect.Parameter.empty:
            assert printed[name] == to_plain(default), name


def test_help_shows_ours_first_and_lightnings_when_asked(capsys) -> None:
    assert main(["fit", "--help"]) == 0
    shown = capsys.readouterr().out
    for key in (
        "--model.encoder.depth int >= 1|null",
        "--data.augmentation.gray",
        "--model.levels.cell",
        "--time_budget",
        "--collapse.min_std float in [0, 1) = 0.1",
        "--model.optimizer.betas [float in [0, 1), float in [0, 1)]",
    ):
        assert key in shown
    assert "--trainer.max_epochs" not in shown
    assert "hjepa fit --help trainer" in shown
    assert "Peak learning rate" in shown
    assert max(map(len, shown.splitlines())) <= 120
    assert main(["fit", "--help", "trainer"]) == 0
    trainer = capsys.readouterr().out
    assert "--trainer.max_epochs" in trainer
    assert "--model." not in trainer
    assert main(["help", "validate"]) == 0
    assert "usage: hjepa validate" in capsys.readouterr().out


def test_help_is_about_keys_that_the_parser_takes() -> None:
    """All with a default, written with it on one command line; those inside lists are the parser's in a list."""
    inside = re.compile(r"\.(levels|regularizers|datasets|probe|augmentation|pyramid|multicrop|resolution)\.")
    lines = [
        f"--{key.name}={yaml.safe_dump(to_plain(key.default), default_flow_style=True).removesuffix(DOTS).strip()}"
        for key in all_keys()
        if not inside.search(key.name)
        and key.default not in (None, ..., inspect.Parameter.empty)
        and key.name != "trainer.val_check_interval"
    ]
    assert len(lines) > 70
    assert not accepts(["quickstart", *lines])
    assert "DatasetConfig" not in schema.help_text("fit", "datasets")


# --------------------------------------------------------------------------------------------------- the documents

TABLE = {  # the row of a table of keys: where its keys are
    "encoder": "model.encoder", "levels": "model.levels", "regularizers": "model.regularizers", "masks": "model.masks",
    "predictor": "model.predictor", "projector": "model.projector", "views (data)": "data",
    "augmentation (data)": "data.augmentation", "pyramid": "model.pyramid",
}  # fmt: skip
NO_KEYS = {
    "val", "train", "data", "tokens", "last_c2", "class_path", "init_args", "best",
}  # fmt: skip
"""Words in backticks that look like keys, and are folders, attributes or the like."""


def names() -> list[str]:
    return [key.name for key in all_keys()]


def options() -> set[str]:
    """Return every word that some key takes as its value."""

    def words(hint: Any) -> set[str]:
        if get_origin(hint) is Literal:
            return {str(a) for a in get_args(hint)}
        return set().union(*map(words, get_args(hint)), set())

    return set(DATASETS) | set().union(*(words(key.hint) for key in all_keys()))


def spans(text: str) -> list[str]:
    plain = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [s.replace("\\|", "|").replace("\n", " ") for s in re.findall(r"`([^`]+)`", plain)]


def check_claim(span: str, among: list[str]) -> str:
    """Return what is wrong with `key` or `key: a | b` in backticks, or nothing.

    Args:
        span: What stands in backticks.
        among: Keys that may be meant.
    """
    name, _, value = span.partition(": ")
    meant = [k for k in among if k == name or k.endswith(f".{name}")]
    if not meant:
        return f"there is no key {name}"
    if not value or re.search(r"\b[A-Z]{3,}\b|\.\.\.", value):
        return ""
    wrong = [claim for choice in choices(value) if (claim := refused(meant, choice))]
    return "; ".join(wrong)


def choices(value: str) -> list[Any]:
    if value.startswith("{"):
        parts = re.findall(r"(\w+)(?:: ([^,}]+))?", value)
        return [{key: yaml.safe_load(c)} for key, v in parts for c in (v or "null").split(" | ")]
    return [yaml.safe_load(v.strip("`")) for v in re.split(r" \| |` or `", value)]


def line_of(key: str, choice: Any) -> str:
    """Return the command line's word for a value; a key inside a list is given with the rest of an entry."""
    found = re.match(r"(model|data)\.(levels|regularizers|datasets|probe)(?:\.(\w+))?$", key)
    if found and (found[3] or isinstance(choice, dict)):
        entry = {"name": "digits"} if found[1] == "data" else {"kind": "sigreg"} if found[2] == "regularizers" else {}
        key, choice = f"{found[1]}.{found[2]}", [entry | ({found[3]: choice} if found[3] else choice)]
    return f"--{key}={yaml.safe_dump(choice, default_flow_style=True, width=1000).removesuffix(DOTS).strip()}"


def refused(meant: list[str], choice: Any) -> str:
    """Return nothing if the parser takes the value for one of the keys."""
    if isinstance(choice, dict) and None in choice.values():  # a key that is named without a value
        missing = [k for k in choice if not any(f"{m}.{k}" in names() for m in meant)]
        return f"there is no key {missing[0]}" if missing else ""
    fits = {key.name: isinstance(choice, str) and choice in str(key.hint) for key in all_keys()}
    said = ""
    for key in sorted(meant, key=lambda k: not fits[k]):
        said = accepts(["--data.datasets=[{name: digits}]", line_of(key, choice)])
        if not said:
            return ""
    return f"{meant}={choice!r}: {said}"


def test_every_key_of_the_documents_tables_is_taken_by_the_parser() -> None:
    documents = "\n".join(path.read_text() for path in DOCUMENTS)
    rows = dict(re.findall(r"^\| ([\w ()]+) \| (.*) \|$", documents, re.MULTILINE))
    wrong = []
    for part, prefix in TABLE.items():
        cell = rows[part].replace("\\|", "|")
        among = [k for k in names() if k == prefix or k.startswith(f"{prefix}.")]
        claims = [s for s in re.findall(r"`([^`]+)`", cell) if s not in NO_KEYS and not s.startswith("[")]
        assert claims, part
        for claim in claims:
            if claim.startswith("{"):
                claim = f"{prefix.rpartition('.')[2]}: {claim}"
            if claim in options() and not any(k.endswith(f".{claim}") for k in among):
                continue
            wrong += [f"{part}: `{claim}`: {said}"] if (said := check_claim(claim, among)) else []
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_key_in_backticks_is_one(document) -> None:
    known, values, wrong = names(), options(), []
    for span in spans(document.read_text()):
        file = span.endswith((".csv", ".json", ".yaml")) or span.startswith(("module.", "backbone."))  # or Python's
        if file or span in values | NO_KEYS or not re.fullmatch(r"[a-z_]+(\.[a-z_]+)*(: .+)?", span):
            continue
        wrong += [f"`{span}`: {said}"] if (said := check_claim(span, known)) else []
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "document", [*DOCUMENTS, ROOT / "docs" / "studies.md"], ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_every_command_in_the_documents_is_taken_by_the_parser(document) -> None:
    text = document.read_text()
    blocks = "\n".join(re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    lines = [line for line in blocks.splitlines() if "hjepa " in line]
    lines += [" ".join(s.split()) for s in re.findall(r"`((?:hjepa |--)[^`]+)`", text)]
    assert lines
    wrong = []
    for line in lines:
        command, _, rest = line.rpartition("hjepa ")[2].partition(" ")
        if line.startswith("--") and document.name == "studies.md":
            continue  # a key of the sweep, or of a benchmark
        if line.startswith("--"):
            command, rest = "fit", f"quickstart {line}"
        if command == "sweep":
            said = "; ".join(filter(None, map(accepts, sweep_cells(rest))))
            wrong += [f"`{line}`: {said}"] if said else []
        if command != "fit" or re.search(r"--help|--print_config|--key|--size|^quickstart --config$", rest):
            continue  # not a run, or a benchmark's
        rest = rest.replace("...", "quickstart").replace("--ckpt_path results/quickstart", "quickstart")
        said = accepts(split(rest))
        wrong += [f"`{line}`: {said}"] if said else []
    assert not wrong, "\n".join(wrong)


def sweep_cells(line: str) -> list[list[str]]:
    """Return the words of fit for each cell of a `hjepa sweep` in a document; none for its table."""
    grids, rest = take_grids(shlex.split(line))
    words = sort_words(rest, OWN)
    fit = [*words.paths, *words.fit]
    return [[*fit, *cell.words] for cell in cells_of(read_grid(grids, fit))] if fit else []


def split(line: str) -> list[str]:
    return shlex.split(re.sub(r"\bCONFIG\b", "quickstart", line if "'" in line else line.replace("[", "\\[")))

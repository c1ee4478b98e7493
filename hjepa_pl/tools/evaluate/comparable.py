"""Evaluations that were written earlier: read, and checked to be comparable."""

import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hjepa_pl.tools.evaluate.report import PREDICTIONS, REPORT, SCHEMA
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.wording import as_typed

_AGAIN = "run hjepa eval again"


class Evaluation(NamedTuple):
    """What `hjepa eval` wrote to a folder."""

    name: str
    """In tables: the folder's name, of a run's `eval` the run's."""
    folder: Path
    report: dict[str, Any]
    arrays: dict[str, Tensor]
    """Labels and predictions of the test images, by their names in predictions.npz."""

    @property
    def subject(self) -> str:
        """Label of the judged network."""
        return self.report["model"]["label"]

    def correct(self, dataset: str, task: str, network: str) -> Tensor | None:
        """Return whether each test image is classified correctly, (M,) bool; None if the task does not classify."""
        label = self.arrays.get(f"{dataset}/{task}/{network}/label")
        return None if label is None else label == self.arrays[f"{dataset}/labels"]


def read_evaluations(paths: Sequence[str]) -> list[Evaluation]:
    """Return the evaluations in some folders.

    Args:
        paths: Folders with a report.json, or of runs that have one in `eval`.

    Raises:
        ConfigError: If there are fewer than two, one is named twice, or a file is missing or damaged.
    """
    if len(paths) < 2:
        raise ConfigError("--compare needs the folders of two evaluations or more: --compare results/a results/b.")
    folders = [_folder(path) for path in paths]
    for i, folder in enumerate(folders):
        if folder.resolve() in [other.resolve() for other in folders[:i]]:
            raise ConfigError(f"--compare names {paths[i]} twice; name another folder.")
    short = [f.resolve().parent.name if f.resolve().name == "eval" else f.resolve().name for f in folders]
    names = short if len(set(short)) == len(short) else list(paths)
    return [_read(name, folder) for name, folder in zip(names, folders, strict=True)]


def check_comparable(found: Sequence[Evaluation]) -> list[str]:
    """Return the datasets that all evaluations share.

    Raises:
        ConfigError: If the protocols, or the images of a shared dataset, differ, or no dataset is shared.
    """
    first = found[0]
    for other in found[1:]:
        _check_protocol(first, other)
    shared = [n for n in first.report["sets"] if all(n in other.report["sets"] for other in found)]
    if not shared:
        sets = "; ".join(f"{e.name}: {', '.join(e.report['sets'])}" for e in found)
        raise ConfigError(f"the evaluations share no dataset ({sets}); evaluate them on the same --sets.")
    for name in shared:
        for other in found[1:]:
            a, b = (e.report["sets"][name]["hash"] for e in (first, other))
            labels = [e.arrays[f"{name}/labels"] for e in (first, other)]
            for part, word in (("test", "test"), ("train", "training")):
                if a[part] != b[part] or (part == "test" and not torch.equal(labels[0], labels[1])):
                    raise ConfigError(
                        f"{other.name} was judged with other {word} images of {name} than {first.name} (hash "
                        f"{b[part]}, not {a[part]}); evaluate both on the same --sets."
                    )
    return shared


def _folder(path: str) -> Path:
    folder = Path(path).expanduser()
    for candidate in (folder, folder / "eval"):
        if (candidate / REPORT).is_file():
            return candidate
    raise ConfigError(f"{path} has no {REPORT}; name the folder that `hjepa eval` wrote to.")


def _read(name: str, folder: Path) -> Evaluation:
    file = folder / REPORT
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(f"{file} is damaged: it is not JSON; {_AGAIN}.") from None
    schema = report.get("schema") if isinstance(report, dict) else None
    if schema != SCHEMA:
        raise ConfigError(f"{file} has schema {as_typed(schema)} and this version reads {SCHEMA}; {_AGAIN}.")
    evaluation = Evaluation(name, folder, report, _read_arrays(folder / PREDICTIONS))
    try:
        _check_whole(evaluation)
    except (KeyError, TypeError, AttributeError, IndexError):
        raise ConfigError(f"{file} is damaged: a part of it is missing; {_AGAIN}.") from None
    return evaluation


def _read_arrays(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise ConfigError(f"there is no {file}, which comparing needs; {_AGAIN}.")
    try:
        with np.load(file, allow_pickle=False) as stored:
            return {key: torch.from_numpy(stored[key]) for key in stored.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error):
        raise ConfigError(f"{file} is damaged; {_AGAIN}.") from None


def _check_whole(evaluation: Evaluation) -> None:
    """Check that the predictions give the accuracies of the report.

    Raises:
        ConfigError: If they do not.
        KeyError: If a part of the report is missing.
    """
    report = evaluation.report
    for key in ("protocol", "networks", "seed", "precision", "created"):
        report[key]
    for dataset, result in report["sets"].items():
        count, labels = result["test"], evaluation.arrays.get(f"{dataset}/labels")
        whole = labels is not None and len(labels) == count and set(result["hash"]) == {"train", "test"}
        for task in result["tasks"] if whole else ():
            for network, metrics in result["tasks"][task].items():
                if f"{dataset}/{task}/{network}/label" not in evaluation.arrays:
                    whole = whole and "interval" not in metrics
                    continue
                correct = evaluation.correct(dataset, task, network)
                accuracy = -1.0 if correct is None or len(correct) != count else 100.0 * float(correct.double().mean())
                whole = whole and abs(accuracy - next(iter(metrics.values()))) < 1e-6
        if not whole:
            raise ConfigError(
                f"{evaluation.folder / PREDICTIONS} does not belong to {REPORT} beside it ({dataset}); {_AGAIN}."
            )


def _check_protocol(first: Evaluation, other: Evaluation) -> None:
    a, b = first.report["protocol"], other.report["protocol"]
    if a["name"] != b["name"]:
        raise ConfigError(
            f"{other.name} was judged by the protocol {b['name']} and {first.name} by {a['name']}; evaluate both by "
            f"one --protocol."
        )
    for key in (set(a) | set(b)) - {"source", "departures"}:
        if a.get(key) != b.get(key):
            raise ConfigError(
                f"{other.name} and {first.name} were judged by different versions of the protocol {a['name']} "
                f"({key} is {as_typed(b.get(key))} and {as_typed(a.get(key))}); evaluate both again."
            )

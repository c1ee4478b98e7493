"""Judge networks on datasets by tasks."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hjepa_pl.data.augment.config import AugmentationConfig
from hjepa_pl.data.sources.bad_files import BadFiles
from hjepa_pl.evaluation.base import Features
from hjepa_pl.evaluation.geometry import linear_cka
from hjepa_pl.evaluation.intervals import accuracy_interval, difference_interval
from hjepa_pl.evaluation.protocols import Protocol
from hjepa_pl.evaluation.tasks import IMAGE_TASKS, TASKS, Outcome
from hjepa_pl.tools.evaluate.attentive import attentive
from hjepa_pl.tools.evaluate.config import FinetuneRun
from hjepa_pl.tools.evaluate.extract import Extracted, Pass, extract
from hjepa_pl.tools.evaluate.finetune import finetune
from hjepa_pl.tools.evaluate.kinds import Kind
from hjepa_pl.tools.evaluate.networks import UNTRAINED, Network, OwnEncoder
from hjepa_pl.tools.evaluate.sets import LabeledSet, images_hash
from hjepa_pl.types import ConfigError

KIND_TASKS = ("knn", "linear")
"""Tasks of the further kinds of features."""
CKA_IMAGES = 2048


class Plan(NamedTuple):
    """How networks are judged."""

    tasks: tuple[str, ...]
    protocol: Protocol
    features: tuple[str, ...]
    """Kinds of the judged network, the main one first; empty for its default."""
    seed: int
    how: Pass
    finetune: tuple[FinetuneRun, AugmentationConfig] | None = None
    """Of the task finetune, if it is one of the tasks."""


class Prediction(NamedTuple):
    """Classification of the test images by one task on one network's features."""

    label: Tensor
    """(M,) int64: the class with the largest probability."""
    confidence: Tensor
    """(M,) its probability."""


class JudgedSet(NamedTuple):
    """Everything that was found on a dataset."""

    data: LabeledSet
    result: dict[str, Any]
    """Of the dataset, for report.json."""
    predictions: dict[tuple[str, str], Prediction]
    """By task and network."""
    features: dict[str, tuple[Tensor, Tensor]]
    """Main features of the training and test images, (N, D) and (M, D), by network."""


def judge(
    networks: Sequence[Network], data: LabeledSet, plan: Plan, bad: BadFiles, advance: Callable[[int], None]
) -> JudgedSet:
    """Judge networks on a dataset; the first one is the subject, the others are its baselines.

    Args:
        networks: The networks.
        data: The dataset.
        plan: Tasks and protocol.
        bad: Takes the files that cannot be decoded.
        advance: Called with the number of images that have been encoded.

    Raises:
        ConfigError: If features are not finite, or a task cannot be done on the dataset.
    """
    main: dict[str, tuple[Tensor, Tensor]] = {}
    tasks: dict[str, dict[str, Any]] = {name: {} for name in plan.tasks}
    predictions: dict[tuple[str, str], Prediction] = {}
    others: dict[str, dict[str, Any]] = {}
    costs: dict[str, Any] = {}
    test_y = data.test_y
    for network in networks:
        kinds = kinds_of(network, plan, subject=network is networks[0])
        train = extract(network, data.train, kinds, plan.how, bad, advance)
        test = extract(network, data.test, kinds, plan.how, bad, advance)
        costs[network.label], test_y = _cost(train, test, data), test.labels
        for kind in kinds:
            x, test_x = train.features[kind.name], test.features[kind.name]
            _check_finite(network, data.name, x, test_x)
            features = Features(x, train.labels, test_x, test.labels, len(data.classes))
            if kind is kinds[0]:
                main[network.label] = (x, test_x)
                found = _all_tasks(network, data, features, plan)
                for name, (metrics, prediction) in found.items():
                    tasks[name][network.label] = metrics
                    if prediction is not None:
                        predictions[name, network.label] = prediction
            else:
                others[kind.name] = {n: _measure(n, features, plan)[0] for n in KIND_TASKS if n in plan.tasks}
    result = {
        "classes": data.classes,
        "train": len(data.train.rows),
        "test": len(data.test.rows),
        "hash": {"train": images_hash(data.train), "test": images_hash(data.test)},
        "tasks": tasks,
        "differences": _differences(networks, predictions, test_y, plan.seed),
        "features": others,
        "cka": {n.label: _cka(main, networks[0].label, n.label) for n in networks[1:]},
        "cost": costs,
    }
    return JudgedSet(data, result, predictions, main)


def kinds_of(network: Network, plan: Plan, *, subject: bool) -> list[Kind]:
    """Return the kinds of features of a network: of a baseline the main one only, where it has it."""
    names: list[str | None] = list(plan.features) if plan.features else [plan.protocol.feature]
    if not subject:
        names = names[:1] if network.label == UNTRAINED else [None]
    try:
        return list(dict.fromkeys(network.kind(name) for name in names))
    except ConfigError as error:
        if plan.features or plan.protocol.feature is None:
            raise
        raise ConfigError(f"The protocol reads {plan.protocol.feature}: {error} Or set --features.") from None


def _all_tasks(
    network: Network, data: LabeledSet, features: Features, plan: Plan
) -> dict[str, tuple[dict[str, Any], Prediction | None]]:
    """Do all tasks on a network's main features, those on its images or tokens included where it has them."""
    found = {name: _measure(name, features, plan) for name in plan.tasks if name not in IMAGE_TASKS}
    outcomes: dict[str, Outcome | None] = {}
    if "attentive" in plan.tasks:
        outcomes["attentive"] = attentive(network, data, plan.seed, plan.how)
    if plan.finetune is not None and isinstance(network, OwnEncoder):
        kind = network.kind("last.mean")
        start = extract(network, data.train, [kind], plan.how, BadFiles(), lambda _: None)
        frozen = features._replace(train_x=start.features[kind.name], train_y=start.labels)
        outcomes["finetune"] = finetune(network, data, frozen, *plan.finetune, plan.seed, plan.how)
    for name, outcome in outcomes.items():
        if outcome is not None:
            found[name] = _with_interval(outcome, features.test_y, plan.seed)
    return found


def _measure(name: str, features: Features, plan: Plan) -> tuple[dict[str, Any], Prediction | None]:
    """Do a task; return its metrics with interval and seconds, and what it predicts for the test images."""
    began = time.perf_counter()
    metrics, prediction = _with_interval(
        TASKS.find(name)(plan.protocol, plan.seed)(features), features.test_y, plan.seed
    )
    return metrics | {"seconds": round(time.perf_counter() - began, 3)}, prediction


def _with_interval(outcome: Outcome, test_y: Tensor, seed: int) -> tuple[dict[str, Any], Prediction | None]:
    """Return the metrics of a task, with an interval where images are classified, and the predictions."""
    if outcome.probabilities is None:
        return dict(outcome.metrics), None
    confidence, label = outcome.probabilities.max(dim=1)
    return {**outcome.metrics, "interval": accuracy_interval(label == test_y, seed)}, Prediction(label, confidence)


def _differences(
    networks: Sequence[Network], predictions: dict[tuple[str, str], Prediction], test_y: Tensor, seed: int
) -> dict[str, Any]:
    """Return, by task and baseline, the subject's accuracy less the baseline's, with its interval."""
    found: dict[str, Any] = {}
    for (task, label), prediction in predictions.items():
        if label == networks[0].label:
            continue
        ours, theirs = predictions[task, networks[0].label].label == test_y, prediction.label == test_y
        value = 100.0 * float(ours.double().mean() - theirs.double().mean())
        found.setdefault(task, {})[label] = {"value": value, "interval": difference_interval(ours, theirs, seed)}
    return found


def _cka(features: dict[str, tuple[Tensor, Tensor]], first: str, second: str) -> float:
    return linear_cka(features[first][1][:CKA_IMAGES], features[second][1][:CKA_IMAGES])


def _check_finite(network: Network, name: str, *features: Tensor) -> None:
    bad = sum(int((~torch.isfinite(x).all(dim=1)).sum()) for x in features)
    if bad:
        raise ConfigError(
            f"The features of {network.label} on {name} are not finite for {bad} images: its weights have diverged, or "
            "overflow in this precision; use an earlier checkpoint, or --precision float32."
        )


def _cost(train: Extracted, test: Extracted, data: LabeledSet) -> dict[str, float]:
    """Return how many images were passed through a network, as a fraction of the dataset, and the seconds."""
    encoded, total = train.encoded + test.encoded, len(data.train.rows) + len(data.test.rows)
    return {"encoded": encoded, "passes": encoded / total, "seconds": round(train.seconds + test.seconds, 3)}

"""The task attentive: an attentive probe on a network's patch tokens."""

import torch
from torch import Tensor

from hjepa_pl.data.sources.bad_files import BadFiles
from hjepa_pl.evaluation.attentive import fit_attentive
from hjepa_pl.evaluation.tasks import Outcome
from hjepa_pl.tools.evaluate.extract import Pass, Split, pass_images
from hjepa_pl.tools.evaluate.networks import Network
from hjepa_pl.tools.evaluate.sets import LabeledSet
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.wording import as_typed

LARGEST = 24 * 2**30
"""Bytes of tokens, in 16 bits, that are held in memory at most."""


def attentive(network: Network, data: LabeledSet, seed: int, how: Pass) -> Outcome | None:
    """Train an attentive probe, and classify the test images; None for a network without tokens.

    Args:
        network: Its tokens stay as they are; they are computed anew, as they are too large to be kept.
        data: The dataset.
        seed: Of the weights and the order of the images.
        how: Device, precision and batch size.

    Raises:
        ConfigError: If the tokens would take more than `LARGEST` bytes.
    """
    network.prepare([network.kind(None)], how.device)
    train, test = (_tokens(network, split, how) for split in (data.train, data.test))
    if train is None or test is None:
        return None
    (x, y), (test_x, test_y) = train, test
    logits, rate, val = fit_attentive(x, y, test_x, len(data.classes), seed=seed, device=how.device)
    accuracy = 100.0 * float((logits.argmax(dim=1) == test_y).double().mean())
    metrics = {"accuracy": accuracy, "lr": rate} | ({} if val is None else {"validation": val})
    return Outcome(metrics, logits.softmax(dim=1))


def _tokens(network: Network, split: Split, how: Pass) -> tuple[Tensor, Tensor] | None:
    """Return the patch tokens (N, P, D) of a split in 16 bits, and the labels; None if the network has none."""
    count, found = len(split.rows), False

    def compute(images: Tensor) -> list[Tensor]:
        nonlocal found
        tokens = network.feature_map(images)
        if tokens is None or network.depth == 0:
            return [images.new_zeros(len(images))]
        found = True
        if (size := 2 * count * tokens[0].numel()) > LARGEST:
            raise ConfigError(
                f"invalid `eval.tasks={as_typed('attentive')}`: the tokens of {split.name} would take "
                f"{size / 2**30:.0f} GiB of memory; lower max_train and max_test in --sets, or leave it out."
            )
        return [tokens.flatten(1, 2)]

    values, labels = pass_images(
        compute, network.spec, split, range(count), how, BadFiles(), lambda _: None, dtype=torch.float16
    )
    return (values[0], labels) if found else None

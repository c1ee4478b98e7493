"""k-NN, linear and other probes during training, the same as in offline evaluation."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from rich.console import Console
from torch import Tensor

from hjepa_pl.callbacks.probe_table import best_checkpoint, probe_table
from hjepa_pl.callbacks.selection import reject_test_metric
from hjepa_pl.evaluation.base import VAL
from hjepa_pl.evaluation.pixels import raw_pixels
from hjepa_pl.evaluation.probes import PROBES, evaluate_probes, metric_name
from hjepa_pl.types import CleanBatch, ConfigError
from hjepa_pl.utils.wording import as_typed

NETWORKS = ("target", "online")
_PIXELS = "pixels"


class _Bank(NamedTuple):
    """Features of one split, on the CPU."""

    image: Tensor
    """(N,) int64: index of the image in its split."""
    label: Tensor
    """(N,) int64."""
    features: dict[str, Tensor]
    """(N, D) float32 by network, and "pixels" before training."""


class ProbeCallback(pl.Callback):
    """Evaluate the networks on every probe dataset at the end of each validation; training is unchanged.

    The evaluated network is the target encoder if there is one, else the online encoder. Logged, in percent:
    `probe/<set>/knn` and `probe/<set>/linear` on the test split (and `linear_top5` with more than five classes),
    `probe/<set>/knn_val` and `probe/<set>/linear_val` on a validation split held out of the training split (see
    `evaluate_probes`), by which checkpoints are ranked, and `probe/<set>/linear_l2`, the penalty; with both networks,
    the same of the online encoder with the suffix `_online`. Likewise for every other probe in `PROBES`. Lightning's
    sanity check, if it is a full pass (`num_sanity_val_steps=-1`), gives the baselines before training:
    `probe/<set>/untrained_<probe>` and `probe/<set>/pixels_<probe>` (clean images averaged to at most 32 x 32). They
    are kept in the checkpoint for resumed runs.

    Args:
        networks: Networks to evaluate: "target", "online" or both.
        k: Neighbors of the k-NN.
        temperature: Temperature of the k-NN's votes.

    Raises:
        ConfigError: If an argument is out of range.
    """

    def __init__(self, networks: Sequence[str] = NETWORKS, k: int = 20, temperature: float = 0.07) -> None:
        if not networks or set(networks) - set(NETWORKS):
            raise ConfigError(f"invalid `ProbeCallback.networks={as_typed(networks)}`: must be target, online or both.")
        if k < 1:
            raise ConfigError(f"invalid `ProbeCallback.k={k}`: must be a whole number >= 1.")
        if temperature <= 0:
            raise ConfigError(
                f"invalid `ProbeCallback.temperature={as_typed(temperature)}`: must be a number > 0, such as 0.07."
            )
        self.networks, self.k, self.temperature = tuple(networks), k, temperature
        self.results: dict[str, float] = {}
        self.evaluated: str | None = None
        self._baseline: dict[str, float] = {}
        self._parts: dict[int, list[_Bank]] = {}
        self._noted: set[str] = set()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Warn if there is no probe dataset; reject another callback that monitors a metric of a test split."""
        if stage != "fit":
            return
        if not _splits(trainer):
            rank_zero_warn("ProbeCallback has no effect: the data has no probe dataset; add one to data.probe.")
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoint | EarlyStopping):
                reject_test_metric(f"{type(callback).__name__}.monitor", getattr(callback, "monitor", None))

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Discard the features of the previous pass."""
        self._parts = {}

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: CleanBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Store the features of one batch."""
        if dataloader_idx >= len(_splits(trainer)) or self._is_resumed(trainer):
            return
        features = {name: outputs[name] for name in self.networks if outputs.get(name) is not None}
        if not features:
            raise ConfigError(
                f"invalid `ProbeCallback.networks={as_typed(self.networks)}`: the model has none of them; must be "
                f"{' or '.join(sorted(outputs))}."
            )
        if trainer.sanity_checking:
            # Before training both networks are the same; the pixels are the other baseline.
            name = _evaluated(features)
            features = {name: features[name], _PIXELS: raw_pixels(batch.image)}
        kept = {name: value.detach().to("cpu", torch.float32) for name, value in features.items()}
        self._parts.setdefault(dataloader_idx, []).append(_Bank(batch.place.cpu(), batch.label.cpu(), kept))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the stored features on rank zero, and log the metrics."""
        if self._is_resumed(trainer):
            return
        splits = _splits(trainer)
        banks = [_merge(trainer, self._parts.get(i, [])) for i in range(len(splits))]
        self._parts = {}
        short = [
            f"{s.name}/{s.split} {0 if b is None else len(b.image)} of {s.size}"
            for s, b in zip(splits, banks, strict=True)
            if b is None or len(b.image) < s.size
        ]
        if short:
            what = "the untrained baseline" if trainer.sanity_checking else "this validation"
            fix = "num_sanity_val_steps: -1" if trainer.sanity_checking else "limit_val_batches: 1.0"
            rank_zero_warn(f"ProbeCallback skips {what}: it saw only {', '.join(short)} images; set trainer.{fix}.")
            return
        metrics: dict[str, float] = {}
        if trainer.is_global_zero:
            device = pl_module.device if pl_module.device.type == "cuda" else torch.device("cpu")
            metrics = self._evaluate(splits, [b for b in banks if b is not None], device)
        metrics = trainer.strategy.broadcast(metrics)
        self._note([split.name for split in splits], metrics, trainer.sanity_checking)
        if banks and banks[0]:
            self.evaluated = _evaluated(banks[0].features)
        if trainer.sanity_checking:
            self._baseline = _as_baseline(metrics)
        else:
            self.results.update(metrics)
            pl_module.log_dict(metrics, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
        self.results.update(self._baseline)

    # `hjepa test` evaluates as `hjepa validate` does.
    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def _is_resumed(self, trainer: pl.Trainer) -> bool:
        """True in the sanity check of a resumed run: its network is no longer untrained."""
        return trainer.sanity_checking and (trainer.global_step > 0 or bool(self._baseline))

    def _evaluate(self, splits: Sequence[Any], banks: list[_Bank], device: torch.device) -> dict[str, float]:
        """Return `probe/<set>/<metric>` for every dataset and network."""
        metrics: dict[str, float] = {}
        banked = {(s.name, s.split): b for s, b in zip(splits, banks, strict=True)}
        for split in splits:
            if split.split != "train":
                continue
            train, test = banked[split.name, "train"], banked[split.name, "test"]
            for network in train.features:
                x, y = (bank.features[network].to(device) for bank in (train, test))
                found = evaluate_probes(
                    x, train.label.to(device), y, test.label.to(device), split.num_classes, self.k, self.temperature
                )
                tail = "" if network == _evaluated(train.features) else f"_{network}"
                metrics |= {f"probe/{split.name}/{metric}{tail}": value for metric, value in found.items()}
        return metrics

    def _note(self, names: Sequence[str], metrics: dict[str, float], untrained: bool) -> None:
        """Log, once each, that a probe dataset has no validation split, and the probes' remarks on their metrics."""
        endings = tuple(f"/{metric_name(probe, VAL)}" for probe in PROBES)
        for name in sorted({*names} - self._noted):
            if not any(m.startswith(f"probe/{name}/") and m.removesuffix("_online").endswith(endings) for m in metrics):
                self._noted.add(name)
                rank_zero_warn(
                    f"The probe dataset {name} has no validation metric, and ranks no checkpoint: no class of its "
                    "training split has five images, of which one could be held out; raise its max_train or add images."
                )
        for name in [] if untrained else sorted({*metrics} - self._noted):
            metric = name.rpartition("/")[2].removesuffix("_online")
            probe = next(p for p in PROBES if metric == p or metric.startswith(f"{p}_"))
            if note := PROBES[probe]().note(metric.removeprefix(probe).removeprefix("_"), metrics[name]):
                self._noted.add(name)
                rank_zero_info(f"{name} is {metrics[name]:g}, {note}")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the table of accuracies before and after training."""
        if trainer.is_global_zero and self.results:
            best = best_checkpoint(trainer)
            Console().print(*probe_table(self.results, self.evaluated or "online", best), sep="\n")

    def state_dict(self) -> dict[str, Any]:
        """Return all metrics, in plain values."""
        return {"baseline": dict(self._baseline), "results": dict(self.results), "evaluated": self.evaluated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the baselines and the last metrics of the resumed run."""
        self._baseline, self.results = dict(state_dict["baseline"]), dict(state_dict["results"])
        self.evaluated = state_dict["evaluated"]


def _splits(trainer: pl.Trainer) -> Sequence[Any]:
    return getattr(getattr(trainer, "datamodule", None), "probe_splits", None) or []


def _evaluated(features: dict[str, Tensor]) -> str:
    return "target" if "target" in features else "online"


def _as_baseline(metrics: dict[str, float]) -> dict[str, float]:
    """Rename the metrics of the sanity check."""
    baseline = {}
    for name, value in metrics.items():
        head, metric = name.rsplit("/", 1)
        probe = metric.removesuffix(f"_{_PIXELS}")
        if probe in PROBES:
            baseline[f"{head}/{'untrained' if probe == metric else _PIXELS}_{probe}"] = value
    return baseline


def _merge(trainer: pl.Trainer, parts: list[_Bank]) -> _Bank | None:
    """Join the batches of all ranks in the order of the split, each image once."""
    mine = _join(parts)
    if trainer.world_size > 1:
        others: list[_Bank | None] = [None] * trainer.world_size
        torch.distributed.all_gather_object(others, mine)
        mine = _join([part for part in others if part is not None])
    if mine is None:
        return None
    # A distributed sampler pads the ranks' parts to equal lengths with repeated images.
    index, order = mine.image.sort(stable=True)
    first = torch.ones_like(index, dtype=torch.bool)
    first[1:] = index[1:] != index[:-1]
    order = order[first]
    return _Bank(mine.image[order], mine.label[order], {name: x[order] for name, x in mine.features.items()})


def _join(parts: list[_Bank]) -> _Bank | None:
    if not parts:
        return None
    return _Bank(
        torch.cat([p.image for p in parts]),
        torch.cat([p.label for p in parts]),
        {name: torch.cat([p.features[name] for p in parts]) for name in parts[0].features},
    )

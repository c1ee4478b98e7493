"""Judges the features during training by the same k-NN and linear probe as the offline evaluation."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from rich.console import Console
from torch import Tensor

from hjepa_pl.callbacks.probe_table import best_checkpoint, probe_table
from hjepa_pl.callbacks.selection import refuse_test_metric
from hjepa_pl.evaluation.linear import PENALTIES
from hjepa_pl.evaluation.probes import PROBES, VAL, judge
from hjepa_pl.types import CleanBatch, ConfigError

NETWORKS = ("target", "online")
_PIXELS = "pixels"


class _Bank(NamedTuple):
    """What one pass over one split gave, on the CPU."""

    place: Tensor
    """(N,) int64: number of the image in its split."""
    label: Tensor
    """(N,) int64."""
    features: dict[str, Tensor]
    """(N, D) float32 by network, and "pixels" when they were asked for."""


class ProbeCallback(pl.Callback):
    """Judge the networks on every probe set at the end of each validation; it only watches.

    The judged network is the target encoder where there is one, else the online encoder. Logged, in percent:
    `probe/<set>/knn` and `probe/<set>/linear` for the judged network on the test split (and `linear_top5` where there
    are more than five classes), `probe/<set>/knn_val` and `probe/<set>/linear_val` on a validation split held back from
    the training bank (see `judge`), by which checkpoints are chosen, and `probe/<set>/linear_l2`, the penalty; when
    both networks are there, the same with `_online` at the end. Lightning's sanity check, when it is a full pass
    (`num_sanity_val_steps=-1`), gives the baselines before training: `probe/<set>/untrained_knn`,
    `.../untrained_linear`, `.../pixels_knn` and `.../pixels_linear` (clean images averaged to at most 32 x 32). They
    are kept in the checkpoint, so that a resumed run still has them.

    Args:
        networks: Which networks are judged: "target", "online" or both.
        k: Neighbours of the k-NN.
        temperature: Temperature of the k-NN's votes.
    """

    def __init__(self, networks: Sequence[str] = NETWORKS, k: int = 20, temperature: float = 0.07) -> None:
        if not networks or set(networks) - set(NETWORKS):
            raise ConfigError(f"ProbeCallback.networks is {list(networks)}: name target, online or both.")
        if k < 1:
            raise ConfigError(f"ProbeCallback.k is {k}: use 1 neighbour or more.")
        if temperature <= 0:
            raise ConfigError(f"ProbeCallback.temperature is {temperature}: use a value above 0, such as 0.07.")
        self.networks, self.k, self.temperature = tuple(networks), k, temperature
        self.results: dict[str, float] = {}
        self.judged: str | None = None
        self._baseline: dict[str, float] = {}
        self._parts: dict[int, list[_Bank]] = {}
        self._said: set[str] = set()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Say so when there is nothing to judge; refuse another callback that would choose by the test split."""
        if stage != "fit":
            return
        if not _splits(trainer):
            rank_zero_warn("ProbeCallback judges nothing: the data has no probe set (add one to data.init_args.probe).")
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoint | EarlyStopping):
                refuse_test_metric(f"{type(callback).__name__}.monitor", getattr(callback, "monitor", None))

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the features of the pass before."""
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
        """Keep the features of one batch."""
        if dataloader_idx >= len(_splits(trainer)) or self._too_late(trainer):
            return
        features = {name: outputs[name] for name in self.networks if outputs.get(name) is not None}
        if not features:
            raise ConfigError(
                f"ProbeCallback.networks is {list(self.networks)}, of which the model has none: "
                f"name one of {sorted(outputs)}."
            )
        if trainer.sanity_checking:
            # Before training both networks are one; the pixels are the other baseline.
            height, width = batch.image.shape[-2:]
            pixels = F.adaptive_avg_pool2d(batch.image, (min(height, 32), min(width, 32))).flatten(1)
            features = {_judged(features): features[_judged(features)], _PIXELS: pixels}
        kept = {name: value.detach().to("cpu", torch.float32) for name, value in features.items()}
        self._parts.setdefault(dataloader_idx, []).append(_Bank(batch.place.cpu(), batch.label.cpu(), kept))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge what was kept, on rank zero, and log it."""
        if self._too_late(trainer):
            return
        splits = _splits(trainer)
        banks = [_merge(trainer, self._parts.get(i, [])) for i in range(len(splits))]
        self._parts = {}
        short = [
            f"{s.name}/{s.split} {0 if b is None else len(b.place)} of {s.size}"
            for s, b in zip(splits, banks, strict=True)
            if b is None or len(b.place) < s.size
        ]
        if short:
            what = "the untrained baseline" if trainer.sanity_checking else "this validation"
            mend = "num_sanity_val_steps: -1" if trainer.sanity_checking else "limit_val_batches: 1.0"
            rank_zero_warn(f"ProbeCallback skips {what}: it saw only {', '.join(short)} images (set trainer.{mend}).")
            return
        figures: dict[str, float] = {}
        if trainer.is_global_zero:
            device = pl_module.device if pl_module.device.type == "cuda" else torch.device("cpu")
            figures = self._judge_all(splits, [b for b in banks if b is not None], device)
        figures = trainer.strategy.broadcast(figures)
        self._say([split.name for split in splits], figures, trainer.sanity_checking)
        if banks and banks[0]:
            self.judged = _judged(banks[0].features)
        if trainer.sanity_checking:
            self._baseline = _as_baseline(figures)
        else:
            self.results.update(figures)
            pl_module.log_dict(figures, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
        self.results.update(self._baseline)

    # `hjepa test` judges as `hjepa validate` does.
    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def _too_late(self, trainer: pl.Trainer) -> bool:
        """Return whether this is the sanity check of a run that goes on: its network is no longer untrained."""
        return trainer.sanity_checking and (trainer.global_step > 0 or bool(self._baseline))

    def _judge_all(self, splits: Sequence[Any], banks: list[_Bank], device: torch.device) -> dict[str, float]:
        """Return `probe/<set>/<figure>` for every set and network."""
        figures: dict[str, float] = {}
        banked = {(s.name, s.split): b for s, b in zip(splits, banks, strict=True)}
        for split in splits:
            if split.split != "train":
                continue
            train, test = banked[split.name, "train"], banked[split.name, "test"]
            for network in train.features:
                x, y = (bank.features[network].to(device) for bank in (train, test))
                verdict = judge(
                    x, train.label.to(device), y, test.label.to(device), split.num_classes, self.k, self.temperature
                )
                tail = "" if network == _judged(train.features) else f"_{network}"
                figures |= {f"probe/{split.name}/{metric}{tail}": value for metric, value in verdict.items()}
        return figures

    def _say(self, names: Sequence[str], figures: dict[str, float], untrained: bool) -> None:
        """Say, once for a probe set, that it has no validation split, and that a penalty is at an end of its grid."""
        for name in sorted({*names} - self._said):
            if not any(figure.startswith(f"probe/{name}/") and VAL in figure for figure in figures):
                self._said.add(name)
                rank_zero_warn(
                    f"The probe set {name} has no validation metric, and ranks no checkpoint: no class of its training "
                    "split has five images, of which one could be held out; raise its max_train or add images."
                )
        for figure in [] if untrained else sorted({*figures} - self._said):
            l2 = figures[figure]
            if figure.endswith("/linear_l2") and l2 in (min(PENALTIES), max(PENALTIES)):
                self._said.add(figure)
                end = "weakest" if l2 == min(PENALTIES) else "strongest"
                rank_zero_info(
                    f"{figure} is {l2:g}, the {end} penalty of the linear probe's grid: one beyond might do better, so "
                    f"take {figure.removesuffix('_l2')} for a lower bound."
                )

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the table of what training was worth."""
        if trainer.is_global_zero and self.results:
            best = best_checkpoint(trainer)
            Console().print(*probe_table(self.results, self.judged or "online", best), sep="\n")

    def state_dict(self) -> dict[str, Any]:
        """Return all figures, in plain values."""
        return {"baseline": dict(self._baseline), "results": dict(self.results), "judged": self.judged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the baselines and the last figures of the run that is resumed."""
        self._baseline, self.results = dict(state_dict["baseline"]), dict(state_dict["results"])
        self.judged = state_dict["judged"]


def _splits(trainer: pl.Trainer) -> Sequence[Any]:
    return getattr(getattr(trainer, "datamodule", None), "probe_splits", None) or []


def _judged(features: dict[str, Tensor]) -> str:
    return "target" if "target" in features else "online"


def _as_baseline(figures: dict[str, float]) -> dict[str, float]:
    """Rename the figures of the sanity check."""
    baseline = {}
    for name, value in figures.items():
        head, figure = name.rsplit("/", 1)
        probe = figure.removesuffix(f"_{_PIXELS}")
        if probe in PROBES:
            baseline[f"{head}/{'untrained' if probe == figure else _PIXELS}_{probe}"] = value
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
    # Ranks that pad their share to equal lengths show some images twice.
    place, order = mine.place.sort(stable=True)
    fresh = torch.ones_like(place, dtype=torch.bool)
    fresh[1:] = place[1:] != place[:-1]
    order = order[fresh]
    return _Bank(mine.place[order], mine.label[order], {name: x[order] for name, x in mine.features.items()})


def _join(parts: list[_Bank]) -> _Bank | None:
    if not parts:
        return None
    return _Bank(
        torch.cat([p.place for p in parts]),
        torch.cat([p.label for p in parts]),
        {name: torch.cat([p.features[name] for p in parts]) for name in parts[0].features},
    )

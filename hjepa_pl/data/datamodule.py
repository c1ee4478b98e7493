"""The data of a run: a mixture to learn from, and clean labelled sets to judge by."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import DataLoader

from hjepa_pl.data.augment import Augmenter, normalise
from hjepa_pl.data.augmentation import AugmentationConfig, augmentation_config
from hjepa_pl.data.batches import CleanRows, FileReader, RawBatch, RawClean, make_views
from hjepa_pl.data.datasets import EMBEDDED, check_dataset, download_dataset, load_dataset
from hjepa_pl.data.loader import TrainLoader, file_sets, usable_size
from hjepa_pl.data.mix import mix_views
from hjepa_pl.data.mixture import EpochPlan, mixture_weights
from hjepa_pl.data.presets import Preset
from hjepa_pl.data.probes import ProbeSplit, clean_loader, load_probe
from hjepa_pl.data.resize import clean_resize
from hjepa_pl.data.settings import (
    DatasetConfig,
    ProbeConfig,
    check_statistics,
    check_whole,
    refuse_twice,
)
from hjepa_pl.data.storage import ArrayImages, FileImages, Images, adapt_channels, stratified
from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.functional.settings import from_plain_list
from hjepa_pl.functional.sizes import ImgSize, check_size, sides
from hjepa_pl.types import CleanBatch, ConfigError, ViewBatch


class MultiDatasetDataModule(LightningDataModule):
    """Draws augmented views from a mixture of datasets, and clean images from probe sets.

    Args:
        datasets: The mixture.
        batch_size: Images per process and step.
        views: Views of each image.
        epoch_size: Images drawn in an epoch over all processes; the sum of the datasets' sizes if not given.
        sampling: `weighted` by the weights, `balanced` (equal), `concat` (by size) or `temperature`.
        temperature: With sampling=temperature: shares go with weight ** (1 / temperature).
        augmentation: How a view is made: `small`, `jepa`, `simclr`, `deit3` or `none`, or a mapping of parts.
        probe: The labelled sets to judge by.
        num_workers: Workers that decode files; chosen if not given, 0 if all images are in memory.
        eval_batch_size: Images per process and step of the probe sets.
        mean: Per channel; ImageNet's for colour and .5 for grey if not given.
        std: Per channel; ImageNet's for colour and .25 for grey if not given.
        seed: Of everything random here; seed_everything's from the CLI, 0 from Python, if not given.
        img_size: Side of the views, or [height, width]; the encoder's if not given.
        in_chans: Channels of the views; the encoder's if not given.
    """

    def __init__(
        self,
        datasets: list[DatasetConfig],
        batch_size: int = 256,
        views: int = 1,
        epoch_size: int | None = None,
        sampling: Literal["weighted", "balanced", "concat", "temperature"] = "weighted",
        temperature: float | None = None,
        augmentation: AugmentationConfig | Preset = "small",
        probe: list[ProbeConfig] | None = None,
        num_workers: int | None = None,
        eval_batch_size: int = 256,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        seed: int | None = None,
        img_size: ImgSize | None = None,
        in_chans: int | None = None,
    ) -> None:
        super().__init__()
        self.datasets = list(from_plain_list(DatasetConfig, datasets, "datasets"))
        self.probe = list(from_plain_list(ProbeConfig, probe or [], "probe"))
        self.augmentation = augmentation_config(augmentation)
        self.batch_size, self.views, self.epoch_size = batch_size, views, epoch_size
        self.sampling, self.temperature = sampling, temperature
        self.num_workers, self.eval_batch_size = num_workers, eval_batch_size
        self.mean, self.std = mean, std
        self.seed, self.img_size, self.in_chans = 0 if seed is None else seed, img_size, in_chans
        self.probe_splits: list[ProbeSplit] = []
        self._loaded: dict[tuple[str, str | None, str], Images] = {}
        self._train_sets: list[Images] = []
        self._probe_sets: list[tuple[Images, Tensor]] = []
        self._augmenter: Augmenter | None = None
        self._plan: EpochPlan | None = None
        self._check()

    def _check(self) -> None:
        """Refuse what can be refused without looking at data."""
        check_whole("batch_size", self.batch_size, 1)
        if self.batch_size == 1:
            raise ConfigError("`batch_size=1` is refused: batch statistics need at least two images.")
        check_whole("views", self.views, 1)
        self.augmentation.check_views(self.views)
        self.augmentation.check_batch_size(self.batch_size)
        check_whole("eval_batch_size", self.eval_batch_size, 1)
        check_whole("seed", self.seed, 0)
        for key, value, low in (
            ("epoch_size", self.epoch_size, 1),
            ("in_chans", self.in_chans, 1),
            ("num_workers", self.num_workers, 0),
        ):
            if value is not None:
                check_whole(key, value, low)
        if self.img_size is not None:
            check_size("`img_size`", self.img_size, least=2)
        if not self.datasets:
            raise ConfigError("`datasets=[]` is refused: name at least one dataset.")
        for name, root in self._places():
            check_dataset(name, root)
        mixture_weights(self.sampling, [d.weight for d in self.datasets], [1] * len(self.datasets), self.temperature)
        if len(self.datasets) == 1 and self.datasets[0].weight != 1.0:
            raise ConfigError(f"`datasets.weight={self.datasets[0].weight}` does nothing with one dataset: remove it.")
        refuse_twice("datasets", [f"{d.name}, root={d.root}, split={d.split}" for d in self.datasets])
        refuse_twice("probe", [p.title or p.name for p in self.probe])
        check_statistics(self.mean, self.std, self.in_chans)
        if self.in_chans == 1:
            self.augmentation.check_gray_images("in_chans=1")

    @property
    def names(self) -> list[str]:
        """Names of the datasets for logs: with the split, root or number where the name alone is not unique."""
        plain = [d.name for d in self.datasets]
        names = [
            d.name if plain.count(d.name) == 1 else f"{os.path.basename(str(d.root or d.name).rstrip('/'))}-{d.split}"
            for d in self.datasets
        ]
        return [n if names.count(n) == 1 else f"{n}-{i}" for i, n in enumerate(names)]

    def settings(self) -> dict[str, Any]:
        """Return the settings that decide what is drawn, as plain values: a resumed run must have the same."""
        plain = ("batch_size", "views", "epoch_size", "sampling", "temperature", "seed")
        return {
            "datasets": [asdict(d) for d in self.datasets],
            **{key: getattr(self, key) for key in plain},
            "augmentation": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.augmentation).items()},
            "mean": None if self.mean is None else list(self.mean),
            "std": None if self.std is None else list(self.std),
        }

    def prepare_data(self) -> None:
        """Fetch what can be fetched; warn of folders that a restart empties."""
        for name, root in self._places():
            place = os.path.abspath(os.path.expanduser(root or "data"))
            if name not in EMBEDDED and place.startswith(("/tmp/", "/var/tmp/")):
                rank_zero_warn(f"the data of {name} lies in {place}, a folder for temporary files.")
            download_dataset(name, root)

    def _places(self) -> list[tuple[str, str | None]]:
        """Return name and root of everything that is read, once each."""
        both = [(d.name, d.root) for d in self.datasets] + [(p.name, p.root) for p in self.probe]
        return list(dict.fromkeys(both))

    def setup(self, stage: str | None = None) -> None:
        """Load the datasets that a stage needs: `fit` and `predict` the mixture, all but `predict` the probe sets."""
        self._take_geometry()
        if stage in (None, "fit", "predict") and not self._train_sets:
            self._train_sets = [self._load_training(d) for d in self.datasets]
        if stage != "predict" and not self._probe_sets:
            for config in self.probe:
                for split, images, index in load_probe(config, self.seed, self._load):
                    self.probe_splits.append(split)
                    self._probe_sets.append((images, index))
        if stage in (None, "fit"):
            self._check_channels()
            self._make_plan()
        self._check_workers(stage)

    def _take_geometry(self) -> None:
        module = getattr(self.trainer, "lightning_module", None) if self.trainer is not None else None
        for key in ("img_size", "in_chans"):
            encoders = getattr(module, key, None)
            if getattr(self, key) is None:
                setattr(self, key, encoders)
            elif encoders is not None and sides(encoders) != sides(getattr(self, key)):
                raise ConfigError(
                    f"`{key}={getattr(self, key)}` of the data is not the encoder's {encoders}: leave it out, "
                    "the data takes it from the encoder."
                )
            if getattr(self, key) is None:
                raise ConfigError(
                    f"`{key}=None` is refused: the module has no `{key}` to take it from, so set it here."
                )
        size, channels = self._geometry()
        if channels not in (1, 3):
            raise ConfigError(
                f"`in_chans={channels}` is refused: images have 1 or 3 channels, so set encoder.in_chans to 1 or 3."
            )
        check_statistics(self.mean, self.std, self.in_chans)
        mean, std = self.statistics()
        self._augmenter = Augmenter(self.augmentation, size, mean, std, self.seed)

    def _geometry(self) -> tuple[ImgSize, int]:
        if self.img_size is None or self.in_chans is None:
            raise ConfigError("`img_size` and `in_chans` are not known yet: set them, or call setup first.")
        return self.img_size, self.in_chans

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and deviation per channel that images are normalised with."""
        gray = self._geometry()[1] == 1
        mean = self.mean or ((0.5,) if gray else IMAGENET_DEFAULT_MEAN)
        std = self.std or ((0.25,) if gray else IMAGENET_DEFAULT_STD)
        return tuple(mean), tuple(std)

    def _load(self, name: str, root: str | None, split: str) -> Images:
        """Load a dataset, once: a probe's bank is often what is trained on."""
        key = (name, root, split)
        if key not in self._loaded:
            self._loaded[key] = load_dataset(name, root, split)
        return self._loaded[key]

    def _load_training(self, config: DatasetConfig) -> Images:
        images = self._load(config.name, config.root, config.split)
        if config.fraction == 1.0:
            return images
        count = max(1, round(config.fraction * len(images)))
        return images.subset(stratified(images.labels, count, hash_int(self.seed, Stream.ORDER)))

    def _check_channels(self) -> None:
        if self.in_chans == 1:
            self.augmentation.check_gray_images("in_chans=1")
        elif all(isinstance(s, ArrayImages) and s.images.shape[1] == 1 for s in self._train_sets):
            self.augmentation.check_gray_images("all datasets are grey")
            assert self._augmenter is not None
            self._augmenter.colourless = True

    def _make_plan(self) -> None:
        sizes = [len(s) for s in self._train_sets]
        shares = mixture_weights(self.sampling, [d.weight for d in self.datasets], sizes, self.temperature)
        asked = self.epoch_size or sum(sizes)
        total = usable_size(asked, self.batch_size, self._ranks()[1])
        if self.epoch_size and total != asked:
            rank_zero_info(f"epoch_size {asked} is rounded down to {total}, whole batches over all processes.")
        self._plan = EpochPlan(sizes, shares, total, self.seed)

    def _sets(self) -> list[Images]:
        return [*self._train_sets, *(images for images, _ in self._probe_sets)]

    def _check_workers(self, stage: str | None) -> None:
        if stage in (None, "fit") and self.num_workers and not any(isinstance(s, FileImages) for s in self._sets()):
            raise ConfigError(
                f"`num_workers={self.num_workers}` would do nothing, all images are in memory: remove it."
            )

    def _workers(self, sets: Sequence[Images]) -> int:
        if not any(isinstance(s, FileImages) for s in sets):
            return 0
        if self.num_workers is not None:
            return self.num_workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        local = getattr(self.trainer, "num_devices", 1) if self.trainer is not None else 1
        return max(1, min(16, cores // max(1, local)))

    def _ranks(self) -> tuple[int, int]:
        """Return rank and number of processes."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _pin(self) -> bool:
        strategy = getattr(self.trainer, "strategy", None)
        return getattr(getattr(strategy, "root_device", None), "type", "cpu") == "cuda"

    def train_dataloader(self) -> TrainLoader:
        """Return the loader of the mixture."""
        if self._plan is None or self._augmenter is None:
            raise ConfigError("The training sets are not loaded: call setup('fit') first.")
        # Lightning looks for a loader with a state; this one finds its place by itself (`TrainLoader`).
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
        reader = None
        if any(isinstance(s, FileImages) for s in self._train_sets):
            reader = FileReader(file_sets(self._train_sets), self._augmenter, self.views, self._geometry()[1])
        rank, world = self._ranks()
        batches = self._plan.epoch_size // (self.batch_size * world)
        return TrainLoader(
            self._train_sets,
            self.names,
            self._plan,
            reader,
            batch_size=self.batch_size,
            world_size=world,
            rank=rank,
            num_workers=self._workers(self._train_sets),
            position=self._position,
            limit=self._limit(batches),
            pin_memory=self._pin(),
        )

    def _position(self) -> int:
        if self.trainer is None:
            return 0
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.total.processed)  # type: ignore[attr-defined]

    def _limit(self, batches: int) -> int | None:
        if self.trainer is None:
            return None
        overfit = getattr(self.trainer, "overfit_batches", 0)
        if overfit:
            raise ConfigError(
                f"`trainer.overfit_batches={overfit}` is refused: the order of images comes from the epoch's plan; "
                "set epoch_size, or a dataset's fraction, instead."
            )
        limit = self.trainer.limit_train_batches
        return limit if isinstance(limit, int) else int(batches * limit)

    def share_drawn(self, epoch: int = 0) -> dict[str, float]:
        """Return which share of an epoch's images comes from each dataset, by name."""
        if self._plan is None:
            raise ConfigError("The training sets are not loaded: call setup('fit') first.")
        counts = torch.bincount(torch.from_numpy(self._plan.draw(epoch)[0]), minlength=len(self.datasets)).tolist()
        return {name: c / self._plan.epoch_size for name, c in zip(self.names, counts, strict=True)}

    def _clean_loader(self, images: Images, index: Tensor) -> DataLoader[RawClean]:
        size, channels = self._geometry()
        rank, world = self._ranks()
        return clean_loader(
            CleanRows(images, index, size, channels),
            range(rank, len(index), world),
            batch_size=self.eval_batch_size,
            num_workers=self._workers([images]),
            pin_memory=self._pin(),
        )

    def val_dataloader(self) -> list[DataLoader[RawClean]]:
        """Return the loaders of the probe sets, in the order of `probe_splits`."""
        return [self._clean_loader(images, index) for images, index in self._probe_sets]

    def test_dataloader(self) -> list[DataLoader[RawClean]]:
        """Return the same loaders as `val_dataloader`."""
        return self.val_dataloader()

    def predict_dataloader(self) -> list[DataLoader[RawClean]]:
        """Return one loader of clean images for each dataset of the mixture, in order."""
        return [self._clean_loader(images, torch.arange(len(images))) for images in self._train_sets]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make views of a training batch, and normalised images of a clean one, on the device they are on."""
        size, channels = self._geometry()
        if isinstance(batch, RawBatch) and self._augmenter is not None:
            views = make_views(batch, self._augmenter, self.views, channels)
            mix = None
            if self.augmentation.mixes:
                views, mix = mix_views(views, batch.label, self.augmentation, self.seed, batch.counters.step)
            return ViewBatch(views, batch.label, batch.source, batch.counters, mix=mix)
        if isinstance(batch, RawClean):
            images = adapt_channels(batch.image, channels).float().div_(255)
            return CleanBatch(normalise(clean_resize(images, size), *self.statistics()), batch.label, batch.place)
        return batch

"""The data of a run: a mixture to learn from, and clean labelled sets to judge by."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import DataLoader

import hjepa_pl.data.surroundings as surroundings
from hjepa_pl.data.augment import Augmenter, normalise
from hjepa_pl.data.augmentation import AugmentationConfig, augmentation_config
from hjepa_pl.data.batches import CleanRows, FileReader, RawBatch, RawClean
from hjepa_pl.data.checks import check_channels, check_settings, places_of
from hjepa_pl.data.datasets import EMBEDDED, download_dataset
from hjepa_pl.data.faults import BadFiles
from hjepa_pl.data.folder import Reading
from hjepa_pl.data.index import INDEX_CACHE
from hjepa_pl.data.loader import TrainLoader, file_sets, usable_size
from hjepa_pl.data.mix import mix_views
from hjepa_pl.data.mixture import EpochPlan
from hjepa_pl.data.multicrop import MultiCropConfig, ViewPlan, view_plan
from hjepa_pl.data.plan import plan_epoch
from hjepa_pl.data.presets import Preset
from hjepa_pl.data.probes import ProbeSplit, clean_loader
from hjepa_pl.data.resize import clean_resize
from hjepa_pl.data.sets import LoadedSets, dataset_names
from hjepa_pl.data.settings import (
    DatasetConfig,
    ProbeConfig,
    check_number,
    check_statistics,
)
from hjepa_pl.data.shards import ShardImages, local_path
from hjepa_pl.data.storage import FileImages, Images, adapt_channels
from hjepa_pl.data.streams import fitting_workers, tell_streams
from hjepa_pl.data.views import make_views
from hjepa_pl.functional.settings import from_plain, from_plain_list, to_plain
from hjepa_pl.functional.sizes import ImgSize
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
        multicrop: Local crops beside the views; none if not given.
        max_bad_fraction: Share of a dataset's files that may be undecodable before the run stops.
        index_cache: Where listings of large folders are kept; null keeps none. (The CLI puts the default beside its
            `results_dir`.)

    Files that cannot be decoded are named in `bad_files.txt` in the run's folder, the trainer's `default_root_dir`.
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
        multicrop: MultiCropConfig | None = None,
        max_bad_fraction: float = 0.1,
        index_cache: str | None = INDEX_CACHE,
    ) -> None:
        super().__init__()
        self.datasets = list(from_plain_list(DatasetConfig, datasets, "datasets"))
        self.probe = list(from_plain_list(ProbeConfig, probe or [], "probe"))
        self.augmentation = augmentation_config(augmentation)
        self.multicrop = None if multicrop is None else from_plain(MultiCropConfig, multicrop, "multicrop")
        self.batch_size, self.views, self.epoch_size = batch_size, views, epoch_size
        self.sampling, self.temperature = sampling, temperature
        self.num_workers, self.eval_batch_size = num_workers, eval_batch_size
        self.mean, self.std = mean, std
        self.seed, self.img_size, self.in_chans = 0 if seed is None else seed, img_size, in_chans
        check_number("max_bad_fraction", max_bad_fraction, 0.0, 1.0)
        self._bad = BadFiles(max_bad_fraction, self._run_folder)
        self._sets = LoadedSets(self.seed, Reading(self._bad, index_cache))
        self._views: ViewPlan | None = None
        self._plan: EpochPlan | None = None
        check_settings(self)

    def _run_folder(self) -> str | None:
        return surroundings.run_folder(self.trainer)

    @property
    def names(self) -> list[str]:
        """Names of the datasets for logs."""
        return dataset_names(self.datasets)

    @property
    def batches_per_epoch(self) -> int:
        """Global batches of an epoch, known once the training sets are loaded."""
        if self._views is None:
            raise ConfigError("The training sets are not loaded: call setup('fit') first.")
        return self._views.batches

    @property
    def sets(self) -> LoadedSets:
        """What is loaded, for those that look at the images themselves."""
        return self._sets

    @property
    def probe_splits(self) -> list[ProbeSplit]:
        """What each loader of the probe sets holds, in order; empty until they are loaded."""
        return self._sets.splits

    def settings(self) -> dict[str, Any]:
        """Return the settings that decide what is drawn, as plain values: a resumed run must have the same."""
        plain = ["batch_size", "views", "epoch_size", "sampling", "temperature", "seed"]
        if any(d.name == "webdataset" for d in self.datasets):
            plain.append("num_workers")  # which shards a worker reads depends on how many there are
        held = [{"root": p.root, "classes": p.classes, "share": p.holdout} for p in self.probe if p.holdout is not None]
        return {
            **({"held_out": held} if held else {}),
            "datasets": [asdict(d) for d in self.datasets],
            **{key: getattr(self, key) for key in plain},
            "augmentation": to_plain(self.augmentation),
            "mean": None if self.mean is None else list(self.mean),
            "std": None if self.std is None else list(self.std),
            "multicrop": to_plain(self.multicrop),
        }

    def prepare_data(self) -> None:
        """Fetch what can be fetched; warn of folders that a restart empties."""
        for name, root in places_of(self):
            place = os.path.abspath(os.path.expanduser(root or "data"))
            here = name not in EMBEDDED and (name != "webdataset" or local_path(str(root)) is not None)
            if here and place.startswith(("/tmp/", "/var/tmp/")):
                rank_zero_warn(f"the data of {name} lies in {place}, a folder for temporary files.")
            download_dataset(name, root)

    def setup(self, stage: str | None = None) -> None:
        """Load the datasets that a stage needs: `fit` and `predict` the mixture, all but `predict` the probe sets."""
        self._take_geometry()
        # Before anything is loaded: it may refuse.
        views = self._view_plan() if stage in (None, "fit") else None
        if stage in (None, "fit", "predict"):
            self._sets.load_mixture(self.datasets, self.probe)
        if stage != "predict":
            self._sets.load_probes(self.probe)
        if views is not None:
            check_channels(self, self._sets.train, views)
            self._plan = plan_epoch(self, self._sets.train, surroundings.ranks(self.trainer)[1])
            self._views = replace(views, batches=self._batches(self._plan))
        self._check_workers(stage)

    @property
    def knows_epoch(self) -> bool:
        """Whether `batches_per_epoch` is known."""
        return self._views is not None

    def planned_views(self) -> ViewPlan:
        """Return which views are made, and how long an epoch is if `epoch_size` says so: what is known without data."""
        self._take_geometry()
        views = self._view_plan()
        if self.epoch_size is not None:
            world = surroundings.ranks(self.trainer)[1]
            total = usable_size(self.epoch_size, self.batch_size, world)
            self._views = views = replace(views, batches=total // (self.batch_size * world))
        return views

    def _take_geometry(self) -> None:
        for key in ("img_size", "in_chans"):
            setattr(self, key, surroundings.encoder_geometry(self.trainer, key, getattr(self, key)))
        channels = self._geometry()[1]
        if channels not in (1, 3):
            raise ConfigError(
                f"`in_chans={channels}` is refused: images have 1 or 3 channels, so set encoder.in_chans to 1 or 3."
            )
        check_statistics(self.mean, self.std, channels)

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

    def _view_plan(self) -> ViewPlan:
        """Return which views are made, but for the length of an epoch."""
        augmenter = Augmenter(self.augmentation, self._geometry()[0], *self.statistics(), self.seed)
        return view_plan(self.multicrop, augmenter, self.views, surroundings.told_by_module(self.trainer, "patch_size"))

    def _batches(self, plan: EpochPlan) -> int:
        """Return the number of global batches in an epoch."""
        return plan.epoch_size // (self.batch_size * surroundings.ranks(self.trainer)[1])

    def _check_workers(self, stage: str | None) -> None:
        if stage in (None, "fit") and self.num_workers and not self._sets.any_files():
            raise ConfigError(
                f"`num_workers={self.num_workers}` would do nothing, all images are in memory: remove it."
            )
        if stage in (None, "fit"):
            self._workers(self._sets.train)  # may refuse

    def _workers(self, sets: Sequence[Images | ShardImages]) -> int:
        if not any(isinstance(s, FileImages | ShardImages) for s in sets):
            return 0
        world = surroundings.ranks(self.trainer)[1]
        return fitting_workers(sets, self.num_workers, surroundings.free_workers(self.trainer), world)

    def train_dataloader(self) -> TrainLoader:
        """Return the loader of the mixture."""
        if self._plan is None or self._views is None:
            raise ConfigError("The training sets are not loaded: call setup('fit') first.")
        # Lightning looks for a loader with a state; this one finds its place by itself (`TrainLoader`).
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
        rank, world = surroundings.ranks(self.trainer)
        workers, reader = self._workers(self._sets.train), None
        if any(isinstance(s, FileImages | ShardImages) for s in self._sets.train):
            files = file_sets(
                self._sets.train,
                self._plan,
                self._batches(self._plan),
                world_size=world,
                rank=rank,
                num_workers=workers,
            )
            reader = FileReader(files, self._views, self._geometry()[1])
            tell_streams(self.names, files)
        return TrainLoader(
            self._sets.train,
            self.names,
            self._plan,
            reader,
            batch_size=self.batch_size,
            world_size=world,
            rank=rank,
            num_workers=workers,
            position=lambda: surroundings.processed_batches(self.trainer),
            limit=surroundings.batch_limit(self.trainer, self._batches(self._plan)),
            pin_memory=surroundings.pins_memory(self.trainer),
            bad=self._bad,
        )

    def share_drawn(self, epoch: int = 0) -> dict[str, float]:
        """Return which share of an epoch's images comes from each dataset, by name."""
        if self._plan is None:
            raise ConfigError("The training sets are not loaded: call setup('fit') first.")
        counts = torch.bincount(torch.from_numpy(self._plan.draw(epoch)[0]), minlength=len(self.datasets)).tolist()
        return {name: c / self._plan.epoch_size for name, c in zip(self.names, counts, strict=True)}

    def _clean_loader(self, images: Images, index: Tensor, name: str) -> DataLoader[RawClean]:
        size, channels = self._geometry()
        rank, world = surroundings.ranks(self.trainer)
        return clean_loader(
            CleanRows(images, index, size, channels, name),
            range(rank, len(index), world),
            batch_size=self.eval_batch_size,
            num_workers=self._workers([images]),
            pin_memory=surroundings.pins_memory(self.trainer),
        )

    def val_dataloader(self) -> list[DataLoader[RawClean]]:
        """Return the loaders of the probe sets, in the order of `probe_splits`."""
        names = [f"probe {split.name} ({split.split})" for split in self.probe_splits]
        return [self._clean_loader(*part, name) for part, name in zip(self._sets.probe, names, strict=True)]

    def test_dataloader(self) -> list[DataLoader[RawClean]]:
        """Return the same loaders as `val_dataloader`."""
        return self.val_dataloader()

    def predict_dataloader(self) -> list[DataLoader[RawClean]]:
        """Return one loader of clean images for each dataset of the mixture, in order."""
        sets = [s for s in self._sets.train if not isinstance(s, ShardImages)]
        if len(sets) < len(self._sets.train):
            raise ConfigError(
                "`datasets.name=webdataset` has no images by number, and cannot be predicted: unpack the shards into a "
                "folder, and name it folder."
            )
        return [self._clean_loader(s, torch.arange(len(s)), n) for s, n in zip(sets, self.names, strict=True)]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make views of a training batch, and normalised images of a clean one, on the device they are on."""
        size, channels = self._geometry()
        if isinstance(batch, RawBatch) and self._views is not None:
            views, boxes = make_views(batch, self._views, channels)
            mix = None
            if self.augmentation.mixes:
                views, mix = mix_views(views, batch.label, self.augmentation, self.seed, batch.counters.step)
            seen, local = views[: self.views], views[self.views :]
            return ViewBatch(seen, batch.label, batch.source, batch.counters, local, boxes, mix)
        if isinstance(batch, RawClean):
            self._bad.add(batch.broken, "is replaced by the next one")
            for name in {file.dataset for file in batch.broken}:
                self._bad.check(name, self._bad.of(name), batch.size, batch.size)
            images = adapt_channels(batch.image, channels).float().div_(255)
            return CleanBatch(normalise(clean_resize(images, size), *self.statistics()), batch.label, batch.place)
        return batch

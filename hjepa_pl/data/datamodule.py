"""The data of a run: a mixture to learn from, and clean labelled sets to judge by."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from hjepa_pl.data.augment.augmenter import Augmenter
from hjepa_pl.data.augment.config import AugmentationConfig, augmentation_config
from hjepa_pl.data.augment.multicrop import MultiCropConfig, ViewPlan, view_plan
from hjepa_pl.data.augment.presets import Preset
from hjepa_pl.data.checkpoint_settings import stored_settings
from hjepa_pl.data.checks import check_channels, check_settings, places_of, warn_of_temporary
from hjepa_pl.data.config import DatasetConfig, ProbeConfig, as_list
from hjepa_pl.data.loaded_sets import LoadedSets, dataset_names
from hjepa_pl.data.loading.batches import RawBatch
from hjepa_pl.data.loading.eval_loader import CleanRows, RawClean, clean_batch, clean_loader
from hjepa_pl.data.loading.image_spec import ImageSpec, image_spec, of_encoder, of_module
from hjepa_pl.data.loading.memory_sets import memory_device
from hjepa_pl.data.loading.train_data import TrainData, plan_epoch, usable_size
from hjepa_pl.data.loading.train_loader import TrainLoader
from hjepa_pl.data.loading.trainer_info import trainer_info
from hjepa_pl.data.loading.views import view_batch
from hjepa_pl.data.loading.worker_slots import available_workers, choose_num_workers
from hjepa_pl.data.probe_splits import ProbeSplit
from hjepa_pl.data.sources.bad_files import BadFiles
from hjepa_pl.data.sources.images import Images, IndexedImages, is_indexed
from hjepa_pl.data.sources.registry import download_dataset
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.numbers import check_number
from hjepa_pl.utils.settings import from_plain, from_plain_list
from hjepa_pl.utils.sizes import ImgSize


class MultiDatasetDataModule(LightningDataModule):
    """Draws augmented views from a mixture of datasets, and clean images from probe sets.

    Args:
        datasets: The mixture: a list of settings or mappings of them; a name or one mapping is a list of one.
        batch_size: Images per process and step.
        views: Views of each image.
        epoch_size: Images drawn in an epoch over all processes; the sum of the datasets' sizes if not given.
        sampling: `weighted` by the weights, `balanced` (equal), `concat` (by size) or `temperature`.
        temperature: With sampling=temperature: shares go with weight ** (1 / temperature).
        augmentation: How a view is made: `small`, `jepa`, `simclr`, `deit3` or `none`, or a mapping of parts; a
            dataset may have its own.
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
    ) -> None:
        super().__init__()
        self.datasets = list(from_plain_list(DatasetConfig, as_list(datasets), "datasets"))
        self.probe = list(from_plain_list(ProbeConfig, as_list(probe or []), "probe"))
        self.augmentation = augmentation_config(augmentation)
        self.multicrop = None if multicrop is None else from_plain(MultiCropConfig, multicrop, "multicrop")
        self.batch_size, self.views, self.epoch_size = batch_size, views, epoch_size
        self.sampling, self.temperature = sampling, temperature
        self.num_workers, self.eval_batch_size = num_workers, eval_batch_size
        self.mean, self.std = mean, std
        self.seed, self.img_size, self.in_chans = 0 if seed is None else seed, img_size, in_chans
        check_number("max_bad_fraction", max_bad_fraction, 0.0, 1.0)
        self._bad = BadFiles(max_bad_fraction, self._run_folder)
        self._sets = LoadedSets(self.seed, self._bad)
        self._data: TrainData | None = None
        self._planned: int | None = None
        check_settings(self)

    def _run_folder(self) -> str | None:
        """Return the folder of the run, None without a Trainer and with fast_dev_run."""
        if self.trainer is None or getattr(self.trainer, "fast_dev_run", False):
            return None
        return str(self.trainer.default_root_dir)

    @property
    def names(self) -> list[str]:
        """Names of the datasets for logs."""
        return dataset_names(self.datasets)

    @property
    def augmentations(self) -> list[AugmentationConfig]:
        """How the views of each dataset are made: its own augmentation, or the data module's."""
        own = [d.augmentation for d in self.datasets]
        return [a if isinstance(a, AugmentationConfig) else self.augmentation for a in own]

    @property
    def batches_per_epoch(self) -> int:
        """Global batches of an epoch, known once the training sets are loaded, or planned with an `epoch_size`."""
        if self._data is None and self._planned is not None:
            return self._planned
        return self._loaded().views.batches

    @property
    def knows_epoch(self) -> bool:
        """Whether `batches_per_epoch` is known."""
        return self._data is not None or self._planned is not None

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
        return stored_settings(self)

    def prepare_data(self) -> None:
        """Fetch what can be fetched; warn of folders that a restart empties."""
        warn_of_temporary(self)
        for name, root in places_of(self):
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
            self._data = self._train_data(views)

    def planned_views(self) -> ViewPlan:
        """Return which views are made, and how long an epoch is if `epoch_size` says so: what is known without data."""
        self._take_geometry()
        views = self._view_plan()
        if self.epoch_size is None:
            return views
        processes = trainer_info(self.trainer).world_size
        self._planned = usable_size(self.epoch_size, self.batch_size, processes) // (self.batch_size * processes)
        return replace(views, batches=self._planned)

    def _take_geometry(self) -> None:
        for key in ("img_size", "in_chans"):
            setattr(self, key, of_encoder(self.trainer, key, getattr(self, key)))
        self._geometry()  # may refuse

    def _geometry(self) -> ImageSpec:
        return image_spec(self.img_size, self.in_chans, self.mean, self.std)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and deviation per channel that images are normalised with."""
        return self._geometry().mean, self._geometry().std

    def _view_plan(self) -> ViewPlan:
        """Return which views are made, but for the length of an epoch."""
        augmenter = Augmenter(self.augmentation, self._geometry().size, *self.statistics(), self.seed)
        patch = of_module(self.trainer, "patch_size")
        return view_plan(self.multicrop, augmenter, self.views, patch, self.augmentations)

    def _train_data(self, views: ViewPlan) -> TrainData:
        sets, processes = self._sets.train, trainer_info(self.trainer).world_size
        check_channels(self, sets, views)
        plan = plan_epoch(
            sets,
            [d.weight for d in self.datasets],
            sampling=self.sampling,
            temperature=self.temperature,
            epoch_size=self.epoch_size,
            batch_size=self.batch_size,
            world_size=processes,
            seed=self.seed,
        )
        views = replace(views, batches=plan.epoch_size // (self.batch_size * processes))
        if self.num_workers and not self._sets.any_files():
            raise ConfigError(
                f"invalid `num_workers={self.num_workers}`: has no effect where all images are in memory; remove it."
            )
        self._workers(sets)  # may reject
        return TrainData(sets, self.names, plan, views, self._geometry().channels)

    def _workers(self, sets: Sequence[Images]) -> int:
        """Return the number of workers that read some sets."""
        available = available_workers(self.trainer)
        return choose_num_workers(sets, self.num_workers, available, trainer_info(self.trainer).world_size)

    def _loaded(self) -> TrainData:
        if self._data is None:
            raise ConfigError("the training sets are not loaded; call setup('fit') first.")
        return self._data

    def train_dataloader(self) -> TrainLoader:
        """Return the loader of the mixture."""
        # Lightning looks for a loader with a state; this one takes its position from the Trainer (`TrainLoader`).
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
        data, trainer = self._loaded(), trainer_info(self.trainer)
        return TrainLoader(
            data,
            batch_size=self.batch_size,
            num_workers=self._workers(data.sets),
            trainer=trainer,
            bad=self._bad,
            device=memory_device(data.sets, trainer.device),
        )

    def share_drawn(self, epoch: int = 0) -> dict[str, float]:
        """Return which share of an epoch's images comes from each dataset, by name."""
        return self._loaded().fractions(epoch)

    def growing_crops(self) -> int | None:
        """Return how many local crops the run's next batch has, None where their number does not grow."""
        if self.multicrop is None or self.multicrop.warmup_epochs is None:
            return None
        return self.multicrop.count(trainer_info(self.trainer).position(), self.batches_per_epoch)

    def _clean_loader(self, images: IndexedImages, index: Tensor, name: str) -> DataLoader[RawClean]:
        trainer = trainer_info(self.trainer)
        return clean_loader(
            CleanRows(images, index, *self._geometry()[:2], name),
            range(trainer.rank, len(index), trainer.world_size),
            batch_size=self.eval_batch_size,
            num_workers=self._workers([images]),
            pin_memory=trainer.device.type == "cuda",
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
        sets = [s for s in self._sets.train if is_indexed(s)]
        if len(sets) < len(self._sets.train):
            raise ConfigError(
                "invalid `datasets.name=webdataset`: its images have no index to predict by; unpack the shards into a "
                "folder, and set name to folder."
            )
        return [self._clean_loader(s, torch.arange(len(s)), n) for s, n in zip(sets, self.names, strict=True)]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make views of a training batch, and normalised images of a clean one, on the device they are on."""
        if isinstance(batch, RawBatch):
            return view_batch(batch, self._loaded().views, self._geometry().channels)
        if isinstance(batch, RawClean):
            return clean_batch(batch, self._geometry(), self._bad)
        return batch

"""Data module: augmented views of a mixture of datasets for training, clean images of labeled datasets for probes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from hjepa_pl.data.augment.augmenter import Augmenter
from hjepa_pl.data.augment.config import AugmentationConfig, augmentation_config
from hjepa_pl.data.augment.multicrop import MultiCropConfig, ViewPlan, view_plan
from hjepa_pl.data.augment.presets import Preset
from hjepa_pl.data.checks import (
    augmentations_of,
    check_augmentations,
    check_datasets,
    check_gray_sets,
    sources_of,
    warn_of_temporary,
)
from hjepa_pl.data.config import DatasetConfig, LoadingConfig, ProbeConfig, as_list
from hjepa_pl.data.loaded_sets import LoadedSets, dataset_names
from hjepa_pl.data.loading.batches import RawBatch
from hjepa_pl.data.loading.eval_loader import CleanRows, RawClean, clean_batch, clean_loader
from hjepa_pl.data.loading.held_out import RawRepeats, held_out_loaders, repeated_views
from hjepa_pl.data.loading.image_spec import ImageSpec, image_spec, of_encoder, of_module
from hjepa_pl.data.loading.resolution import Growth, ResolutionConfig, growth_of, size_of_step
from hjepa_pl.data.loading.train_data import TrainData, plan_epoch, usable_size
from hjepa_pl.data.loading.train_loader import TrainLoader
from hjepa_pl.data.loading.trainer_info import trainer_info
from hjepa_pl.data.loading.views import view_batch
from hjepa_pl.data.loading.worker_slots import available_workers, choose_num_workers
from hjepa_pl.data.probe_splits import ProbeSplit
from hjepa_pl.data.sources.bad_files import BadFiles
from hjepa_pl.data.sources.images import Images, IndexedImages
from hjepa_pl.data.sources.registry import download_dataset
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import from_plain, from_plain_list, to_plain
from hjepa_pl.utils.sizes import ImgSize


class MultiDatasetDataModule(LightningDataModule):
    """Draws augmented views from a mixture of datasets, and clean images from probe datasets.

    Args:
        datasets: The mixture: a list of configs or mappings; a name or one mapping is a list of one.
        batch_size: Images per process and step.
        views: Views of each image.
        epoch_size: Images drawn in an epoch over all processes; null is the sum of the datasets' sizes.
        sampling: `weighted` by the weights, `balanced` (equal), `concat` (by size) or `temperature`.
        temperature: With sampling=temperature: fractions are proportional to weight ** (1 / temperature).
        augmentation: `small`, `jepa`, `simclr`, `deit3` or `none`, or a mapping of keys; a dataset may have its own.
        probe: Labeled datasets to evaluate the features on.
        num_workers: Worker processes that decode files; null chooses, 0 if all images are in memory.
        eval_batch_size: Images per process and step of the probe datasets.
        mean: Mean of each channel; null is that of ImageNet for color, 0.5 for gray.
        std: Standard deviation of each channel; null is that of ImageNet for color, 0.25 for gray.
        seed: Seed of all randomness here; null is that of `seed_everything` in the CLI, 0 in Python.
        img_size: Side of the views, or [height, width]; null is the encoder's.
        in_chans: Channels of the views; null is the encoder's.
        multicrop: Local crops in addition to the views; null is none.
        resolution: Views that grow to `img_size` over the first part of the run; null is `img_size` throughout.
        max_bad_fraction: Maximum fraction of a dataset's files that cannot be decoded before the run stops.
        holdout: Fraction of the mixture's images (32 to 4096 images, chosen by the seed) that is never trained on, and
            measures val/loss, val/rankme, val/alpha_req and val/lidar in every validation; null or 0 is none.

    Files that cannot be decoded are listed in `bad_files.txt` in the run's folder, the trainer's `default_root_dir`.
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
        resolution: ResolutionConfig | None = None,
        max_bad_fraction: float = 0.1,
        holdout: float | None = None,
    ) -> None:
        super().__init__()
        self.datasets = list(from_plain_list(DatasetConfig, as_list(datasets), "datasets"))
        self.probe = list(from_plain_list(ProbeConfig, as_list(probe or []), "probe"))
        self.augmentation = augmentation_config(augmentation)
        self.multicrop = None if multicrop is None else from_plain(MultiCropConfig, multicrop, "multicrop")
        self.resolution = None if resolution is None else from_plain(ResolutionConfig, resolution, "resolution")
        loading = LoadingConfig(
            batch_size=batch_size, views=views, epoch_size=epoch_size, sampling=sampling, temperature=temperature,
            num_workers=num_workers, eval_batch_size=eval_batch_size, mean=mean, std=std,
            seed=0 if seed is None else seed, img_size=img_size, in_chans=in_chans,
            max_bad_fraction=max_bad_fraction, holdout=holdout,
        )  # fmt: skip
        self.batch_size, self.views, self.epoch_size = batch_size, views, epoch_size
        self.sampling, self.temperature = sampling, temperature
        self.num_workers, self.eval_batch_size = num_workers, eval_batch_size
        self.mean, self.std, self.holdout = loading.mean, loading.std, loading.holdout or None
        self.seed, self.img_size, self.in_chans = loading.seed, img_size, in_chans
        self._bad = BadFiles(max_bad_fraction, self._run_folder)
        self._sets = LoadedSets(self.seed, self._bad)
        self._image_spec: ImageSpec | None = None
        self.growth: Growth | None = None
        self._train_data: TrainData | None = None
        self._planned_batches: int | None = None
        check_datasets(self.datasets, self.probe, loading)
        check_augmentations(self.datasets, self.augmentation, loading)

    def _run_folder(self) -> str | None:
        return trainer_info(self.trainer).run_folder

    @property
    def names(self) -> list[str]:
        """Names of the datasets for logs."""
        return dataset_names(self.datasets)

    @property
    def augmentations(self) -> list[AugmentationConfig]:
        """Augmentation of each dataset: its own, or the data module's."""
        return augmentations_of(self.datasets, self.augmentation)

    @property
    def batches_per_epoch(self) -> int:
        """Global batches per epoch, known once the training sets are loaded, or planned from `epoch_size`."""
        if self._train_data is None and self._planned_batches is not None:
            return self._planned_batches
        return self._loaded().views.batches

    @property
    def knows_epoch(self) -> bool:
        """Whether `batches_per_epoch` is known."""
        return self._train_data is not None or self._planned_batches is not None

    @property
    def sets(self) -> LoadedSets:
        """The loaded datasets."""
        return self._sets

    @property
    def probe_splits(self) -> list[ProbeSplit]:
        """Descriptions of the loaders of `val_dataloader`, in order; empty until the probes are loaded."""
        return self._sets.splits

    def settings(self) -> dict[str, Any]:
        """Return the settings that decide which images are drawn and how they look, as plain values for checkpoints."""
        keys = ["batch_size", "views", "epoch_size", "sampling", "temperature", "seed", "augmentation", "mean", "std"]
        if any(d.name == "webdataset" for d in self.datasets):
            keys.append("num_workers")  # it decides which shards a worker reads
        # To repeat the data module's augmentation in a dataset is the same as to leave it out.
        datasets = [replace(d, augmentation=None) if d.augmentation == self.augmentation else d for d in self.datasets]
        held = [{"root": p.root, "classes": p.classes, "share": p.holdout} for p in self.probe if p.holdout is not None]
        stored = {"datasets": datasets, **{key: getattr(self, key) for key in keys}, "multicrop": self.multicrop}
        optional = {"held_out": held, "holdout": self.holdout, "resolution": self.resolution}
        return to_plain(stored | {key: value for key, value in optional.items() if value})

    def prepare_data(self) -> None:
        """Download what can be downloaded; warn of folders for temporary files."""
        sources = sources_of(self.datasets, self.probe)
        warn_of_temporary(sources)
        for name, root in sources:
            download_dataset(name, root)

    def setup(self, stage: str | None = None) -> None:
        """Load what a stage needs: `fit`, `predict` (and all with `holdout`) the mixture, all but `predict` probes."""
        self._set_image_spec()
        # Before anything is loaded, because it may raise.
        trained = stage in (None, "fit") or (stage != "predict" and self.holdout is not None)
        views = self._view_plan() if trained else None
        if trained or stage == "predict":
            self._sets.load_mixture(self.datasets, self.probe, self.holdout)
        if stage != "predict":
            self._sets.load_probes(self.probe)
        if views is not None:
            self._train_data = self._make_train_data(views)

    def planned_views(self) -> ViewPlan:
        """Return the views, and with `epoch_size` the batches per epoch: what is known without loading data."""
        self._set_image_spec()
        views = self._view_plan()
        if self.epoch_size is None:
            return views
        processes = trainer_info(self.trainer).world_size
        images = usable_size(self.epoch_size, self.batch_size, processes)
        self._planned_batches = images // (self.batch_size * processes)
        return replace(views, batches=self._planned_batches)

    def _set_image_spec(self) -> None:
        for key in ("img_size", "in_chans"):
            setattr(self, key, of_encoder(self.trainer, key, getattr(self, key)))
        self._image_spec = image_spec(self.img_size, self.in_chans, self.mean, self.std)

    @property
    def image_spec(self) -> ImageSpec:
        """Size, channels and statistics of the images."""
        return self._image_spec or image_spec(self.img_size, self.in_chans, self.mean, self.std)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation per channel that images are normalized with."""
        return self.image_spec.mean, self.image_spec.std

    def _view_plan(self) -> ViewPlan:
        """Return the plan of the views, without the length of an epoch, and set how they grow."""
        self.growth = growth_of(self.resolution, self.image_spec.size, self.trainer)
        augmenter = Augmenter(self.augmentation, self.image_spec.size, *self.statistics(), self.seed)
        patch = of_module(self.trainer, "patch_size")
        return view_plan(self.multicrop, augmenter, self.views, patch, self.augmentations)

    def _make_train_data(self, views: ViewPlan) -> TrainData:
        sets, processes = self._sets.train, trainer_info(self.trainer).world_size
        check_gray_sets(self.datasets, self.names, sets, views, self.image_spec.channels)
        plan = plan_epoch(
            sets, [d.weight for d in self.datasets], sampling=self.sampling, temperature=self.temperature,
            epoch_size=self.epoch_size, batch_size=self.batch_size, world_size=processes, seed=self.seed,
        )  # fmt: skip
        views = replace(views, batches=plan.epoch_size // (self.batch_size * processes))
        if self.num_workers and not self._sets.any_files():
            raise ConfigError(
                f"invalid `data.num_workers={self.num_workers}`: has no effect, all images are in memory; remove it."
            )
        self._workers(sets)  # raises for too few shards
        return TrainData(sets, self.names, plan, views, self.image_spec.channels)

    def _workers(self, sets: Sequence[Images]) -> int:
        """Return the number of worker processes that read these datasets."""
        available = available_workers(self.trainer)
        return choose_num_workers(sets, self.num_workers, available, trainer_info(self.trainer).world_size)

    def _loaded(self) -> TrainData:
        if self._train_data is None:
            raise ConfigError("The training sets are not loaded; call setup('fit') first.")
        return self._train_data

    def train_dataloader(self) -> TrainLoader:
        """Return the loader of the mixture."""
        data, trainer = self._loaded(), trainer_info(self.trainer)
        return TrainLoader(
            data, batch_size=self.batch_size, num_workers=self._workers(data.sets), trainer=trainer, bad=self._bad
        )

    def share_drawn(self, epoch: int = 0) -> dict[str, float]:
        """Return the fraction of an epoch's images that comes from each dataset, by name."""
        return self._loaded().fractions(epoch)

    def growing_crops(self) -> int | None:
        """Return the number of local crops of the next batch, None without a curriculum."""
        if self.multicrop is None or self.multicrop.warmup_epochs is None:
            return None
        return self.multicrop.count(trainer_info(self.trainer).position(), self.batches_per_epoch)

    def _clean_loader(self, images: IndexedImages, index: Tensor, name: str) -> DataLoader[RawClean]:
        trainer = trainer_info(self.trainer)
        return clean_loader(
            CleanRows(images, index, *self.image_spec[:2], name),
            range(trainer.rank, len(index), trainer.world_size),
            batch_size=self.eval_batch_size,
            num_workers=self._workers([images]),
            pin_memory=trainer.device.type == "cuda",
        )

    def val_dataloader(self) -> list[Any]:
        """Return the loaders of the probes, in the order of `probe_splits`; then those of the held-out images.

        The latter are one of clean images for each dataset, and those of `held_out_loaders`.
        """
        clean = [self._clean_loader(*part) for part in self._sets.clean_parts(self.names)]
        if not (held := self._sets.held):
            return clean
        data, trainer = replace(self._loaded(), sets=held), trainer_info(self.trainer)
        return [*clean, *held_out_loaders(data, self.batch_size, self._workers(held), trainer, self._bad)]

    def test_dataloader(self) -> list[Any]:
        """Return the same loaders as `val_dataloader`."""
        return self.val_dataloader()

    def predict_dataloader(self) -> list[DataLoader[RawClean]]:
        """Return one loader of clean images for each dataset of the mixture, in order."""
        pairs = zip(self._sets.all_images(), self.names, strict=True)
        return [self._clean_loader(*images, name) for images, name in pairs]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make views of a training batch, or normalize the images of a clean one, on their device."""
        if isinstance(batch, RawBatch):
            size = size_of_step(self.growth, self.trainer)
            return view_batch(batch, self._loaded().views, self.image_spec.channels, size)
        if isinstance(batch, RawRepeats):
            return repeated_views(batch, self._loaded().views, self.image_spec.channels)
        if isinstance(batch, RawClean):
            return clean_batch(batch, self.image_spec, self._bad)
        return batch

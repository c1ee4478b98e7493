"""What training is fed with: the loaded sets, what an epoch draws of them, and the loader that reads it."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch import Trainer

from hjepa_pl.data.augment.multicrop import ViewPlan
from hjepa_pl.data.loading import trainer_info
from hjepa_pl.data.loading.mixture import EpochPlan
from hjepa_pl.data.loading.reader import FileReader
from hjepa_pl.data.loading.shard_stream import fitting_workers, tell_streams
from hjepa_pl.data.loading.train_loader import TrainLoader, file_sets
from hjepa_pl.data.sources.bad_files import BadFiles
from hjepa_pl.data.sources.images import ArrayImages, FileImages, Images
from hjepa_pl.data.sources.shards import ShardImages


@dataclass(frozen=True)
class Feed:
    """A mixture that is ready to be drawn from."""

    sets: Sequence[Images | ShardImages]
    names: list[str]
    """Of the sets, for logs."""
    plan: EpochPlan
    """Of as many images as whole global batches hold."""
    views: ViewPlan
    channels: int
    """Of the views."""
    batch_size: int
    """Images per process and step."""
    num_workers: int
    """Workers of this process."""

    def shares(self, epoch: int) -> dict[str, float]:
        """Return which share of an epoch's images comes from each set, by name."""
        counts = torch.bincount(torch.from_numpy(self.plan.draw(epoch)[0]), minlength=len(self.sets)).tolist()
        return {name: c / self.plan.epoch_size for name, c in zip(self.names, counts, strict=True)}

    def loader(self, trainer: Trainer | None, bad: BadFiles) -> TrainLoader:
        """Make the training loader of this process.

        Args:
            trainer: Tells the rank, and where the run stands.
            bad: Takes note of files that cannot be decoded.
        """
        # Lightning looks for a loader with a state; this one finds its place by itself (`TrainLoader`).
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
        rank, world = trainer_info.ranks(trainer)
        return TrainLoader(
            self.sets,
            self.names,
            self.plan,
            self._reader(rank, world),
            batch_size=self.batch_size,
            world_size=world,
            rank=rank,
            num_workers=self.num_workers,
            position=lambda: trainer_info.processed_batches(trainer),
            limit=trainer_info.batch_limit(trainer, self.views.batches),
            pin_memory=trainer_info.pins_memory(trainer),
            bad=bad,
            ways=self.views.dataset_augmenters,
            device=trainer_info.room_for(
                trainer, sum(s.images.nbytes for s in self.sets if isinstance(s, ArrayImages))
            ),
        )

    def _reader(self, rank: int, world: int) -> FileReader | None:
        """Return what decodes files and shards, None if every set is in memory."""
        if not in_files(self.sets):
            return None
        files = file_sets(
            self.sets, self.plan, self.views.batches, world_size=world, rank=rank, num_workers=self.num_workers
        )
        tell_streams(self.names, files)
        return FileReader(files, self.views, self.channels)


def in_files(sets: Sequence[Images | ShardImages]) -> bool:
    """Return whether any of the sets is decoded while it is drawn from."""
    return any(isinstance(s, FileImages | ShardImages) for s in sets)


def workers_for(sets: Sequence[Images | ShardImages], asked: int | None, trainer: Trainer | None) -> int:
    """Return the number of workers that read the sets: none if they are in memory; may refuse what is asked for."""
    if not in_files(sets):
        return 0
    return fitting_workers(sets, asked, trainer_info.free_workers(trainer), trainer_info.ranks(trainer)[1])

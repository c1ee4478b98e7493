"""Length of a run in steps, by the Trainer's limits; its early end; seconds as text."""

import math
from typing import Any


def limited(trainer: Any, batches: int) -> int:
    """Return the batches of an epoch within `limit_train_batches`."""
    limit = trainer.limit_train_batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def images_per_step(trainer: Any, batch_size: int) -> int:
    """Return the images of an optimizer step, on all devices and with gradient accumulation."""
    return int(batch_size * trainer.world_size * trainer.accumulate_grad_batches)


def steps_per_epoch(trainer: Any, batches: float | None = None) -> float:
    """Return the optimizer steps of one epoch; infinite for data without a length.

    Reading `trainer.estimated_stepping_batches` instead, before the loaders are made, loses their state on a resume
    (Lightning issue 20550).

    Args:
        trainer: The Trainer.
        batches: Batches of an epoch, if the Trainer does not know them yet.
    """
    batches = float(trainer.num_training_batches if batches is None else batches)
    return batches if math.isinf(batches) else float(math.ceil(batches / trainer.accumulate_grad_batches))


def total_steps(trainer: Any, batches: float | None = None) -> float:
    """Return the optimizer steps of the whole run; infinite if only a time budget ends it.

    Args:
        trainer: The Trainer.
        batches: Batches of an epoch, if the Trainer does not know them yet.
    """
    ends = [float(trainer.max_steps)] if trainer.max_steps > 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        ends.append(trainer.max_epochs * steps_per_epoch(trainer, batches))
    return min(ends, default=math.inf)


def end_after_step(trainer: Any) -> None:
    """End a run after the current step, with a validation of the final weights in any epoch."""
    trainer.should_stop = True
    if trainer.check_val_every_n_epoch is not None:
        trainer.check_val_every_n_epoch = 1


def clock(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"

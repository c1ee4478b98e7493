"""How long a run is: in steps by the Trainer's limits, how it ends sooner, and seconds in words."""

import math
from typing import Any


def steps_per_epoch(trainer: Any) -> float:
    """Return the optimizer steps of one epoch, infinite for data without a length.

    `trainer.estimated_stepping_batches` would give it too, but reading that before the loaders are made loses their
    state on a resume (Lightning issue 20550).
    """
    batches = float(trainer.num_training_batches)
    return batches if math.isinf(batches) else float(math.ceil(batches / trainer.accumulate_grad_batches))


def total_steps(trainer: Any) -> float:
    """Return the optimizer steps of the whole run, infinite if nothing but the clock ends it."""
    ends = [float(trainer.max_steps)] if trainer.max_steps > 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        ends.append(trainer.max_epochs * steps_per_epoch(trainer))
    return min(ends, default=math.inf)


def end_after_step(trainer: Any) -> None:
    """Let a run end after the step in hand, with a validation of its last weights whatever the epoch's number."""
    trainer.should_stop = True
    if trainer.check_val_every_n_epoch is not None:
        trainer.check_val_every_n_epoch = 1


def clock(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"

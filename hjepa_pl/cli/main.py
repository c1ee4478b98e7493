"""Run a command line and return its exit status."""

import logging
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from hjepa_pl.callbacks.peers import watch_parent
from hjepa_pl.cli.cli import HJEPACLI
from hjepa_pl.cli.errors import one_sentence
from hjepa_pl.cli.guard import unexpected
from hjepa_pl.data import MultiDatasetDataModule
from hjepa_pl.modules.base import PretrainModule
from hjepa_pl.types import RunStopped
from hjepa_pl.utils.distributed import PEER_ENDED, peer_ended, world_size


def start(args: Sequence[str], kind: type[HJEPACLI] = HJEPACLI, began: float | None = None, **own: Any) -> HJEPACLI:
    """Parse a command line, create its objects and run it.

    Args:
        args: The words of the command line, the command first.
        kind: The class of the command line; a subclass may stop before the run.
        began: Start of the command by `time.monotonic`, from which a time budget counts; None is now.
        own: Further keyword arguments of `kind`.
    """
    for message in (
        ".*does not have many workers.*",  # datasets in memory need none
        r"Found \d+ module\(s\) in eval mode.*",  # the target encoder is always in eval mode
        ".*isinstance\\(treespec, LeafSpec\\).*",  # about Lightning's own use of torch
    ):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_about_the_run)
    return kind(
        PretrainModule,
        MultiDatasetDataModule,
        args=list(args),
        argv=list(args[1:]),
        started=time.monotonic() if began is None else began,
        **own,
        seed_everything_default=0,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        save_config_callback=None,
        parser_kwargs={"allow_abbrev": False, "exit_on_error": False},
        trainer_defaults={"num_sanity_val_steps": -1, "use_distributed_sampler": False, "log_every_n_steps": 10},
    )


def _is_about_the_run(record: logging.LogRecord) -> bool:
    """Return True if a message of Lightning is about the run: not an advertisement, TPUs, or the model summary.

    Its message about tensor cores comes in any precision, and names a Python function: see `tensor_core_advice`.
    """
    return not record.getMessage().startswith(
        ("\N{ELECTRIC LIGHT BULB} Tip", "TPU available: False", "Trainer already", "You are using a CUDA device (")
    )


def run(args: Sequence[str], began: float) -> int:
    """Run a Lightning command and return its exit status: 0, 1 if the run failed or had to stop, 2 for a wrong setting.

    Args:
        args: The words of the command line.
        began: Start of the command by `time.monotonic`.
    """
    watch_parent()
    HJEPACLI.begun = None
    try:
        start(args, began=began)
    except RunStopped as error:
        return _fail(str(error), 1)
    except Exception as error:
        if peer_ended(error):
            return _fail(PEER_ENDED, 1)
        if (lost := _lost_worker(error)) is not None:
            return _fail(
                f"a loader's worker was killed{lost}, probably because the machine ran out of memory; "
                "lower data.num_workers, or data.batch_size, and resume with --ckpt_path last.",
                1,
            )
        sentence = one_sentence(error)
        if sentence is None:
            return _fail(unexpected(error, HJEPACLI.begun), 1)
        return _fail(sentence, 2)
    return 0


def _lost_worker(error: BaseException) -> str | None:
    """Return the loader's worker that was lost: " (process 7)", or "" if unknown; None if no worker was lost."""
    seen: BaseException | None = error
    while seen is not None:
        if found := re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:exited|is killed)", str(seen)):
            return f" (process {found[1]})"
        # It may also be lost while one of its tensors is fetched.
        frames = traceback.extract_tb(seen.__traceback__)
        if isinstance(seen, ConnectionError | EOFError) and any("multiprocessing" in f.filename for f in frames):
            return ""
        seen = seen.__cause__ or seen.__context__
    return None


def _fail(sentence: str, status: int) -> int:
    rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
    print(f"hjepa: error{'' if rank == '0' else f' (process {rank})'}: {sentence}", file=sys.stderr, flush=True)
    if world_size() > 1:
        # At once: a regular exit may wait for the other processes forever.
        sys.stdout.flush()
        os._exit(status)
    return status

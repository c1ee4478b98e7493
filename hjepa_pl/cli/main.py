"""From the words of a command line to its run and its exit status."""

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
    """Parse a command line, make its objects and run it, as `kind` does each of the three.

    Args:
        args: The words, the command first.
        kind: The class; a subclass may stop before the run.
        began: When the command was given, by `time.monotonic`, where a time budget counts from; None is now.
        own: Further keyword arguments of `kind`.
    """
    for message in (
        ".*does not have many workers.*",  # sets in memory need none
        r"Found \d+ module\(s\) in eval mode.*",  # the target encoder always is
        ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning's own use of torch, nothing that a user could change
    ):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_says_something)
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


def _says_something(record: logging.LogRecord) -> bool:
    """Return whether a note of Lightning is about the run: not an advertisement, a TPU, or a table that is ours."""
    return not record.getMessage().startswith(
        ("\N{ELECTRIC LIGHT BULB} Tip", "TPU available: False", "Trainer already")
    )


def run(args: Sequence[str], began: float) -> int:
    """Run a Lightning command; return 0, 1 for a run that had to stop or failed, 2 for a refused setting.

    Args:
        args: The words of the command line.
        began: When it was given, by `time.monotonic`.
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
                f"a loader's worker was killed{lost}, as a system does that has no memory left; "
                "lower data.num_workers, or data.batch_size, and resume with --ckpt_path last.",
                1,
            )
        sentence = one_sentence(error)
        if sentence is None:
            return _fail(unexpected(error, HJEPACLI.begun), 1)
        return _fail(sentence, 2)
    return 0


def _lost_worker(error: BaseException) -> str | None:
    """Return which of the loader's workers is gone (" (process 7)", or "" where that is not known); None if none is."""
    seen: BaseException | None = error
    while seen is not None:
        if found := re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:exited|is killed)", str(seen)):
            return f" (process {found[1]})"
        # Or it was gone while a tensor of its was being fetched.
        frames = traceback.extract_tb(seen.__traceback__)
        if isinstance(seen, ConnectionError | EOFError) and any("multiprocessing" in f.filename for f in frames):
            return ""
        seen = seen.__cause__ or seen.__context__
    return None


def _fail(sentence: str, status: int) -> int:
    rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
    print(f"hjepa: error{'' if rank == '0' else f' (process {rank})'}: {sentence}", file=sys.stderr, flush=True)
    if world_size() > 1:
        # At once: taking leave of processes that are gone, or wait for this one, may take for ever.
        sys.stdout.flush()
        os._exit(status)
    return status

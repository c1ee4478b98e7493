"""`hjepa bench`: how fast a config trains on this machine, what it needs, and how long its run will take."""

import json
import sys
import time
from collections.abc import Sequence

from hjepa_pl.types import ConfigError, RunStopped

_HELP = """usage: hjepa bench --config CONFIG [--key=value ...] [--json] [--sweep AXES] [--steps N]

Trains for some steps as `hjepa fit` would, data, optimizer, EMA, probes, logs and all, in a folder that is deleted
afterwards, and prints what a step takes and to what its time goes, what share of the rate of matrix products it
reaches, memory, the largest batch that fits, and how long the configured run will take here. Keys are those of fit.

  --steps N      measure N steps (default 30, or those of a minute)
  --sweep AXES   also measure other values, each by itself: batch, precision, compile; several with commas
  --json         print one JSON object and nothing else

Exit status 0, 1 for a run that had to stop, 2 for a config or key that is refused."""

_STEPS, _SECONDS = 30, 60.0


def run(args: Sequence[str]) -> int:
    """Measure a config; return 0, 1 for a run that had to stop, 2 if it or a key is refused."""
    if any(word in ("-h", "--help") for word in args):
        print(_HELP)
        return 0
    began = time.perf_counter()
    # Not at the top: --help shall not wait for Lightning.
    import torch

    from hjepa_pl.tools.arguments import fail, layers, sentence, sort_words
    from hjepa_pl.tools.bench.benchmark import Question, bench
    from hjepa_pl.tools.bench.report import shown

    imports = time.perf_counter() - began
    try:
        words = sort_words(args, {"--json": False, "--sweep": True, "--steps": True})
        if words.paths:
            raise ConfigError(f"'{words.paths[0]}' belongs to no key; a config is given by --config.")
        if not layers(words.fit):
            raise ConfigError("name a config, as in hjepa bench --config configs/quickstart.yaml.")
        steps, axes = _steps(words.own.get("--steps")), _axes(words.own.get("--sweep"))
        found = bench(Question(words.fit, steps, axes, imports))
    except RunStopped as error:
        return fail("bench", "", str(error), 1)
    except torch.OutOfMemoryError:
        return fail("bench", "", "a batch does not fit into the device's memory; halve data.init_args.batch_size.")
    except Exception as error:
        return fail("bench", "", sentence(error))
    print(json.dumps(found) if "--json" in words.own else "\n".join(shown(found)))
    sys.stdout.flush()
    return 0


def _steps(given: str | None) -> tuple[int, float]:
    """Return how many steps are measured, and for how many seconds at most."""
    if given is None:
        return _STEPS, _SECONDS
    if not given.isdecimal() or int(given) < 1:
        raise ConfigError(f"--steps must be a whole number of at least 1, got {given!r}.")
    return int(given), float("inf")


def _axes(given: str | None) -> tuple[str, ...]:
    from hjepa_pl.tools.bench.benchmark import AXES

    axes = () if given is None else tuple(dict.fromkeys(given.split(",")))
    for axis in axes:
        if axis not in AXES:
            raise ConfigError(f"--sweep '{axis}' is no axis; {', '.join(AXES)} are.")
    return axes

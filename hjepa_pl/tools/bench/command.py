"""`hjepa bench`: speed and memory of a config on this machine, and the predicted time of its run."""

import json
import sys
import time
from collections.abc import Sequence

from hjepa_pl.types import ConfigError, RunStopped

_HELP = """usage: hjepa bench CONFIG [--config LAYER] [--key=value ...] [--json] [--sweep AXES] [--steps N] [--quick]

Trains for some steps as `hjepa fit` does (data, optimizer, EMA, probes, logs), in a temporary folder. Prints the time
of a step and of its parts, FLOP/s as a fraction of the matrix-product rate, memory, the largest batch that fits, and
the predicted time of the whole run. Keys are those of fit.

  --steps N      number of steps to measure (default: 30, or one minute)
  --sweep AXES   also measure other values of batch, precision or compile (comma-separated)
  --quick        measure the step only: no parts, matrix products, largest batch or other precision
  --json         print one JSON object only

Exit status: 0, 1 if training was stopped, 2 if a config or key is invalid."""

_STEPS, _SECONDS = 30, 60.0


def run(args: Sequence[str]) -> int:
    """Measure a config; return 0, 1 if training was stopped, 2 if the config or a key is invalid."""
    if any(word in ("-h", "--help") for word in args):
        print(_HELP)
        return 0
    began = time.perf_counter()
    # Not at the top: --help does not import Lightning.
    import torch

    from hjepa_pl.tools.arguments import check_one_config, fail, layers, sentence, sort_words
    from hjepa_pl.tools.bench.benchmark import BenchRequest, bench
    from hjepa_pl.tools.bench.report import format_report

    imports = time.perf_counter() - began
    try:
        words = sort_words(args, {"--json": False, "--sweep": True, "--steps": True, "--quick": False})
        check_one_config("bench", words.paths)
        fit = [*(f"--config={path}" for path in words.paths), *words.fit]
        if not layers(fit):
            raise ConfigError("a config is missing; for example hjepa bench --config configs/quickstart.yaml.")
        steps, axes = _steps(words.own.get("--steps")), _axes(words.own.get("--sweep"))
        found = bench(BenchRequest(fit, steps, axes, imports, "--quick" in words.own))
    except RunStopped as error:
        return fail("bench", "", str(error), 1)
    except torch.OutOfMemoryError:
        return fail("bench", "", "out of memory on the device; reduce data.batch_size.")
    except Exception as error:
        return fail("bench", "", sentence(error))
    print(json.dumps(found) if "--json" in words.own else "\n".join(format_report(found)))
    sys.stdout.flush()
    return 0


def _steps(given: str | None) -> tuple[int, float]:
    """Return the number of steps to measure, and the limit in seconds."""
    if given is None:
        return _STEPS, _SECONDS
    if not given.isdecimal() or int(given) < 1:
        raise ConfigError(f"invalid `--steps={given}`: must be a whole number >= 1.")
    return int(given), float("inf")


def _axes(given: str | None) -> tuple[str, ...]:
    from hjepa_pl.tools.bench.benchmark import AXES

    axes = () if given is None else tuple(dict.fromkeys(given.split(",")))
    for axis in axes:
        if axis not in AXES:
            raise ConfigError(f"invalid `--sweep={given}`: must be {', '.join(AXES)}, or several of them.")
    return axes

"""`hjepa check`: validate configs, and print a table of each, without running them."""

import sys
from collections.abc import Sequence

from hjepa_pl.types import ConfigError

_HELP = """usage: hjepa check CONFIG_OR_FOLDER... [--data] [--key=value ...]

Validates each config as `hjepa fit` does, with the same messages, and prints parameters, levels, masks, tokens, steps,
FLOPs and memory. Nothing is written, no weights are allocated, and no images are read, except those of digits and fake.
In a folder, every *.yaml with an experiment_name is a run; the others are layers for one:
`hjepa check RUN.yaml --config LAYER.yaml`. Keys are those of fit and apply to every config.

  --data   also load the datasets, sample images and time the loader (nothing is downloaded)

Exit status: 0, or 2 with one line on stderr for each invalid config."""


def run(args: Sequence[str]) -> int:
    """Check the configs; return 0, or 2 if one of them is invalid."""
    if any(word in ("-h", "--help") for word in args):
        print(_HELP)
        return 0
    # Not at the top: --help does not import Lightning.
    from hjepa_pl.cli.config_files import check_config_file
    from hjepa_pl.tools.arguments import fail, find_configs, layers, sentence, sort_words

    try:
        words = sort_words(args, {"--data": False})
        above = layers(words.fit)
        if not words.paths and not above:
            raise ConfigError("a config or folder is missing; for example hjepa check configs/quickstart.yaml.")
    except ConfigError as error:
        return fail("check", "", str(error))
    if not words.paths:  # --config FILE --config LAYER, as for fit
        return _check(" + ".join(above), words.fit, data="--data" in words.own)
    status = 0
    for given in dict.fromkeys(words.paths):
        try:
            runs, others = find_configs(given)
        except ConfigError as error:
            status = fail("check", given, sentence(error))
            continue
        for path in runs:
            try:
                check_config_file(path)
            except ConfigError as error:
                status = fail("check", path, str(error))
                continue
            label = " + ".join([path, *above])
            status = max(status, _check(label, ["--config", path, *words.fit], data="--data" in words.own))
        for path in others:
            print(f"{path}: not a run (no experiment_name); a layer for hjepa check RUN.yaml --config {path}\n")
    return status


def _check(label: str, words: list[str], *, data: bool) -> int:
    """Check one config, and print its table."""
    from hjepa_pl.tools.arguments import fail, sentence
    from hjepa_pl.tools.check.model_table import describe
    from hjepa_pl.tools.dry_run import DryCLI, prepare, scratch_folder

    lines: list[str] = []
    with scratch_folder() as scratch:
        try:
            cli: DryCLI = prepare(words, DryCLI, scratch)
            if data:
                from hjepa_pl.tools.check.data_report import describe_data

                cli.load_data()
                lines = ["", *describe_data(cli)]
            else:
                cli.load_embedded()
            lines = [*describe(cli), *lines]
        except Exception as error:
            sys.stdout.flush()
            return fail("check", label, sentence(error))
    print("\n".join([label, *lines, ""]), flush=True)
    return 0

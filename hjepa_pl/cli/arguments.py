"""The command line as people type it, made into the one that the parser reads, before anything heavy is imported."""

import re
from collections.abc import Sequence
from pathlib import Path

from hjepa_pl.cli.config_files import check_config_file, find_config, list_configs
from hjepa_pl.types import ConfigError

_FLAGS = ("fast_dev_run", "override", "wandb", "compile", "experimental", "grad_checkpointing", "qk_norm")
"""Keys that say something without a value: true."""
_SIZES = ("tiny", "small", "base", "large", "huge")
_FOLDER = "--data.datasets='[{{name: folder, root: {}}}]'"
_SAY = {
    "--ckpt_path={}": "ckpt checkpoint_path resume_from resume_from_checkpoint load_from load weights",
    "--seed_everything={}": "seed random_seed",
    "--experiment_name={}": "name exp exp_name experiment run_name run",
    "--results_dir={}": "out output output_dir out_dir save_dir log_dir results default_root_dir",
    _FOLDER: "data.root data.data_dir data.dir data.path data.folder root data_dir data_root data_path image_dir",
    "--data.datasets='[{{name: {}}}]'": "dataset data.dataset data.name datasets",
    "--trainer.max_epochs={}": "epochs trainer.epochs num_epochs n_epochs",
    "--trainer.max_steps={}": "steps trainer.steps num_steps",
    "--trainer.devices={}": "gpus n_gpus num_gpus trainer.gpus ngpus nproc",
    "--trainer.accelerator={}": "device trainer.device",
    "--trainer.precision=bf16-mixed": "amp fp16 bf16 mixed_precision",
    "--trainer.fast_dev_run=true": "debug dry_run dryrun",
    "--data.num_workers={}": "workers data.workers num_workers j",
    "--logging.wandb=true": "wandb use_wandb",
    "--model.optimizer.weight_decay={}": "wd",
    "--model.encoder.img_size={}": "img_size image_size model.img_size model.image_size",
}
_MEANT = {typed: line for line, words in _SAY.items() for typed in words.split()}
"""Keys of other programs, and the line to type here."""


def help_topic(words: Sequence[str]) -> str | None:
    """Return what help is asked for: None for none, '' for all keys, else a word that keys hold."""
    for i, word in enumerate(words):
        if word in ("-h", "--help") or (word == "help" and i == 0):
            return next((w for w in words[i + 1 :] if not w.startswith("-")), "")
        if word.startswith("--help="):
            return word.partition("=")[2]
    return None


def read_words(argv: Sequence[str]) -> list[str]:
    """Return a Lightning command's words as the parser reads them: configs by path, flags with their value.

    Args:
        argv: The command (fit, validate, test, predict) and what follows it.

    Raises:
        ConfigError: Saying what to type, where a habit from elsewhere was typed or no config is named.
    """
    command, words, found = argv[0], list(argv[1:]), [argv[0]]
    while words:
        word = words.pop(0)
        name, given, value = word.partition("=")
        if name in ("--config", "-c"):
            if not given and (not words or words[0].startswith("-")):
                raise ConfigError(f"{name} lacks its file; the package brings {list_configs()}.")
            found.append(f"--config={_config(value if given else words.pop(0), name)}")
        elif not word.startswith("-"):
            found.append(f"--config={_positional(word, command)}")
        elif not given and words and not words[0].startswith("--") and words[0] not in ("-c", "-h"):
            found.append(_key(name, words.pop(0)))
        else:
            found.append(_key(name, value if given else None))
    return _with_config(found)


def _config(word: str, key: str) -> str:
    try:
        return find_config(word)
    except ConfigError as error:
        raise ConfigError(f"{key} {word}: {error}") from None


def _positional(word: str, command: str) -> str:
    """Return the config that a word names which belongs to no key."""
    plain = word.lstrip("+~")
    if re.fullmatch(r"[\w.]+=.*", plain, re.DOTALL):
        raise ConfigError(f"'{word}': keys begin with two dashes; write --{plain}.")
    if Path(word).is_dir():
        raise ConfigError(f"{word} is a folder; to train on its images: hjepa fit folder {_FOLDER.format(word)}.")
    return _config(word, command)


def _key(name: str, value: str | None) -> str:
    """Return a key with its value as one word; refuse one that is another program's, saying ours."""
    key = name.lstrip("-").replace("init_args.", "")
    shown = "VALUE" if value is None else value
    if key == "resume" and value in (None, "true", "True", "auto", "last"):
        raise ConfigError(f"{name} is not a key; to go on with a run write --ckpt_path=last.")
    if key in ("resume", "checkpoint") and value is not None and not value.lstrip().startswith("{"):
        raise ConfigError(f"{name} takes no checkpoint; write --ckpt_path={value}.")
    if key in _MEANT or key.replace("-", "_") in _MEANT:
        line = _MEANT[key.replace("-", "_")].format("gpu" if value == "cuda" else shown)
        raise ConfigError(f"{name} is not a key; write {line}.")
    if key == "print_shtab":
        raise ConfigError(f"{name}: there is no shell completion; hjepa fit --help WORD lists keys that hold a word.")
    if key == "trainer.logger" and value in ("wandb", "tensorboard", "csv"):
        way = "write --logging.wandb=true" if value == "wandb" else "that log is written without it; remove it"
        raise ConfigError(f"{name}={value}: {way}.")
    if key == "model.encoder" and value is not None and re.fullmatch(r"[\w.-]+", value) and not Path(value).is_file():
        part = "size" if value in _SIZES else "name"
        return f"{name}.{part}={value}"
    if value in ("null", "~") and (inner := re.fullmatch(r"(model|data)\.(\w+)\.(\w+)", key)):
        return f"--{inner[1]}.{inner[2]}={{{inner[3]}: null}}"  # jsonargparse would read the text 'None' in a group
    if value is None:
        return f"{name}=true" if name.rpartition(".")[2].lstrip("-") in _FLAGS else name
    return f"{name}={value}"


def _with_config(words: list[str]) -> list[str]:
    """Add the config of the run that a checkpoint belongs to, where none is given.

    Raises:
        ConfigError: If there is none either.
    """
    given = dict(word.lstrip("-").replace("init_args.", "").partition("=")[::2] for word in words[1:])
    free = {"help", "print_config", "config", "data.datasets", "data.datasets+", "data"}
    if free & given.keys() or any(key.endswith(".help") for key in given):
        return words
    command, path = words[0], given.get("ckpt_path")
    if path in (None, "", "null"):
        raise ConfigError(
            f"hjepa fit needs a config: hjepa fit quickstart, or --config FILE; the package brings {list_configs()}."
            if command == "fit"
            else f"hjepa {command} needs a checkpoint: hjepa {command} --ckpt_path results/NAME."
        )
    config = _config_of(str(path), given)
    if config is None:
        raise ConfigError(
            f"--ckpt_path {path}: its run's config.yaml is not in the folder above; name the config: "
            f"hjepa {command} --config FILE --ckpt_path {path}."
        )
    check_config_file(str(config))
    return [command, f"--config={config}", *words[1:]]


def _config_of(path: str, given: dict[str, str]) -> Path | None:
    """Return the config of the run that a checkpoint, or a word for one, belongs to."""
    if path in ("last", "best"):
        if "experiment_name" not in given:
            raise ConfigError(f"--ckpt_path {path}: say of which run: --ckpt_path results/NAME, or add --config FILE.")
        folders = [Path(given.get("results_dir", "results"), given["experiment_name"])]
    else:
        place = Path(path).absolute()
        if not place.exists():
            raise ConfigError(f"--ckpt_path {path}: there is no such file or folder.")
        folders = [place, place.parent, place.parent.parent]
    return next((folder / "config.yaml" for folder in folders if (folder / "config.yaml").is_file()), None)

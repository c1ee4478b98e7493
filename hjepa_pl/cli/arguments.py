"""Translation of the command line as typed into the one that the parser reads, before anything heavy is imported."""

import re
from collections.abc import Sequence
from pathlib import Path

from hjepa_pl.cli.config_files import check_config_file, find_config, list_configs
from hjepa_pl.types import ConfigError

_FLAGS = ("fast_dev_run", "override", "wandb", "compile", "experimental", "grad_checkpointing", "qk_norm")
"""Keys that are true if they have no value."""
_SIZES = ("tiny", "small", "base", "large", "huge")
_FOLDER = "--data.datasets='[{{name: folder, root: {}}}]'"
_SUGGESTIONS = {
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
_FOREIGN = {typed: line for line, words in _SUGGESTIONS.items() for typed in words.split()}
"""Keys of other programs, and what to type here instead."""


def help_topic(words: Sequence[str]) -> str | None:
    """Return the topic of --help: None without it, '' for all keys, else a word that the keys contain."""
    for i, word in enumerate(words):
        if word in ("-h", "--help") or (word == "help" and i == 0):
            return next((w for w in words[i + 1 :] if not w.startswith("-")), "")
        if word.startswith("--help="):
            return word.partition("=")[2]
    return None


def read_words(argv: Sequence[str]) -> list[str]:
    """Return the words of a Lightning command as the parser reads them: configs by path, flags with their value.

    Args:
        argv: The command (fit, validate, test) and its arguments.

    Raises:
        ConfigError: If a key is another program's, with what to type instead, or if there is no config.
    """
    command, words, read = argv[0], list(argv[1:]), [argv[0]]
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name in ("--config", "-c"):
            if not equals and (not words or words[0].startswith("-")):
                raise ConfigError(f"{name} lacks its file; the package has {list_configs()}.")
            read.append(f"--config={_config(value if equals else words.pop(0), name)}")
        elif not word.startswith("-"):
            read.append(f"--config={_positional(word, command)}")
        elif not equals and words and not words[0].startswith("--") and words[0] not in ("-c", "-h"):
            read.append(_key(name, words.pop(0)))
        else:
            read.append(_key(name, value if equals else None))
    return _with_config(read)


def _config(word: str, key: str) -> str:
    try:
        return find_config(word)
    except ConfigError as error:
        raise ConfigError(f"{key} {word}: {error}") from None


def _positional(word: str, command: str) -> str:
    """Return the path of the config that a word without a key names."""
    plain = word.lstrip("+~")
    if re.fullmatch(r"[\w.]+=.*", plain, re.DOTALL):
        raise ConfigError(f"'{word}': keys start with two dashes; write --{plain}.")
    if Path(word).is_dir():
        raise ConfigError(f"{word} is a folder; to train on its images: hjepa fit folder {_FOLDER.format(word)}.")
    return _config(word, command)


def _key(name: str, value: str | None) -> str:
    """Return a key with its value as one word; reject one of another program, with what to type instead."""
    key = name.lstrip("-").replace("init_args.", "")
    text = "VALUE" if value is None else value
    if key == "resume" and value in (None, "true", "True", "auto", "last"):
        raise ConfigError(f"{name} is not a key; to resume a run write --ckpt_path=last.")
    if key in ("resume", "checkpoint") and value is not None and not value.lstrip().startswith("{"):
        raise ConfigError(f"{name} takes no checkpoint; write --ckpt_path={value}.")
    if key in _FOREIGN or key.replace("-", "_") in _FOREIGN:
        line = _FOREIGN[key.replace("-", "_")].format("gpu" if value == "cuda" else text)
        raise ConfigError(f"{name} is not a key; write {line}.")
    if key == "print_shtab":
        raise ConfigError(
            f"{name}: there is no shell completion; hjepa fit --help WORD lists the keys that contain a word."
        )
    if key == "trainer.logger" and value in ("wandb", "tensorboard", "csv"):
        fix = "write --logging.wandb=true" if value == "wandb" else "this log is always written; remove the key"
        raise ConfigError(f"{name}={value}: {fix}.")
    if key == "model.encoder" and value is not None and re.fullmatch(r"[\w.-]+", value) and not Path(value).is_file():
        part = "size" if value in _SIZES else "name"
        return f"{name}.{part}={value}"
    if value in ("null", "~") and (inner := re.fullmatch(r"(model|data)\.(\w+)\.(\w+)", key)):
        return f"--{inner[1]}.{inner[2]}={{{inner[3]}: null}}"  # jsonargparse would read None as text here
    if value is None:
        return f"{name}=true" if name.rpartition(".")[2].lstrip("-") in _FLAGS else name
    return f"{name}={value}"


def _with_config(words: list[str]) -> list[str]:
    """Add the config of the run that the checkpoint belongs to, if there is no other.

    Raises:
        ConfigError: If the run has none either.
    """
    keys = dict(word.lstrip("-").replace("init_args.", "").partition("=")[::2] for word in words[1:])
    free = {"help", "print_config", "config", "data.datasets", "data.datasets+", "data"}
    if free & keys.keys() or any(key.endswith(".help") for key in keys):
        return words
    command, path = words[0], keys.get("ckpt_path")
    if path in (None, "", "null"):
        raise ConfigError(
            f"hjepa fit needs a config: hjepa fit quickstart, or --config FILE; the package has {list_configs()}."
            if command == "fit"
            else f"hjepa {command} needs a checkpoint: hjepa {command} --ckpt_path results/NAME."
        )
    config = _config_of(str(path), keys)
    if config is None:
        raise ConfigError(
            f"--ckpt_path {path}: the config.yaml of its run is not in the folder above; add the config: "
            f"hjepa {command} --config FILE --ckpt_path {path}."
        )
    check_config_file(str(config))
    return [command, f"--config={config}", *words[1:]]


def _config_of(path: str, keys: dict[str, str]) -> Path | None:
    """Return the config of the run that a checkpoint belongs to; `path` may be last or best."""
    if path in ("last", "best"):
        if "experiment_name" not in keys:
            raise ConfigError(f"--ckpt_path {path} of which run? Write --ckpt_path results/NAME, or add --config FILE.")
        folders = [Path(keys.get("results_dir", "results"), keys["experiment_name"])]
    else:
        location = Path(path).absolute()
        if not location.exists():
            raise ConfigError(f"--ckpt_path {path}: there is no such file or folder.")
        folders = [location, location.parent, location.parent.parent]
    return next((folder / "config.yaml" for folder in folders if (folder / "config.yaml").is_file()), None)

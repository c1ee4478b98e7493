"""What people type by habit: each works, or is answered at once with the line to type."""

import subprocess
import sys
from pathlib import Path

import pytest

from hjepa_pl.__main__ import main
from hjepa_pl.cli.arguments import read_words
from hjepa_pl.cli.config_files import check_config_file, find_config, shipped_configs
from hjepa_pl.types import ConfigError

QUICK = str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")
FOLDER = "--data.datasets='[{name: folder, root: X}]'"
ANSWERED = [  # (words, part of the answer); all with status 2, before torch is imported
    ("fit", "hjepa fit quickstart, or --config FILE; the package has cifar10"),
    ("validate", "hjepa validate --ckpt_path results/NAME"),
    ("train quickstart", "did you mean hjepa fit?"),
    ("evaluate", "did you mean hjepa eval?"),
    ("fti", "did you mean hjepa fit?"),
    ("quickstart", "the command is missing; write hjepa fit quickstart"),
    ("--config x.yaml", "the command is missing; write hjepa fit --config x.yaml"),
    ("fit quickstat", "did you mean quickstart?"),
    ("fit nothing_like_it", "the package has cifar10"),
    ("fit --config", "--config lacks its file"),
    ("fit trainer.max_epochs=5", "write --trainer.max_epochs=5"),
    ("fit quickstart +trainer.x=1", "write --trainer.x=1"),
    ("fit .", "hjepa fit folder --data.datasets='[{name: folder, root: .}]'"),
    ("fit quickstart --ckpt last", "write --ckpt_path=last"),
    ("fit quickstart --resume", "write --ckpt_path=last"),
    ("fit quickstart --resume x.ckpt", "write --ckpt_path=x.ckpt"),
    ("fit quickstart --checkpoint x.ckpt", "write --ckpt_path=x.ckpt"),
    ("fit quickstart --seed 1", "write --seed_everything=1"),
    ("fit quickstart --name x", "write --experiment_name=x"),
    ("fit quickstart --out x", "write --results_dir=x"),
    ("fit quickstart --data.root X", FOLDER),
    ("fit quickstart --data.data_dir=X", FOLDER),
    ("fit quickstart --data.init_args.root X", FOLDER),
    ("fit quickstart --dataset cifar10", "--data.datasets='[{name: cifar10}]'"),
    ("fit quickstart --epochs 5", "write --trainer.max_epochs=5"),
    ("fit quickstart --gpus 2", "write --trainer.devices=2"),
    ("fit quickstart --device cuda", "write --trainer.accelerator=gpu"),
    ("fit quickstart --num-workers 4", "write --data.num_workers=4"),
    ("fit quickstart --amp", "write --trainer.precision=bf16-mixed"),
    ("fit quickstart --wandb", "write --logging.wandb=true"),
    ("fit quickstart --trainer.logger=wandb", "write --logging.wandb=true"),
    ("fit --print_shtab=bash", "hjepa fit --help WORD"),
    ("validate --ckpt_path nowhere.ckpt", "there is no such file or folder"),
    ("validate --ckpt_path last", "--ckpt_path results/NAME"),
]


@pytest.mark.parametrize(("line", "said"), ANSWERED, ids=[line for line, _ in ANSWERED])
def test_a_habit_is_answered_with_the_line_to_type(line, said, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("hjepa: error: ")
    assert err.count("\n") == 1
    assert said in err


def test_answers_do_not_wait_for_torch(tmp_path) -> None:
    code = (
        "import sys; from hjepa_pl.__main__ import main\n"
        "assert main(['fit']) == main(['fit', 'quickstart', '--seed', '1']) == main(['train']) == 2\n"
        "assert main(['-V']) == main(['help']) == main(['version']) == 0\n"
        "assert not {'torch', 'lightning', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage: hjepa COMMAND" in done.stdout


READ = [  # (words, what the parser is given)
    ("fit quickstart", ["--config=QUICK"]),
    ("fit --config quickstart", ["--config=QUICK"]),
    ("fit -c quickstart.yaml", ["--config=QUICK"]),
    ("fit configs/quickstart.yaml", ["--config=QUICK"]),
    ("fit --config quickstart quickstart --seed_everything 3",
     ["--config=QUICK", "--config=QUICK", "--seed_everything=3"]),
    ("fit quickstart --data.batch_size 64", ["--config=QUICK", "--data.batch_size=64"]),
    ("fit quickstart --trainer.max_epochs -1", ["--config=QUICK", "--trainer.max_epochs=-1"]),
    ("fit quickstart --trainer.fast_dev_run", ["--config=QUICK", "--trainer.fast_dev_run=true"]),
    ("fit --trainer.fast_dev_run -c quickstart", ["--trainer.fast_dev_run=true", "--config=QUICK"]),
    ("fit quickstart --model.encoder vit_small_patch16_224",
     ["--config=QUICK", "--model.encoder.name=vit_small_patch16_224"]),
    ("fit quickstart --model.init_args.encoder=small", ["--config=QUICK", "--model.init_args.encoder.size=small"]),
    ("fit --data.datasets=[{name:digits}]", ["--data.datasets=[{name:digits}]"]),
    ("fit --print_config", ["--print_config"]),
    ("fit quickstart --model.encoder.pretrained null", ["--config=QUICK", "--model.encoder={pretrained: null}"]),
]  # fmt: skip


@pytest.mark.parametrize(("line", "words"), READ, ids=[line for line, _ in READ])
def test_what_is_read(line, words, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # the package's configs go by name where there is no such file
    command, *rest = line.split()
    assert read_words([command, *rest]) == [command, *(w.replace("QUICK", QUICK) for w in words)]


def test_reading_twice_is_reading_once(tmp_path, monkeypatch) -> None:
    """The other processes of a run are given the words of the first, and read them again."""
    monkeypatch.chdir(tmp_path)
    for line, _ in READ:
        once = read_words(line.split())
        assert read_words(once) == once


def test_the_config_of_a_checkpoint_is_its_runs(tmp_path) -> None:
    run = tmp_path / "some" / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").touch()
    path = run / "checkpoints" / "last.ckpt"
    with pytest.raises(ConfigError, match=r"add the config: hjepa validate --config FILE --ckpt_path"):
        read_words(["validate", "--ckpt_path", str(path)])
    (run / "config.yaml").write_text("experiment_name: run\n")
    for given in (path, path.parent, run):
        assert read_words(["fit", f"--ckpt_path={given}"])[1] == f"--config={run / 'config.yaml'}"


def test_a_file_of_ones_own_is_before_the_packages(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.yaml").write_text("experiment_name: mine\n")
    assert find_config("quickstart") == "configs/quickstart.yaml"
    assert find_config("sigreg").endswith("configs/features/sigreg.yaml")
    assert {"quickstart", "features/sigreg", "on/imagenet100"} <= shipped_configs().keys()


REFUSED = {
    "aliases .* expand to more than 100,000 values": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{c}: &{c} [{', '.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefghi", "bcdefghij", strict=True)),
    "expand to more than": "a: &a [*a]\n",
    "the key 'lr' is twice in one mapping": "model: {optimizer: {lr: 1, lr: 2}}\n",
    "the key 'model' is twice in one mapping": "model: {seed: 1}\nmodel: {compile: true}\n",
    "it must be a YAML mapping of keys": "- 1\n",
    "nested too deeply": "a: " + "[" * 2000 + "]" * 2000,
}


@pytest.mark.parametrize("said", REFUSED)
def test_yaml_that_hides_or_hangs_is_refused(said, tmp_path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(REFUSED[said])
    with pytest.raises(ConfigError, match=said):
        check_config_file(str(path))

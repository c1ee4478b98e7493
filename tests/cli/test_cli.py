"""The command line as a person meets it: outputs, refusals in one sentence, resume."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import wandb
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from hjepa_pl.__main__ import main

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
TINY = {
    "experiment_name": "tiny",
    "trainer": {"accelerator": "cpu", "max_epochs": 1, "log_every_n_steps": 1, "enable_progress_bar": False},
    "model": {
        "class_path": "HJEPALightningModule",
        "init_args": {
            "encoder": {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 8, "patch_size": 2, "in_chans": 1},
            "levels": [{"cell": 1}, {"cell": "image"}],
            "predictor": {"embed_dim": 24, "depth": 1, "num_heads": 2},
            "projector": {"hidden_dim": 32, "out_dim": 16},
        },
    },
    "data": {
        "class_path": "MultiDatasetDataModule",
        "init_args": {
            "datasets": [{"name": "digits"}],
            "batch_size": 32,
            "epoch_size": 128,
            "views": 2,
            "augmentation": {"gray": 0.0, "jitter": [0.4, 0.4, 0.0, 0.0]},
            "probe": [{"name": "digits", "max_train": 200, "max_test": 100}],
        },
    },
}


@pytest.fixture
def config(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["hjepa"])
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def fit(config: Path, *more: str) -> int:
    return main(["fit", "--config", str(config), *more])


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = "import sys; from hjepa_pl.__main__ import main; main(['--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert "hjepa fit --config configs/quickstart.yaml" in done.stdout


@pytest.mark.slow
def test_the_first_screen_is_about_the_run(config) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hjepa_pl", "fit", "tiny.yaml", "--trainer.max_steps=2"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "parameters: context_encoder 15 k, target_encoder 15 k (no gradient), predictor" in said
    for noise in ("FLOPs", "eval mode", "Tip:", "TPU", "LeafSpec", "Deprecat", "model summary", "rank_zero_warn("):
        assert noise not in said, said


@pytest.mark.slow
def test_the_other_processes_start_whatever_the_command_was_found_as(config) -> None:
    """argv[0] is a bare name that no file in the working folder has."""
    code = "import sys; sys.argv[0] = 'hjepa'; from hjepa_pl.__main__ import main; sys.exit(main())"
    words = ["fit", "tiny.yaml", "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_steps=1"]
    words += ["--data.probe=[]", "--data.batch_size=16"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("results/tiny/summary.json").read_text())["steps"] == 1


def test_a_run_writes_what_the_design_says(config, capsys) -> None:
    assert fit(config) == 0
    run = Path("results/tiny")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "completed"
    for key in ("knn", "linear", "untrained_knn", "untrained_linear", "pixels_knn", "pixels_linear"):
        assert 0 <= summary["metrics"][f"probe/digits/{key}"] <= 100
    for key in ("knn_val", "linear_val", "linear_top5", "linear_val_online"):
        assert 0 <= summary["metrics"][f"probe/digits/{key}"] <= 100
    assert summary["best"]["monitor"] == "probe/digits/linear_val"
    assert summary["best"]["value"] == pytest.approx(summary["metrics"]["probe/digits/linear_val"])
    assert Path(summary["best"]["path"]).name == "best-epoch0000.ckpt"
    shown = capsys.readouterr().out
    assert "Best by validation: best-epoch0000.ckpt (probe/digits/linear_val" in shown
    assert summary["steps"] == 4
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["model"]["init_args"]["encoder"]["embed_dim"] == 24
    assert saved["model"]["init_args"]["ema"]["momentum"] == 0.996  # defaults are written out
    lines = (run / "logs/train.log").read_text().splitlines()
    assert any("loss" in line for line in lines)
    names = sorted(p.name for p in (run / "checkpoints").iterdir())
    assert names == ["best-epoch0000.ckpt", "last.ckpt"]
    header = (run / "metrics.csv").read_text().splitlines()[0]
    for key in ("train/loss", "train/last_c1", "train/sigreg_image_weighted", "train/lr", "probe/digits/linear"):
        assert key in header
    assert list((run / "logs/tensorboard").glob("events*"))
    assert fit(Path("results/tiny/config.yaml"), "--experiment_name=again") == 0  # a saved config runs as it is


OBLONG = [
    "--model.init_args.encoder.img_size=[32,64]", "--model.init_args.encoder.patch_size=8",
    "--trainer.max_steps=2", "--collapse.every_n_steps=1",
    "--data.init_args.probe=[{name: digits, max_train: 50, max_test: 40}]",
]  # fmt: skip


def test_images_that_are_not_square_from_config_to_features(config, capsys) -> None:
    assert fit(config, *OBLONG) == 0, capsys.readouterr().err
    kept = torch.load("results/tiny/checkpoints/last.ckpt", weights_only=True)
    assert kept["hyper_parameters"]["encoder"]["img_size"] == [32, 64]
    assert kept["state_dict"]["context_encoder.vit.pos_embed"].shape == (1, 4 * 8, 24)
    summary = json.loads(Path("results/tiny/summary.json").read_text())
    assert (summary["steps"], summary["status"]) == (2, "completed")
    assert 0 <= summary["metrics"]["probe/digits/linear"] <= 100
    assert "collapse" in Path("results/tiny/metrics.csv").read_text().splitlines()[0]
    saved = yaml.safe_load(Path("results/tiny/config.yaml").read_text())
    assert saved["model"]["init_args"]["encoder"]["img_size"] == [32, 64]
    assert (
        fit(Path("results/tiny/config.yaml"), "--ckpt_path=last", "--trainer.max_epochs=2", "--trainer.max_steps=4")
        == 0
    )
    assert main(["predict", "digits", "--ckpt", "results/tiny", "--out", "x.safetensors"]) == 0, capsys.readouterr().err
    assert load_file("x.safetensors")["features"].shape[1] == 24


def test_a_run_from_pretrained_weights_goes_on_without_their_file(config, capsys) -> None:
    vit = timm.create_model(
        "vit_small_patch16_224", img_size=8, patch_size=2, in_chans=1, embed_dim=24, depth=2, num_heads=2,
        class_token=False, global_pool="avg", fc_norm=False, num_classes=10,
    )  # fmt: skip
    save_file(vit.state_dict(), "vit.safetensors")
    start = "--model.init_args.encoder.pretrained=vit.safetensors"
    assert fit(config, start, "--model.init_args.optimizer.lr=1e-20") == 0, capsys.readouterr().err
    weights = torch.load("results/tiny/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for key, value in vit.state_dict().items():
        if not key.startswith("head."):
            torch.testing.assert_close(weights[f"context_encoder.vit.{key}"], value, atol=1e-15, rtol=0)
    Path("vit.safetensors").unlink()
    saved = Path("results/tiny/config.yaml")
    assert yaml.safe_load(saved.read_text())["model"]["init_args"]["encoder"]["pretrained"] == "vit.safetensors"
    assert fit(saved, "--ckpt_path=last", "--trainer.max_epochs=2") == 0, capsys.readouterr().err
    assert main(["validate", "--config", str(saved), "--ckpt_path=last"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert fit(saved, "--ckpt_path=last", "--trainer.max_epochs=3", "--model.init_args.encoder.pretrained=false") == 2
    assert "encoder.pretrained was vit.safetensors, is false" in capsys.readouterr().err
    assert fit(saved) == 2  # a fresh start needs it
    assert "invalid `encoder.pretrained=vit.safetensors`: there is no such file" in capsys.readouterr().err


def test_an_earlier_run_is_set_aside_and_not_overwritten(config) -> None:
    assert fit(config) == 0
    first = Path("results/tiny/checkpoints/last.ckpt").read_bytes()
    assert fit(config, "--seed_everything=1") == 0
    assert Path("results/tiny.1/checkpoints/last.ckpt").read_bytes() == first
    assert Path("results/tiny/checkpoints/last.ckpt").read_bytes() != first


def test_seed_everything_is_the_one_seed(config) -> None:
    assert fit(config, "--seed_everything=7") == 0
    kept = torch.load("results/tiny/checkpoints/last.ckpt", weights_only=True)
    assert kept["hyper_parameters"]["seed"] == 7
    assert kept["hjepa_data"]["seed"] == 7


def test_validate_and_test_take_a_checkpoint(config, capsys) -> None:
    assert fit(config) == 0
    for command in ("validate", "test"):
        assert main([command, "--config", str(config), "--ckpt_path", "last"]) == 0, capsys.readouterr().err
    assert Path("results/tiny/metrics.csv").is_file()
    assert not Path("results/tiny.1").exists()


def test_a_saved_config_is_a_fresh_start_with_the_keys_as_given(config) -> None:
    assert fit(config, "--time_budget=00:05:00") == 0
    assert fit(config, "--ckpt_path=last", "--trainer.max_epochs=2", "--time_budget=00:05:00") == 0
    saved = yaml.safe_load(Path("results/tiny/config.yaml").read_text())
    assert (saved["ckpt_path"], saved["override"], saved["time_budget"]) == (None, False, "00:05:00")
    assert fit(Path("results/tiny/config.yaml"), "--experiment_name=again", "--seed_everything=5") == 0
    kept = torch.load("results/again/checkpoints/last.ckpt", weights_only=True)
    assert (kept["hyper_parameters"]["seed"], kept["hjepa_data"]["seed"]) == (5, 5)


def test_a_resumed_run_has_spent_what_its_clock_says(config, capsys) -> None:
    assert fit(config, "--time_budget=00:05:00") == 0
    noted = Path("results/tiny/logs/clock.txt")
    seconds = json.loads(Path("results/tiny/summary.json").read_text())["seconds"]
    assert float(noted.read_text()) == pytest.approx(seconds, abs=1)
    noted.write_text("299.0\n")
    more = ["--ckpt_path=last", "--trainer.max_epochs=2"]
    assert fit(config, *more, "--time_budget=00:05:00") == 2
    sentence = capsys.readouterr().err
    assert "invalid `time_budget=0:05:00`: leaves no time to train" in sentence
    assert "by earlier processes" in sentence
    assert fit(config, *more, "--time_budget=00:30:00") == 0
    assert json.loads(Path("results/tiny/summary.json").read_text())["seconds"] > 299


def test_the_last_figures_are_those_of_the_last_weights(config) -> None:
    assert fit(config, "--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=2") == 0
    rows = Path("results/tiny/metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("probe/digits/linear")
    steps = [int(r.split(",")[0]) for r in rows[1:] if r.split(",")[column]]
    assert len(steps) == 2
    assert steps[-1] >= 11  # 3 epochs of 4 steps


def test_a_refusal_after_the_start_leaves_the_earlier_run_in_place(config) -> None:
    assert fit(config) == 0
    before = Path("results/tiny/summary.json").read_text()
    assert fit(config, "--data.init_args.epoch_size=8") == 2  # less than one batch: seen when the data is set up
    assert Path("results/tiny/summary.json").read_text() == before
    assert not Path("results/tiny.1").exists()
    assert fit(config, "--ckpt_path=last") == 2  # complete already
    assert Path("results/tiny/summary.json").read_text() == before


def test_judging_prints_the_figures_and_needs_a_checkpoint(config, capsys) -> None:
    assert fit(config) == 0
    capsys.readouterr()
    for command in ("validate", "test"):
        assert main([command, "--config", str(config), "--ckpt_path", "last"]) == 0
        assert "probe/digits/linear" in capsys.readouterr().out
        assert main([command, "--config", str(config)]) == 2
        assert f"hjepa {command} needs a checkpoint; add --ckpt_path=PATH" in capsys.readouterr().err
        for given in ("results/tiny", "results/tiny/checkpoints/last.ckpt"):  # its config is the run's
            assert main([command, "--ckpt_path", given]) == 0, capsys.readouterr().err
            assert "probe/digits/linear" in capsys.readouterr().out
    assert fit(config, "--ckpt_path=best", "--trainer.max_epochs=2") == 0, capsys.readouterr().err
    assert main(["validate", "--config", str(config), "--ckpt_path=hpc"]) == 2
    assert "results/tiny/checkpoints has best-epoch" in capsys.readouterr().err


def test_checkpoints_of_every_kind_and_a_users_own_callbacks(config) -> None:
    checkpoint = "{class_path: ModelCheckpoint, init_args: {dirpath: mine}}"
    own = f"--trainer.callbacks=[{checkpoint}, {{class_path: ProbeCallback, init_args: {{k: 5}}}}]"
    more = ["--trainer.max_epochs=2", "--checkpoint.every_n_epochs=1", "--checkpoint.last_every_n_steps=3"]
    assert fit(config, own, *more) == 0
    names = sorted(p.name for p in Path("results/tiny/checkpoints").iterdir())
    assert names == ["best-epoch0000.ckpt", "best-epoch0001.ckpt", "epoch0000.ckpt", "epoch0001.ckpt", "last.ckpt"]
    assert list(Path("mine").glob("*.ckpt"))


def test_checkpoints_and_logs_can_be_switched_off_and_a_monitor_of_ones_own_replaces_the_packages(config) -> None:
    off = ["--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.max_steps=2"]
    own = "--trainer.callbacks=[{class_path: CollapseMonitor, init_args: {every_n_steps: 1, window: 16}}]"
    assert fit(config, *off, own) == 0
    assert not Path("results/tiny/checkpoints").exists()
    assert not Path("results/tiny/metrics.csv").exists()
    record = json.loads(Path("results/tiny/summary.json").read_text())
    assert any(name.startswith("collapse/") for name in record["metrics"])
    assert record["evaluated"] == "target"


def test_wandb_logs_offline_into_the_run_and_a_resumed_one_is_the_same(config) -> None:
    words = [
        "--logging.wandb=true",
        "--logging.wandb_tags=[firsttag, secondtag]",
        "--logging.wandb_group=seeds",
        "--logging.wandb_notes=mynotes",
    ]
    assert fit(config, *words) == 0
    first = list(Path("results/tiny/logs").glob("wandb/offline-run-*"))
    assert len(first) == 1
    assert not Path("results/tiny.1").exists()
    wandb.finish()  # as the end of a process does
    assert fit(config, *words, "--ckpt_path=last", "--trainer.max_epochs=2") == 0
    both = list(Path("results/tiny/logs").glob("wandb/offline-run-*"))
    assert len(both) == 2
    assert len({run.name.rpartition("-")[2] for run in both}) == 1
    wandb.finish()
    for run in both:
        record = next(run.glob("*.wandb")).read_bytes()
        assert all(word in record for word in (b"firsttag", b"secondtag", b"mynotes", b"seeds"))
    assert fit(config, *words) == 0  # a fresh start is another
    fresh = next(Path("results/tiny/logs").glob("wandb/offline-run-*"))
    assert fresh.name.rpartition("-")[2] != first[0].name.rpartition("-")[2]


@pytest.mark.parametrize("side", [32, 300])
def test_a_folder_of_mostly_broken_images_is_refused(config, capsys, side) -> None:
    """Small pictures are decoded at the start, large ones by workers: both ends are one sentence."""
    for i in range(60):
        path = Path(f"pictures/{i:02d}.png")
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (side, side), color=i).save(path)
        if i % 10:
            path.write_bytes(path.read_bytes()[: 60 if i > 10 else 20] + b"junk")
    more = ["--data.init_args.datasets=[{name: folder, root: pictures}]", "--data.init_args.epoch_size=32"]
    assert fit(config, *more) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("hjepa: error: ")
    assert "pictures" in message
    assert "Traceback" not in message
    assert len(message) < 400
    assert "all are listed in results/tiny/bad_files.txt" in message
    named = Path("results/tiny/bad_files.txt").read_text().splitlines()  # the refused run leaves it
    assert len(named) >= 4
    assert all(line.split("\t")[:2] == [f"pictures/{line[9:11]}.png", "folder"] for line in named)
    Path("empty").mkdir()
    assert fit(config, "--data.init_args.datasets=[{name: folder, root: empty}]") == 2
    assert "empty" in capsys.readouterr().err.strip().splitlines()[-1]


def test_bad_files_are_counted(config) -> None:
    for i in range(128):
        path = Path(f"pictures/{'ab'[i % 2]}/{i:03d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((20, 20 + i % 3), 60).save(path)
        if i in (5, 70):
            path.write_bytes(path.read_bytes()[:80])
    sets = "[{name: folder, root: pictures}]"
    held = "[{name: folder, root: pictures, holdout: 0.2, title: own}]"
    more = [f"--data.init_args.datasets={sets}", f"--data.init_args.probe={held}", "--results_dir=elsewhere"]
    assert fit(config, *more, "--data.init_args.epoch_size=192", "--data.init_args.num_workers=0") == 0
    named = [line.split("\t")[0] for line in Path("elsewhere/tiny/bad_files.txt").read_text().splitlines()]
    assert sorted(named) == ["pictures/a/070.png", "pictures/b/005.png"]
    summary = json.loads(Path("elsewhere/tiny/summary.json").read_text())
    assert summary["bad_files"] == 2
    assert "probe/own/linear" in summary["metrics"]
    assert not Path("results").exists()


def test_a_run_that_loses_its_files_keeps_what_it_has_learned(config, capsys) -> None:
    """Its checkpoints stay, and the summary says why it ended."""
    for i in range(64):
        Path("pictures").mkdir(exist_ok=True)
        Image.effect_noise((20, 20 + i % 3), 60).save(f"pictures/{i:03d}.png")
    config.with_name("losing.py").write_text(
        "import pathlib\nfrom lightning.pytorch import Callback\n"
        "class Losing(Callback):\n"
        "    def on_train_epoch_end(self, trainer, module):\n"
        "        for path in pathlib.Path('pictures').iterdir():\n"
        "            path.unlink()\n"
    )
    sys.path.insert(0, str(config.parent))
    more = ["--data.init_args.datasets=[{name: folder, root: pictures}]", "--data.init_args.epoch_size=64"]
    more += ["--trainer.callbacks=[{class_path: losing.Losing}]", "--trainer.max_epochs=3"]
    try:
        assert fit(config, *more, "--data.init_args.num_workers=0") == 2
    finally:
        sys.path.remove(str(config.parent))
    assert "more than max_bad_fraction=0.1" in capsys.readouterr().err.strip().splitlines()[-1]
    assert Path("results/tiny/checkpoints/last.ckpt").exists()
    summary = json.loads(Path("results/tiny/summary.json").read_text())
    assert summary["status"] == "failed"
    assert "max_bad_fraction" in summary["error"]
    assert "not found" in Path("results/tiny/bad_files.txt").read_text()


def test_augmentation_is_a_word_or_a_preset_with_parts_of_ones_own(config, capsys) -> None:
    """The checkpoint holds the values that came of it, and the run's config makes the same ones."""

    def parts(path: Path, *more: str) -> dict:
        assert fit(path, "--trainer.max_steps=1", *more) == 0, capsys.readouterr().err
        return torch.load("results/tiny/checkpoints/last.ckpt", weights_only=True)["hjepa_data"]["augmentation"]

    key = "--data.init_args.augmentation"
    word = parts(config, f"{key}=jepa")
    assert (word["crop_scale"], word["flip"], word["jitter"]) == ([0.3, 1.0], 0.0, [0.0] * 4)
    gray = TINY | {"data": {**TINY["data"], "init_args": {**TINY["data"]["init_args"], "augmentation": {
        "preset": "deit3", "jitter": [0.3, 0.3, 0.0, 0.0]}}}}  # fmt: skip
    config.write_text(yaml.safe_dump(gray))
    own = parts(config, f"{key}.mixup=0", f"{key}.rand_augment=2")
    expected = {
        "three_augment": True,
        "mixup": 0.0,
        "cutmix": 1.0,
        "rand_augment": 2,
        "rand_magnitude": 9,
        "erase": 0.0,
    }
    assert {k: own[k] for k in expected} == expected
    assert parts(Path("results/tiny/config.yaml")) == own
    again = ["--ckpt_path=last", "--trainer.max_steps=2", "--trainer.max_epochs=2"]
    assert fit(Path("results/tiny/config.yaml"), *again, f"{key}.cutmix=0") == 2
    assert "data.augmentation.cutmix was 1, is 0" in capsys.readouterr().err
    assert fit(Path("results/tiny/config.yaml"), *again) == 0, capsys.readouterr().err


OWN_MONITOR = "--trainer.callbacks=[{class_path: CollapseMonitor}]"
REFUSED = [
    ([OWN_MONITOR, "--collapse.action=stop"], "invalid `collapse`: has no effect with a CollapseMonitor in trainer"),
    (["--data.init_args.probe=[{name: digitz}]"], "invalid `probe.name=digitz`: must be"),
    (["--modle.lr=1"], "modle"),
    (["--trainer.max_epoch=3"], "max_epoch"),
    (["--model.init_args.encoder.dept=3"], "dept"),
    (
        ["--model.init_args.encoder.depth=three"],
        "invalid `model.encoder.depth=three`: must be a whole number >= 1 or null",
    ),
    (["--model.init_args.encoder.depth=-1"], "invalid `encoder.depth=-1`: must be a whole number >= 1 or null"),
    (
        ["--model.init_args.encoder.size=giant"],
        "invalid `model.encoder.size=giant`: must be tiny, small, base, large, huge or null",
    ),
    (
        ["--model.init_args.encoder.in_chans=4"],
        "invalid `in_chans=4`: must be 1 or 3, the channels of images (encoder.in_chans).",
    ),
    (["--model.init_args.encoder.in_chans=0"], "invalid `encoder.in_chans=0`: must be a whole number >= 1"),
    (
        ["--model.init_args.encoder.img_size=[8,9]"],
        "invalid `encoder.img_size=[8, 9]`: must be a multiple of encoder.patch_size=2",
    ),
    (["--model.init_args.encoder.img_size=[8]"], "img_size"),
    (
        ["--model.init_args.encoder.img_size=9"],
        "invalid `encoder.img_size=9`: must be a multiple of encoder.patch_size=2",
    ),
    (["--model.init_args.encoder.pretrained=true"], "invalid `encoder.pretrained=true`: needs encoder.name"),
    (["--model.init_args.encoder.pretrained=none.pth"], "invalid `encoder.pretrained=none.pth`: there is no such file"),
    (["--model.init_args.levels=[{cell: 1, blok: 2}]"], "blok"),
    (["--model.init_args.levels=[{cell: 1, block: 9}]", "--data.init_args.views=1"], "invalid `levels.block=9`: must"),
    (["--model.init_args.levels=[{cell: 3}, {cell: image}]"], "invalid `levels.cell=3`: must divide the grid"),
    (
        ["--model.init_args.levels=thre"],
        "invalid `model.levels=thre`: must be a list of mappings, flat or three; did you mean three?",
    ),
    (["--model.init_args.levels=[1, 2]"], "invalid `model.levels=1`: must be a list of mappings, flat or three"),
    (["--model.init_args.levels=null"], "invalid `levels=null`: must be flat or three, or a list of levels"),
    (
        ["--model.init_args.levels.weight=2"],
        "levels.weight would silently change one entry of a list; pass the whole list",
    ),
    (["--data.init_args.datasets.weight=2"], "datasets.weight would silently change one entry of a list"),
    (
        ["--model.init_args.levels=[{cell: 1}, {cell: image, masked_view: both}]"],
        "invalid `model.levels.masked_view=both`: must be add, replace or null",
    ),
    (["--model.init_args.pyramid=true"], "invalid `model.pyramid=true`: must be a mapping or null"),
    (["--model.init_args.encoder.attention=efficient"], "invalid `encoder.attention=efficient`: must be auto"),
    (["--model.init_args.masks={target_scale: [0.4, 0.2]}"], "masks.target_scale"),
    (["--model.init_args.regularizers=[]"], "without a term on stream image"),
    (["--model.init_args.regularizers=[{kind: sigrag}]"], "sigrag"),
    (["--model.init_args.optimizer.lr=-1"], "invalid `optimizer.lr=-1`: must be a number > 0"),
    (["--data.init_args.views=1"], "invalid `data.views=1`: the image level compares views"),
    (["--data.init_args.batch_size=1"], "batch_size=1"),
    (["--data.init_args.datasets=[]"], "datasets"),
    (["--data.init_args.datasets=[{name: cifar11}]"], "cifar11"),
    (["--data.init_args.datasets=[{name: digits, weight: 0}]"], "weight"),
    (["--data.init_args.datasets=[{name: digits, weight: -1}]"], "weight"),
    (["--data.init_args.datasets=[{name: folder, root: nowhere}]"], "nowhere"),
    (["--data.init_args.datasets=[{name: cifar10, root: nowhere}]"], "nowhere"),
    (
        ["--data.init_args.datasets=[{name: digits}, {name: photos, weight: 2}]"],
        "invalid `datasets.name=photos`: must be digits, digits_canvas",
    ),
    (["--data.init_args.datasets=[{name: digits}, {weight: 2}]"], "lacks the key 'name'"),
    (
        ["--data.init_args.datasets=[{name: digits, classes: x}]"],
        "invalid `datasets.classes=x`: has an effect only with name=imagenet100,",
    ),
    (
        ["--data.init_args.datasets=[{name: folder, root: ., classes: x}]"],
        "invalid `classes=x`: cannot be read as a text file",
    ),
    (["--data.init_args.datasets=[{name: folder, root: .}]"], "holds no image"),
    (["--data.init_args.probe=[{name: folder, root: ., holdout: 0.1}]"], "holds no image"),
    (
        ["--data.init_args.probe=[{name: digits, holdout: 0.1}]"],
        "`probe.holdout=0.1`: is for folder only, other datasets have a test split",
    ),
    (
        ["--data.init_args.probe=[{name: folder, root: ., holdout: 2}]"],
        "invalid `probe.holdout=2`: must be a number in (0, 0.9] or null (dataset folder).",
    ),
    (["--data.init_args.max_bad_fraction=2"], "invalid `data.max_bad_fraction=2`: must be a number in [0, 1]."),
    (["--data.init_args.augmentation.crop_scale=[0.9, 0.2]"], "crop_scale"),
    (["--data.init_args.augmentation.gray=0.2"], "gray"),
    (
        ["--data.init_args.augmentation=deit4"],
        "invalid `data.augmentation=deit4`: must be a mapping, small, jepa, simclr, deit3 or none; did you mean",
    ),
    (["--data.init_args.augmentation.preset=deit4"], "invalid `data.augmentation.preset=deit4`: must be small, jepa"),
    (["--data.init_args.augmentation=deit3"], "jitter=[0.3, 0.3, 0.3, 0]`: changes colors, but all images are gray"),
    (["--data.init_args.augmentation=none"], "invalid `data.views=2`: all views would be the same"),
    (["--data.init_args.augmentation.mixup=0.8", "--data.init_args.batch_size=31"], "set it to 32"),
    (["--data.init_args.augmentation.rand_magnitude=3"], "rand_magnitude=3`: has no effect without rand_augment"),
    (
        ["--data.init_args.augmentation=jepa", "--data.init_args.augmentation.blur=0.1"],
        "augmentation.preset=jepa instead",
    ),
    (["--data.augmentation.blur=0.1", "--data.augmentation", "jepa"], "--data.augmentation.preset=jepa instead"),
    (["--data.init_args.num_workers=2"], "num_workers"),
    (["--trainer.accelerator=gpu"], "accelerator"),
    (["--trainer.accelerator=quantum"], "quantum"),
    (["--trainer.precision=bf16-true"], "trainer.precision=bf16-true"),
    (["--trainer.precision=bf8"], "bf8"),
    (["--time_budget=soon"], 'invalid `time_budget=soon`: must be "HH:MM:SS"'),
    (["--trainer.max_time=00:01:00:00"], "use time_budget"),
    (["--ckpt_path=last"], "nothing has been saved yet"),
    (["--ckpt_path=no.ckpt"], "there is no file no.ckpt"),
    (["--checkpoint.mode=up"], "mode"),
    (["--collapse.action=explode"], "explode"),
    (["--config=none.yaml"], "none.yaml"),
    (["--experiment_name=.."], "invalid `experiment_name=..`: must be the name of a folder"),
    (["--override=true"], "invalid `override=true`: has no effect without ckpt_path"),
    (["--trainer.default_root_dir=x"], "invalid `trainer.default_root_dir=x`: has no effect; use results_dir"),
    (["--trainer.precision=64-true"], "trainer.precision=64-true"),
    (["--trainer.log_every_n_steps=0"], "trainer.log_every_n_steps=0"),
    (["--checkpoint.monitor=loss"], "checkpoint.monitor=loss`: must be probe/digits/linear_val, "),
    (["--checkpoint.monitor=probe/digits/linear"], "test split, which would no longer tell"),
    (["--checkpoint.monitor=probe/digits/knn_online"], "use probe/digits/knn_val_online"),
    (["--checkpoint.monitor=probe/digits/linear_top5"], "use probe/digits/linear_val"),
    (["--collapse.max_image_share=0"], "invalid `collapse.max_image_share=0`: must be a number in (0, 1]"),
    (
        ["--logging.wandb_project=x"],
        "invalid `logging.wandb_project=x`: has no effect with logging.wandb=false; set logging.wandb",
    ),
    (["--model.init_args.encoder.size=tiny"], "invalid `encoder.size=tiny`: has no effect"),
    (
        ["--model.init_args.predictor={targets: separate, attention: cross}"],
        "invalid `predictor.targets=separate`: has no effect",
    ),
    (["--model.init_args.masks={target_scale: [0.01, 0.02]}"], "masks.target_scale"),
]


@pytest.mark.parametrize(("arguments", "named"), REFUSED, ids=[" ".join(a) for a, _ in REFUSED])
def test_what_is_refused_is_refused_in_one_sentence_with_status_2(
    config, capsys, monkeypatch, arguments, named
) -> None:
    monkeypatch.setattr("sys.argv", ["hjepa"])
    assert fit(config, *arguments) == 2
    out = capsys.readouterr()
    assert "Traceback" not in out.err + out.out
    message = [line for line in out.err.splitlines() if line.startswith("hjepa: error: ")]
    assert len(message) == 1, out.err
    assert named in message[0]
    assert out.err.rstrip().endswith(message[0])
    assert len(message[0]) < 400
    assert not Path("results/tiny/checkpoints").exists()


def test_yaml_mistakes_are_refused_by_name(config, capsys) -> None:
    for wrong, named in (("modle: {}", "modle"), ("trainer: {max_epoch: 3}", "max_epoch"), ("model: [", "yaml")):
        extra = config.with_name("wrong.yaml")
        extra.write_text(wrong)
        assert fit(config, "--config", str(extra)) == 2
        assert named in capsys.readouterr().err.lower()


def test_an_unknown_command_is_refused(capsys) -> None:
    assert main(["fti"]) == 2
    assert "unknown command 'fti'; did you mean hjepa fit? The commands are fit" in capsys.readouterr().err


def test_resume_with_other_settings_is_refused_unless_told_to(config, capsys) -> None:
    assert fit(config) == 0
    more = ["--ckpt_path=last", "--trainer.max_epochs=2"]
    assert fit(config, *more, "--model.init_args.optimizer.lr=0.5") == 2
    assert "optimizer.lr was 0.001, is 0.5" in capsys.readouterr().err
    assert fit(config, *more, "--data.init_args.batch_size=64") == 2
    assert "data.batch_size was 32, is 64" in capsys.readouterr().err
    assert fit(config, *more, "--model.init_args.encoder.depth=3") == 2
    assert "encoder.depth was 2, is 3" in capsys.readouterr().err
    free = ["--model.init_args.encoder.grad_checkpointing=true", "--model.init_args.encoder.attention=math"]
    assert fit(config, *more, *free, "--model.init_args.optimizer.lr=0.5", "--override=true") == 0
    kept = torch.load("results/tiny/checkpoints/last.ckpt", weights_only=True)
    assert kept["hyper_parameters"]["optimizer"]["lr"] == 0.5
    assert kept["global_step"] == 8


def test_muon_resumes_from_the_command_line_and_a_cooldown_is_appended(config, capsys) -> None:
    key = "--model.init_args.optimizer"
    base = [f"{key}.kind=muon", f"{key}.schedule=wsd"]
    assert fit(config, *base, f"{key}.cooldown_fraction=0") == 0, capsys.readouterr().err
    more = ["--ckpt_path=last", "--trainer.max_epochs=2"]
    assert fit(config, *more, *base, f"{key}.cooldown_fraction=0.5") == 2
    assert "optimizer.cooldown_fraction was 0, is 0.5" in capsys.readouterr().err
    assert fit(config, *more, f"{key}.schedule=wsd", f"{key}.cooldown_fraction=0", "--override=true") == 2
    assert "invalid `optimizer.kind=adamw`: the checkpoint has the state of muon; set" in capsys.readouterr().err
    assert fit(config, *more, *base, f"{key}.cooldown_fraction=0.5", "--override=true") == 0, capsys.readouterr().err
    kept = torch.load("results/tiny/checkpoints/last.ckpt", weights_only=True)
    groups = kept["optimizer_states"][0]["param_groups"]
    assert [group["lr"] for group in groups] == pytest.approx([1e-6] * len(groups))
    assert kept["global_step"] == 8


def test_a_dataset_may_have_its_own_augmentation_and_a_metric_of_its_own(config, capsys) -> None:
    """From YAML and from the command line alike; a resumed run must have the same."""
    own = {"preset": "jepa", "crop_scale": [0.5, 1], "flip": 0.25}
    key = "--data.init_args.datasets"
    plain = f"{key}=[{{name: digits}}, {{name: digits_canvas}}]"
    tree = yaml.safe_load(yaml.safe_dump(TINY))
    tree["data"]["init_args"]["datasets"] = [{"name": "digits"}, {"name": "digits_canvas", "augmentation": own}]
    Path("own.yaml").write_text(yaml.safe_dump(tree))
    stored = []
    for words in (["own.yaml"], ["results/tiny/config.yaml"], [str(config), f"{plain[:-2]}, augmentation: {own}}}]"]):
        assert fit(*words) == 0, capsys.readouterr().err
        stored.append(torch.load("results/tiny/checkpoints/last.ckpt", weights_only=True)["hjepa_data"]["datasets"])
    assert stored[0] == stored[1] == stored[2]
    assert stored[0][0]["augmentation"] is None
    assert [stored[0][1]["augmentation"][k] for k in ("crop_scale", "flip", "gray")] == [[0.5, 1.0], 0.25, 0.0]
    header, first, *_ = Path("results/tiny/metrics.csv").read_text().splitlines()
    row = dict(zip(header.split(","), first.split(","), strict=True))
    assert 0 < float(row["train/prediction/digits"]) != float(row["train/prediction/digits_canvas"]) > 0
    assert fit(config, f"{plain[:-2]}, augmentation: {{flip: 2}}}}]") == 2
    assert (
        "invalid `datasets.augmentation.flip=2`: must be a number in [0, 1] (dataset digits_canvas)."
        in capsys.readouterr().err
    )

    assert fit(config, plain) == 0
    more = ["--ckpt_path=last", "--trainer.max_epochs=2"]
    assert fit(Path("own.yaml"), *more) == 2
    assert "data.datasets[1].augmentation.crop_scale was null, is [0.5, 1]" in capsys.readouterr().err
    assert fit(config, plain, *more) == 0, capsys.readouterr().err


def test_a_preset_followed_by_parts_is_not_dropped_unsaid(config, capsys) -> None:
    first, second = Path("deit3.yaml"), Path("mine.yaml")
    first.write_text(yaml.safe_dump({"data": {"init_args": {"augmentation": "deit3"}}}))
    second.write_text(yaml.safe_dump({"data": {"init_args": {"augmentation": {"crop_scale": [0.3, 1.0]}}}}))
    assert fit(config, "--config", str(first), "--config", str(second)) == 2
    assert "add `preset: deit3` to these keys" in capsys.readouterr().err


def test_a_file_that_is_no_checkpoint_is_refused(config, capsys) -> None:
    Path("junk.ckpt").write_bytes(b"junk")
    torch.save({"weights": 1}, "other.ckpt")
    assert fit(config, "--ckpt_path=junk.ckpt") == 2
    assert "junk.ckpt cannot be read as a checkpoint" in capsys.readouterr().err
    assert fit(config, "--ckpt_path=other.ckpt") == 2
    assert "is not a checkpoint of this package" in capsys.readouterr().err


def test_a_full_disk_is_one_sentence_and_leaves_no_half_checkpoint(config, capsys) -> None:
    """A real full disk: a tmpfs of 3 MB, where this machine lets us mount one."""
    target = Path("small")
    target.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(target)], capture_output=True
    ).returncode:
        pytest.skip("mounting needs root")
    try:
        assert fit(config, f"--results_dir={target}") == 2
        assert "the disk is full" in capsys.readouterr().err
        for file in target.rglob("*.ckpt"):
            torch.load(file, weights_only=True)  # whole, or not there
    finally:
        subprocess.run(["umount", "-l", str(target)], check=True)

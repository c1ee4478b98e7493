"""`hjepa bench` as a person meets it: a real run of a tiny config, what is said of it, nothing left behind."""

import json
import re
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml

from hjepa_pl import MultiDatasetDataModule
from hjepa_pl.__main__ import main
from hjepa_pl.tools.bench.benchmark import BenchRequest, bench
from hjepa_pl.tools.bench.forecast import forecast
from hjepa_pl.tools.bench.report import format_report
from hjepa_pl.tools.bench.stopwatch import Stopwatch
from hjepa_pl.tools.bench.timed_run import TimedRun, measure
from hjepa_pl.tools.step_memory import available_memory, largest
from tests.cli.test_cli import TINY


@pytest.fixture
def config(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["hjepa"])
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY | {"trainer": {**TINY["trainer"], "max_epochs": 50}}))
    return path


def test_quick_measures_the_step_only(config, capsys) -> None:
    assert main(["bench", "--config", str(config), "--quick", "--steps=2"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for figure in ("images/s", "FLOP per step", "peak growth", "predicted for 50 epochs"):
        assert figure in said
    for left_out in ("matrix products", "largest batch", "time per part", "bf16"):
        assert left_out not in said


@pytest.mark.slow
def test_one_json_object_with_figures_that_go_together(config, capsys) -> None:
    # An epoch longer than what is measured: its end, which writes a checkpoint, would be much of so small a step.
    more = ["--json", "--steps", "4", "--time_budget=01:00:00", "--data.init_args.epoch_size=1280"]
    assert main(["bench", "--config", str(config), *more]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [p.name for p in Path().iterdir()] == ["tiny.yaml"]
    assert found["batch_size"] == 32
    assert found["device_type"] == "cpu"
    assert found["steps_measured"] >= 4
    assert found["images_per_second"] == pytest.approx(32 / (found["step_ms"] / 1e3))
    assert found["flops_per_second"] == pytest.approx(found["flops_per_step"] / (found["step_ms"] / 1e3))
    assert found["utilization"] == pytest.approx(found["flops_per_second"] / found["ceiling"]["flops_per_second"])
    assert 0 < found["utilization"] < 1
    shares = found["shares"]
    assert sum(shares.values()) == pytest.approx(1.0)
    assert min(shares[p] for p in ("data", "forward", "target", "predictor", "backward", "optimizer", "ema")) > 0
    assert shares["other"] < 0.5
    run = found["run"]
    assert (run["epochs"], run["steps"], run["validations"]) == (50, 2000, 50)
    parts = [run[f"{p}_seconds"] for p in ("start", "steps", "epoch_ends", "validations")]
    assert run["seconds"] == pytest.approx(sum(parts))
    assert run["epochs_in_budget"] == 50  # they take less than an hour
    assert found["largest_batch"]["estimate"] is True
    assert found["largest_batch"]["batch_size"] > 32
    assert found["other_precision"]["precision"] == "bf16-mixed"
    assert found["other_precision"]["step_ms"] > 0


@pytest.mark.slow
def test_what_is_printed_reads_in_80_columns(config, capsys) -> None:
    small = ["--steps=3", "--sweep=batch", "--data.init_args.probe=[]", "--time_budget=00:10:00"]
    assert main(["bench", "--config", str(config), "--trainer.max_epochs=100000", *small]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    said = " ".join(out.split())
    assert re.search(r"step [\d.]+ ms \(median of \d+, 90 % between", said)
    assert re.search(r"time per part data [\d.]+ %, forward [\d.]+ %, target [\d.]+ %, predictor", said)
    assert re.search(r"1e\+05 epochs take .*; [\d.]+ fit into the time_budget of 10.0 min", said)
    assert [line.split()[1] for line in out.splitlines() if line.startswith("  batch ")] == ["16", "32", "64", "128"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "a config is missing"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml: there is no config nowhere.yaml"),
        (["--config", "last.ckpt"], "--config last.ckpt: this is a checkpoint, not a config"),
        (["quickstrat"], "--config quickstrat: there is no config quickstrat; did you mean quickstart?"),
        (
            ["quickstart", "on/imagenet100", "--quick"],
            "hjepa bench takes one config, not quickstart and on/imagenet100; for a layer on top of quickstart write "
            "--config on/imagenet100.",
        ),
        (["quickstart", "--steps=0"], "invalid `--steps=0`: must be a whole number >= 1."),
        (["--config", "tiny.yaml", "--steps", "none"], "invalid `--steps=none`: must be a whole number >= 1."),
        (["--config", "tiny.yaml", "--steps"], "--steps needs a value"),
        (
            ["--config", "tiny.yaml", "--sweep=heads"],
            "invalid `--sweep=heads`: must be batch, precision, compile, or several of them.",
        ),
        (
            ["--config", "tiny.yaml", "--model.init_args.encoder.depth=0"],
            "invalid `encoder.depth=0`: must be a whole number >= 1",
        ),
        (
            ["--config", "tiny.yaml", "--data.init_args.views=1"],
            "invalid `data.views=1`: the image level compares views",
        ),
        (["--config", "tiny.yaml", "--trainer.max_steps=2"], "the run has 2 steps, 3 of which are warm-up"),
    ],
)
def test_bad_input_is_one_sentence(config, capsys, arguments, said) -> None:
    torch.save({"a": torch.zeros(2)}, "last.ckpt")
    assert main(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert [said in x for x in err.splitlines() if x.startswith("hjepa bench: error: ")] == [True]
    assert "Traceback" not in out + err
    assert out == ""
    assert sorted(p.name for p in Path().iterdir()) == ["last.ckpt", "tiny.yaml"]


# A precision that is given as a plugin stands against any other: this config trains in the one and not in the other.
PLUGIN = "--trainer.plugins={class_path: lightning.pytorch.plugins.MixedPrecision, init_args: {precision: bf16-mixed, device: cpu}}"  # noqa: E501


@pytest.mark.slow
def test_a_precision_that_is_refused_costs_no_measurement(config, capsys, recwarn) -> None:
    more = ["--steps=2", "--data.init_args.probe=[]", "--trainer.accumulate_grad_batches=2", PLUGIN]
    found = bench(BenchRequest(["--config", str(config), *more[1:]], (2, 60.0), ()))
    assert found["precision"] == "bf16-mixed"
    assert found["batch_size"] == 64
    assert found["step_ms"] > 0
    assert found["other_precision"].keys() == {"precision", "error"}
    assert "precision=32-true" in found["other_precision"]["error"]
    assert not any("precision=32-true" in line for line in format_report(found))
    assert not [w for w in recwarn if "model summary" in str(w.message)]


def test_a_run_that_diverges_ends_as_fit_ends(config, capsys) -> None:
    arguments = ["--config", str(config), "--model.init_args.optimizer.lr=1e30", "--data.init_args.probe=[]"]
    assert main(["fit", *arguments, "--trainer.max_epochs=2"]) == 1
    assert main(["bench", *arguments]) == 1
    said = [x for x in capsys.readouterr().err.splitlines() if x.startswith("hjepa")]
    assert said[1] == said[0].replace("hjepa: error", "hjepa bench: error")
    assert "is not finite" in said[0]


@pytest.mark.parametrize(
    "keys",
    [
        {"val_check_interval": 5, "check_val_every_n_epoch": "null"},  # over epochs of 4 batches
        {"val_check_interval": 3},
        {"check_val_every_n_epoch": 2},
    ],
    ids=str,
)
def test_the_validations_of_a_run_are_those_it_makes(config, keys) -> None:
    words = ["--config", str(config), "--trainer.max_epochs=3", *(f"--trainer.{k}={v}" for k, v in keys.items())]
    trial = measure(words, 1000, float("inf"))
    assert trial.validations == len(trial.watch.validations)


@pytest.mark.parametrize("part", ["predictor", "target", "ema", "data"])
def test_time_is_laid_to_the_part_that_takes_it(tiny_module, part, tmp_path) -> None:
    """A part that is made to take 200 ms longer is most of the step."""
    module = tiny_module(encoder={"embed_dim": 24, "depth": 1, "num_heads": 2, "img_size": 16, "patch_size": 4})
    data = MultiDatasetDataModule(datasets=[{"name": "fake"}], batch_size=8, views=2)
    if part in ("predictor", "target"):
        network = module.predictor if part == "predictor" else module.target_encoder
        network.register_forward_hook(lambda *_: time.sleep(0.2))
    elif part == "ema":
        plain = type(module.ema).update
        module.ema.__class__ = type("Slow", (type(module.ema),), {"update": lambda *a: (time.sleep(0.2), plain(*a))[1]})
    else:
        views = data.on_after_batch_transfer
        data.on_after_batch_transfer = lambda *a: (time.sleep(0.2), views(*a))[1]
    watch = Stopwatch(warmup=1, steps=2, parts=4)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[watch],
    )  # fmt: skip
    trainer.fit(module, data)
    assert trainer.global_step == 7
    assert len(watch.steps) == 2
    assert max(watch.shares, key=watch.shares.__getitem__) == part
    assert sum(watch.shares.values()) == pytest.approx(1.0)


def test_shares_of_accumulated_gradients_are_shares(tiny_module, tmp_path) -> None:
    """All batches but the last of a step run outside the optimizer's step."""
    module = tiny_module(encoder={"embed_dim": 24, "depth": 1, "num_heads": 2, "img_size": 16, "patch_size": 4})
    watch = Stopwatch(warmup=1, steps=2, parts=3)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[watch], accumulate_grad_batches=4,
    )  # fmt: skip
    trainer.fit(module, MultiDatasetDataModule(datasets=[{"name": "fake"}], batch_size=8, views=2))
    assert sum(watch.shares.values()) == pytest.approx(1.0)
    assert min(watch.shares.values()) > 0


def test_a_forecast_adds_up_what_was_timed() -> None:
    watch = Stopwatch(3, 4)
    watch.started, watch.finished = 10.0, 9.0
    watch.warm, watch.steps = [3.0, 1.0, 1.0], [0.9, 1.0, 1.1, 1.0]
    watch.epochs, watch.validations = [3.0], [5.0]
    run = TimedRun("a machine", "cpu", "32-true", 8, watch, 0, 20.0, 100, 4, None)
    expected = forecast(run)
    assert expected.start == pytest.approx(10 + 2)  # the first steps took two seconds longer than theirs
    assert expected.steps == pytest.approx(2000)
    assert expected.ends == pytest.approx(20 * 2)
    assert expected.validations == pytest.approx(20)
    assert expected.epoch == pytest.approx(100 + 2 + 1)
    assert expected.total == pytest.approx(12 + 2000 + 40 + 20)
    assert forecast(run, before=7.0).total == pytest.approx(expected.total + 7)  # imports and objects


@pytest.mark.parametrize("limit", [1, 2, 31, 32, 33, 100, 5000])
@pytest.mark.parametrize("start", [2, 32, 128])
def test_the_largest_that_fits_is_found(limit, start) -> None:
    found = largest(lambda n: n <= limit, start)
    assert found <= limit
    assert found >= 0.95 * limit - 1 if limit >= 2 else found == 0


def files(root: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


GROUPS = {
    "free": ({"proc/self/cgroup": "0::/\n"}, 8000 * 1024),
    "version 2, no limit": (
        {"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/memory.max": "max\n"},
        8000 * 1024,
    ),
    "version 2, a limit around": (
        {
            "proc/self/cgroup": "0::/outer/job\n",
            "sys/fs/cgroup/outer/job/memory.max": "max\n",
            "sys/fs/cgroup/outer/memory.max": "5000\n",
            "sys/fs/cgroup/outer/memory.current": "3000\n",
            "sys/fs/cgroup/outer/memory.stat": "anon 2600\ninactive_file 400\n",
        },
        2400,
    ),
    "version 1, in a container": (
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/not-seen-here\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "6000\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "7000\n",
            "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 100\n",
        },
        0,
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_a_control_group_limits_what_is_free(tmp_path, name) -> None:
    texts, free = GROUPS[name]
    meminfo = "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n"
    assert available_memory(files(tmp_path, {"proc/meminfo": meminfo, **texts})) == free


def test_a_system_that_does_not_say_what_is_free(tmp_path) -> None:
    assert available_memory(tmp_path) is None


def test_views_that_grow_are_measured_at_their_last_size(config) -> None:
    model = {k: v for k, v in TINY["model"]["init_args"].items() if k != "predictor"}
    model = {"class_path": "HJEPALightningModule", "init_args": {**model, "levels": [{"cell": "image"}]}}
    config.write_text(yaml.safe_dump({**TINY, "model": model, "trainer": {**TINY["trainer"], "max_epochs": 50}}))
    sizes = []
    words = ["--config", str(config), "--data.init_args.resolution={start: 4}", "--data.init_args.probe=[]"]
    run = measure(words, 3, 10.0, then=lambda cli: sizes.append(cli.datamodule.growth))
    assert (run.grows, sizes) == (True, [None])

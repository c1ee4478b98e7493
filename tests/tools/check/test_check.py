"""`hjepa check` as a person meets it: the words of fit, true numbers, nothing left behind."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from hjepa_pl.__main__ import main
from hjepa_pl.modules.hjepa import HJEPALightningModule
from hjepa_pl.tools.dry_run import DryCLI, prepare, scratch_folder
from hjepa_pl.tools.format import memory, scaled
from hjepa_pl.tools.step_cost import Operations, StepCounter, count_table
from tests.cli.test_cli import REFUSED, TINY
from tests.conftest import make_batch

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.fixture
def config(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["hjepa"])
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def images(folder: Path, count: int = 12) -> None:
    """Write pictures of three sizes in two classes, and one file that is none."""
    for i in range(count):
        path = folder / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((20 + 10 * (i % 3), 40), 60).convert("RGB").save(path)
    (folder / "a" / "99.jpg").write_bytes(b"no picture")


def test_the_table_has_the_numbers_of_the_real_module_and_run(config, capsys) -> None:
    assert main(["check", str(config), "--trainer.max_epochs=3"]) == 0
    out = capsys.readouterr().out
    module = HJEPALightningModule(**TINY["model"]["init_args"])
    total = sum(p.numel() for p in module.parameters())
    trained = sum(p.numel() for net in module.trained_modules() for p in net.parameters())
    assert re.search(rf"total +{trained:,} +{total:,}\n", out)
    assert "12 steps of 32 images, 4 per epoch" in out  # 128 images an epoch
    assert module.masks is not None
    visible = sorted({shape.visible for shape in module.masks.shapes})
    assert all(f"({v} visible)" in out for v in visible)
    assert re.search(r"last_c1 +last +1 +4 x 4 ", out)
    assert re.search(rf"context encoder {visible[0]}( to {visible[-1]})? \+ 2 x 16; target encoder 16;", out)
    assert "masks per image" not in out
    assert max(map(len, out.splitlines()[1:])) <= 80  # the first is the path
    assert [p.name for p in Path().iterdir()] == ["tiny.yaml"]


def test_the_table_has_the_optimizer_and_its_scaled_rate(config, capsys) -> None:
    key = "--model.init_args.optimizer"
    assert main(["check", str(config)]) == 0
    plain = capsys.readouterr().out
    assert re.search(r"optimizer +adamw, peak learning rate 0\.001, cosine to 1e-06", plain)
    assert main(["check", str(config), f"{key}.kind=muon", f"{key}.lr_scale=sqrt", f"{key}.schedule=wsd"]) == 0
    found = " ".join(capsys.readouterr().out.split())
    assert "muon, peak learning rate 0.000354 (0.001 by sqrt of the images per step / 256), constant" in found
    assert "then 20% cool-down to 3.54e-07" in found
    module = HJEPALightningModule(**TINY["model"]["init_args"] | {"optimizer": {"kind": "muon"}})
    moments = sum(p.numel() * (4 if g["parts"] else 8) for g in module.parameter_groups() for p in g["params"])
    assert f"Adam {memory(moments)}" in found  # Muon has one moment of a matrix
    assert main(["check", str(config), f"{key}.lr_scale=linear", f"{key}.min_lr=0.0005"]) == 2
    assert "`optimizer.min_lr=0.0005`: must be <= optimizer.lr=0.001 scaled by" in capsys.readouterr().err


def test_several_masks_of_an_image_are_counted(config, capsys) -> None:
    more = ["--model.init_args.masks.per_image=3", "--data.init_args.batch_size=16"]
    assert main(["check", str(config), *more]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "; 3 masks per image" in out
    settings = TINY["model"]["init_args"]
    module = HJEPALightningModule(**settings | {"masks": settings.get("masks", {}) | {"per_image": 3}})
    visible = module.masks.shapes[0].visible
    assert re.search(rf"context encoder 3 x {visible}( to \d+)? \+ 2 x 16; target encoder 16;", out)
    batch = make_batch(16, 2, 8)
    batch = batch._replace(views=tuple(v[:, :1] for v in batch.views))
    with FlopCounterMode(display=False) as counter:
        module.compute(batch)[0].backward()
    found = re.search(r"compute \S+ \S+ per image, (\S+) MFLOP per step", out)
    assert float(found[1]) == pytest.approx(counter.get_total_flops() / 1e6, rel=0.005)


def test_counted_operations_are_those_of_a_real_step(config, capsys) -> None:
    """Against the counter on the real module and real tensors, and twice as many images take twice as many."""
    module = HJEPALightningModule(**TINY["model"]["init_args"])
    batch = make_batch(16, 2, 8)
    batch = batch._replace(views=tuple(v[:, :1] for v in batch.views))
    with FlopCounterMode(display=False) as counter:
        module.compute(batch)[0].backward()
    assert main(["check", str(config), "--data.init_args.batch_size=16"]) == 0
    found = re.search(r"compute +\S+ \S+ per image, (\S+) MFLOP per step", capsys.readouterr().out)
    assert found is not None
    assert float(found[1]) == pytest.approx(counter.get_total_flops() / 1e6, rel=0.005)


def test_checkpointing_lessens_memory_and_changes_no_count(config) -> None:
    def count(*more: str):
        words = ["--config", str(config), "--model.init_args.encoder.depth=6", *more]
        with scratch_folder() as scratch:
            cli = prepare(words, DryCLI, scratch)
        assert cli.views is not None
        return StepCounter(cli.model, cli.views, torch.device("cpu"), half=False).count(32)

    plain = count()
    less = count("--model.init_args.encoder.grad_checkpointing=true")
    assert less.flops == plain.flops
    assert less.peak < 0.8 * plain.peak


def test_views_that_grow_are_told_of_and_counted_at_their_last_size(config, capsys) -> None:
    model = {k: v for k, v in TINY["model"]["init_args"].items() if k != "predictor"}
    model = {"class_path": "HJEPALightningModule", "init_args": {**model, "levels": [{"cell": "image", "keep": 0.5}]}}
    config.write_text(yaml.safe_dump({**TINY, "model": model}))
    assert main(["check", str(config), "--data.init_args.resolution={start: 4, until: 0.25}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "views from 4 x 4 to 8 x 8 pixels in 2 steps, by 25% of the run; tokens, compute and memory below" in said
    assert "context encoder 2 x 8;" in said  # half of 16 patches
    assert main(["check", str(config), "--data.init_args.resolution.start=3"]) == 2
    assert "invalid `resolution.start=3`: must be a multiple of" in capsys.readouterr().err


SEPARATE = ["--model.init_args.predictor.targets=separate"]
CROPS = [
    "--data.init_args.multicrop={local_views: 2, local_size: 4}",
    "--model.init_args.masks.strategy=global_with_local_context",
]


MASKS = ["--model.init_args.masks.per_image=3"]


@pytest.mark.parametrize(
    "more", [[], SEPARATE, CROPS, MASKS, SEPARATE + MASKS],
    ids=["joint", "separate", "crops", "masks", "separate, masks"],
)  # fmt: skip
def test_the_predictor_s_tokens_are_those_of_its_blocks(config, more) -> None:
    with scratch_folder() as scratch:
        cli = prepare(["--config", str(config), *more], DryCLI, scratch)
    seen: list[int] = []
    cli.model.predictor.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0][..., 0].numel()))
    counted = StepCounter(cli.model, cli.views, torch.device("cpu"), half=False).count(32)
    assert seen == [32 * counted.predictor]


def test_sizes_that_leave_as_much_visible_count_each(config, capsys) -> None:
    """Of the same number of visible patches, blocks of other sizes have more to predict."""
    keys = {"encoder.img_size": 24, "encoder.depth": 1, "masks.max_visible": 0.3}
    words = ["--config", str(config), *(f"--model.init_args.{key}={value}" for key, value in keys.items())]
    with scratch_folder() as scratch:
        cli = prepare(words, DryCLI, scratch)
    assert len({shape.visible for shape in cli.model.masks.shapes}) == 1
    table = count_table(StepCounter(cli.model, cli.views, torch.device("cpu"), half=False), 32)
    assert len(table.counts) == len(cli.model.masks.shapes)
    flops = [c.flops / 32e6 for c in table.counts]
    assert min(flops) < table.flops / 32e6 < max(flops)
    assert main(["check", *words]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"compute {min(flops):.3g} to {max(flops):.3g} MFLOP per image" in out
    assert f"about {scaled(table.flops * 4, 'FLOP')} in all" in out


@pytest.mark.parametrize("targets", ["joint", "separate"])
def test_rows_of_the_same_lengths_count_alike(config, targets) -> None:
    """Lying blocks and standing ones: one of them is counted for both."""
    keys = {"encoder.img_size": 24, "encoder.depth": 1, "masks.max_visible": 0.3, "predictor.targets": targets}
    words = ["--config", str(config), *(f"--model.init_args.{key}={value}" for key, value in keys.items())]
    with scratch_folder() as scratch:
        cli = prepare(words, DryCLI, scratch)
    counter = StepCounter(cli.model, cli.views, torch.device("cpu"), half=False)
    table = count_table(counter, 32)
    shapes = cli.model.masks.shapes
    assert len({shape.lengths for shape in shapes}) < len(shapes)
    assert [counter.count(32, step) for step in table.steps] == table.counts


def test_what_the_memory_count_says_is_what_tensors_take() -> None:
    known = torch.zeros(1000)
    with Operations([known]) as counted:
        a = known + 1  # 4,000 bytes
        b = a * 2  # 8,000 alive
        a.add_(b)  # none more
        del a
        c = torch.cat([b, b])  # 4,000 + 8,000 alive
        view = c[:10]
        del c
        d = b + 1  # the view holds c: 16,000
    assert counted.peak == counted.alive == 16_000
    del view, d
    assert counted.alive == 4_000


# Keys, geometry, levels, data on the disk, data in memory, Trainer, run: one of each.
SOME = ["modle", "img_size=9", "levels.block=9", "nowhere", "holds no image", "gray", "views=1", "bf16-true", "soon"]
PICKED = [next(r[0] for r in REFUSED if word in f"{r}") for word in SOME]


@pytest.mark.parametrize("arguments", PICKED, ids=" ".join)
def test_refusals_are_those_of_fit_in_the_same_words(config, capsys, arguments) -> None:
    assert main(["fit", "--config", str(config), *arguments]) == 2
    said = [x for x in capsys.readouterr().err.splitlines() if x.startswith("hjepa: error: ")]
    assert main(["check", str(config), *arguments, *(["--data"] if "root" in arguments[0] else [])]) == 2
    err = capsys.readouterr().err.splitlines()
    assert [x for x in err if x.startswith("check: ")] == [x.replace("hjepa: error", f"check: {config}") for x in said]


def test_a_folder_prints_the_good_and_a_line_for_each_bad(config, tmp_path, capsys) -> None:
    (tmp_path / "set" / "deep").mkdir(parents=True)
    (tmp_path / "set" / "good.yaml").write_text(config.read_text())
    bad = TINY | {"data": {**TINY["data"], "init_args": TINY["data"]["init_args"] | {"views": 1}}}
    (tmp_path / "set" / "deep" / "bad.yml").write_text(yaml.safe_dump(bad))
    (tmp_path / "set" / "torn.yaml").write_text("experiment_name: [")
    (tmp_path / "set" / "layer.yaml").write_text("trainer: {max_epochs: 7}")
    (tmp_path / "set" / "notes.txt").write_text("not looked at")
    assert main(["check", "set"]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("check: ")]
    assert [line.split(": ")[1] for line in lines] == ["set/deep/bad.yml", "set/torn.yaml"]
    assert "invalid `data.views=1`: the image level compares views" in lines[0]
    assert "not valid YAML" in lines[1]
    assert "set/good.yaml\n" in out
    assert "set/layer.yaml: not a run" in out
    # The layer counts where it is read after a run.
    assert main(["check", "set/good.yaml", "--config", "set/layer.yaml"]) == 0
    assert "28 steps of 32 images" in capsys.readouterr().out
    assert main(["check", "--config=set/good.yaml", "--config=set/layer.yaml"]) == 0
    assert "28 steps of 32 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "hjepa check: error: a config or folder is missing"),
        (["nowhere.yaml"], "check: nowhere.yaml: no such file or folder."),
        (["empty"], "check: empty: the folder has no run"),
        (["last.ckpt"], "check: last.ckpt: this is a checkpoint, not a config"),
        (["noise.yaml"], "check: noise.yaml: this is not a text file"),
        (["list.yaml"], "check: list.yaml: this is not a config"),
        (
            ["tiny.yaml", "--config", "nowhere.yaml"],
            "hjepa check: error: --config nowhere.yaml: there is no config nowhere.yaml",
        ),
        (
            ["tiny.yaml", "--model.init_args.optimizer.warmup_steps=4"],
            "invalid `optimizer.warmup_steps=4`: is 4 steps, and the run has 4; use less",
        ),
        (
            ["tiny.yaml", "--data.init_args.datasets=[{name: folder, root: .}]", "--trainer.overfit_batches=2"],
            "`trainer.overfit_batches=2`: must be 0",
        ),
    ],
)
def test_bad_input_is_one_sentence(config, capsys, arguments, said) -> None:
    Path("empty").mkdir()
    torch.save({"a": torch.zeros(2)}, "last.ckpt")
    Path("noise.yaml").write_bytes(bytes(range(128, 256)))
    Path("list.yaml").write_text("- 1")
    assert main(["check", *arguments]) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert len([x for x in err.splitlines() if "check:" in x]) == 1
    assert "Traceback" not in out + err


def test_data_are_looked_at_and_nothing_is_left(config, capsys) -> None:
    images(Path("pictures"))
    before = sorted(Path().rglob("*"))
    more = ["--data.init_args.datasets=[{name: folder, root: pictures}, {name: digits, weight: 3}]"]
    more += ["--data.init_args.max_bad_fraction=0.5"]
    assert main(["check", str(config), "--data", *more]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "folder in pictures, train: 13 images, 40 x 20 to 40 x 40 pixels, median 40 x 30 (12 sampled)" in out
    assert "2 classes; 25.0 % of an epoch" in out
    assert "digits, train: 1,438 images, gray, 8 x 8 pixels, in memory, 10 classes; 75.0 % of an epoch" in out
    assert "digits, train: 200 images of 10 classes" in out
    assert "digits, test: 100 images of 10 classes" in out
    assert re.search(r"about [\d,]+ images/s \(median of \d+ batches of 32", out)
    assert "bad file pictures/a/99.jpg: not an image" in out
    assert sorted(Path().rglob("*")) == before


def test_data_that_are_missing_are_not_fetched(config, capsys) -> None:
    assert main(["check", str(config), "--data", "--data.init_args.datasets=[{name: cifar10}]",
                 "--model.init_args.encoder.in_chans=1"]) == 2  # fmt: skip
    assert "get them with `python -c" in capsys.readouterr().err
    assert not Path("data").exists()


@pytest.mark.parametrize("path", ["features/sigreg.yaml", pytest.param("", marks=pytest.mark.slow)])
def test_configs_of_the_repository_are_checked(path, capsys, monkeypatch) -> None:
    """What the README says of `hjepa check configs`: one table a run, none left out, exit status 0."""
    monkeypatch.setattr("sys.argv", ["hjepa"])
    asked = CONFIGS / path
    assert main(["check", str(asked), "--trainer.devices=1", "--trainer.accelerator=cpu"]) == 0
    out, err = capsys.readouterr()
    runs = [p for p in CONFIGS.glob("**/*.yaml") if p.parent.name != "on" and p.is_relative_to(asked)]
    assert runs
    assert all(f"{p}\n" in out for p in runs)
    assert "check: " not in err


def test_networks_get_no_storage(capsys, monkeypatch) -> None:
    """ViT-H/14 has 632 million parameters, and its moving average as many: they would take five gigabytes."""
    monkeypatch.setattr("sys.argv", ["hjepa"])
    with scratch_folder() as scratch:
        cli = prepare(["--config", str(CONFIGS / "ijepa.yaml"), "--trainer.devices=1"], DryCLI, scratch)
    assert sum(p.numel() for p in cli.model.parameters()) > 1.2e9
    assert {p.device.type for p in cli.model.parameters()} == {"meta"}

"""`hjepa sweep`: what is typed wrong is one sentence, before any run and before a folder is made."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from hjepa_pl.__main__ import main
from hjepa_pl.tools.sweep.dry_cells import check_cells
from hjepa_pl.tools.sweep.grid import cells_of, read_grid, split_values
from hjepa_pl.types import ConfigError
from tests.cli.test_cli import TINY

LR = "--grid=model.optimizer.lr=1e-3,2e-3"
REFUSED: list[tuple[list[str], str]] = [
    (["tiny.yaml", LR, "--grid=model.optimizer.lr=3e-3"],
     "--grid model.optimizer.lr is given twice; list all values in one: --grid model.optimizer.lr=VALUE,VALUE."),
    (["tiny.yaml", LR, "--grid", "model.init_args.optimizer.lr=3e-3"], "--grid model.optimizer.lr is given twice"),
    (["tiny.yaml", "--grid", "model.optimizer.lr=1e-3,"],
     "invalid `--grid model.optimizer.lr=1e-3,`: a value is empty; add it, or remove the comma."),
    (["tiny.yaml", "--grid=model.optimizer.lr="], "a value is empty"),
    (["tiny.yaml", "--grid=model.optimizer.lr"], "must be KEY=VALUE,VALUE"),
    (["tiny.yaml", "--grid"], "--grid needs KEY=VALUE,VALUE."),
    (["tiny.yaml", "--grid=model.levels=flat,three,flat"], "has the value flat twice; remove one."),
    (["tiny.yaml", "--seeds", "0"], "invalid `--seeds=0`: must be a whole number >= 1."),
    (["tiny.yaml", "--seeds=1,2"], "invalid `--seeds=1,2`: must be a whole number >= 1."),
    (["tiny.yaml", "--seeds=2", "--seeds=3"], "--seeds is given twice; remove one."),
    (["tiny.yaml", "--jobs=0"], "invalid `--jobs=0`: must be a whole number >= 1."),
    (["tiny.yaml", "--seeds=2", "--grid=seed_everything=1,2"],
     "invalid `--grid seed_everything`: the seeds are those of --seeds; remove it."),
    (["tiny.yaml", "--grid=data.seed=1,2"], "invalid `--grid data.seed`: the seeds are those of --seeds"),
    (["tiny.yaml", "--seed_everything=4"], "invalid `--seed_everything=4`: the seeds are those of --seeds; remove it."),
    (["tiny.yaml", "--results_dir", "here"],
     "invalid `--results_dir=here`: each run has a folder of its own below --out; remove it, or set --out."),
    (["tiny.yaml", "--ckpt_path=last"], "a run that was cut off is resumed by itself; remove it."),
    (["tiny.yaml", "--grid=config=a,b"], "a grid is of keys, not of files"),
    (["tiny.yaml", LR, "--model.init_args.optimizer.lr=1"],
     "--model.init_args.optimizer.lr is given beside --grid model.optimizer.lr, which would overrule it; remove one."),
    (["tiny.yaml", "--model.optimizer.lr=7e-3", "--grid=model.optimizer={kind: adamw},{kind: muon}"],
     "--model.optimizer.lr is given beside --grid model.optimizer, which would overrule it; remove one."),
    (["tiny.yaml", "seeded.yaml", "--seeds=2"],
     "hjepa sweep takes one config, not tiny.yaml and seeded.yaml; for a layer on top of tiny.yaml write "
     "--config seeded.yaml."),
    (["resumed.yaml"],
     "invalid `ckpt_path=last` in the config: a run that was cut off is resumed by itself; remove it."),
    (["--seeds=2"], "a config is missing; for example hjepa sweep quickstart --seeds 3."),
    (["tinny.yaml"], "--config tinny.yaml: there is no config tinny.yaml"),
    (["--table=nowhere"], "nowhere is not the folder of a sweep: it has no sweep.json."),
    (["--table=nowhere", "--seeds=2"], "--table takes the folder of a sweep alone; remove the other words."),
    # Seen by the checks of fit, in any cell:
    (["tiny.yaml", "--grid=model.optimizer.lr=1e-3,2e-3,3e-3,4e-3,-1"], "lr=-1: invalid `optimizer.lr=-1`: must be"),
    (["tiny.yaml", LR, "--grid=model.optimizer.lrr=1"],
     "--model.optimizer.lrr is not a key; did you mean --model.optimizer.lr?"),
    (["tiny.yaml", "--grid=model.optimizer.lr=0.001,1e-3"],
     "the cells lr=0.001 and lr=1e-3 are the same run; remove a value of the grid."),
    (["tiny.yaml", "--trainer.fast_dev_run"], "invalid `trainer.fast_dev_run=true`: such a run has no results"),
    (["seeded.yaml"], "invalid `data.seed=5`: all runs would have this seed; remove it."),
    (["tiny.yaml", "--out=full"], "invalid `--out=full`: it holds something else than a sweep; choose another folder."),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_it_is_one_sentence_with_status_2(words, said, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["hjepa"])
    seeded: Any = yaml.safe_load(yaml.safe_dump(TINY))
    seeded["data"]["init_args"]["seed"] = 5
    for name, tree in (("tiny", TINY), ("seeded", seeded), ("resumed", TINY | {"ckpt_path": "last"})):
        Path(f"{name}.yaml").write_text(yaml.safe_dump(tree))
    Path("full").mkdir()
    Path("full/other.txt").write_text("mine")
    assert main(["sweep", *words]) == 2
    out = capsys.readouterr()
    message = [line for line in out.err.splitlines() if line.startswith("hjepa sweep: error: ")]
    assert len(message) == 1, out.err
    assert said in message[0]
    assert "Traceback" not in out.err + out.out
    assert not Path("results").exists()
    assert [path.name for path in Path("full").iterdir()] == ["other.txt"]


OPTIMIZERS = "model.optimizer={kind: adamw},{kind: muon}"
OVERRULED: list[tuple[list[str], list[str]]] = [
    ([OPTIMIZERS], ["--model.init_args.optimizer.lr=7e-3"]),
    (["model.init_args={seed: 1}"], ["--model.optimizer.lr=7e-3"]),
    (["model.optimizer.lr=1,2"], ["--model.optimizer={kind: muon, lr: 3}"]),
    (["model.optimizer.lr=1,2"], ["--model.init_args={optimizer: {lr: 3}}"]),
    (["model.ema.momentum=0.9,0.99"], ["--model.ema=null"]),
    (["model.encoder=tiny,small"], ["--model.encoder.size=base"]),
    (["data.datasets=[{name: digits}],[]"], ["--data.datasets+={name: fake}"]),
    ([OPTIMIZERS, "model.init_args.optimizer.lr=1,2"], []),
    (["model.optimizer.lr=1,2", OPTIMIZERS], []),
    (["model.encoder=tiny,small", "model.encoder.size=base"], []),
]


@pytest.mark.parametrize(("given", "words"), OVERRULED)
def test_a_key_above_or_below_a_key_of_the_grid_is_rejected(given, words) -> None:
    with pytest.raises(
        ConfigError, match=r"^--(grid )?\S+ is given beside --grid \S+, (which|but) [^.;]*; remove one\.$"
    ):
        read_grid(given, words)


def test_a_key_beside_a_key_of_the_grid_is_accepted() -> None:
    words = [
        "--model=HJEPALightningModule", "--model.optimizer={kind: muon}", "--model.optimizer.lr_min=0",
        "--model.encoder.depth=3", "--model.encoder={drop_path_rate: null}",
    ]  # fmt: skip
    given = ["model.optimizer.lr=1,2", "model.encoder=tiny,small", "model.encoder.patch_size=2,4"]
    assert list(read_grid(given, words)) == ["model.optimizer.lr", "model.encoder", "model.encoder.patch_size"]


@pytest.mark.parametrize("key", [{"ckpt_path": "results/tiny"}, {"override": True}])
def test_a_config_file_that_resumes_a_run_is_rejected(key, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["hjepa"])
    for name, tree in (("whole", TINY | {"ckpt_path": None, "override": False}), ("layer", key)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    files = [f"--config={tmp_path / name}.yaml" for name in ("whole", "layer")]
    with pytest.raises(
        ConfigError, match=r"^invalid `(ckpt_path=results/tiny|override=true)` in the config: a run that"
    ):
        check_cells(files, cells_of({}))
    check_cells(files[:1], cells_of({}))  # as every run stores them
    check_cells(files[::-1], cells_of({}))


def test_commas_inside_brackets_and_quotes_do_not_separate() -> None:
    assert split_values("flat,[{cell: 1}, {cell: image}], three") == ["flat", "[{cell: 1}, {cell: image}]", "three"]
    assert split_values("'a,b',\"c,(d\",e") == ["'a,b'", '"c,(d"', "e"]
    assert split_values("a,,b") == ["a", "", "b"]


def test_cells_are_the_product_in_order_with_names_of_their_own() -> None:
    grid = read_grid(["model.init_args.optimizer.lr=1e-3,2e-3", "model.levels=flat,[{cell: image}]"], [])
    cells = cells_of(grid)
    assert [cell.label for cell in cells] == [
        "lr=1e-3, levels=flat", "lr=1e-3, levels=[{cell: image}]", "lr=2e-3, levels=flat",
        "lr=2e-3, levels=[{cell: image}]",
    ]  # fmt: skip
    assert cells[2].words == ["--model.optimizer.lr=2e-3", "--model.levels=flat"]
    assert cells[1].run_name(2) == "2_lr=1e-3_levels=_cell_image_seed2"
    assert len({cell.run_name(seed) for cell in cells for seed in range(3)}) == 12
    assert cells_of({})[0].run_name(1) == "seed1"
    alike = cells_of({"model.encoder.depth": ["2"], "model.predictor.depth": ["1"]})
    assert alike[0].label == "model.encoder.depth=2, model.predictor.depth=1"

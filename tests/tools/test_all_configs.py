"""`hjepa check` and `hjepa bench` over every config that the package ships."""

import json

import pytest

from hjepa_pl.__main__ import main
from tests.test_configs import CONFIGS, CROPS_AT_ONCE, SMALL, data_folder, write_tree  # noqa: F401 (a fixture)


def check(folder, monkeypatch, capsys, path) -> list[str]:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["hjepa"])
    status = main(["check", str(path)])
    said = capsys.readouterr()
    assert (status, said.err) == (0, "")
    assert not list(folder.iterdir())
    return said.out.splitlines()


@pytest.mark.slow  # with the next, for .ci/run
@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_check_takes_every_config(path, tmp_path, monkeypatch, capsys) -> None:
    assert check(tmp_path, monkeypatch, capsys, path)[0] == str(path)


SMALLER = {
    "folder": ["--model.init_args.encoder.img_size=128"],
    "shards": ["--model.init_args.encoder.img_size=128"],
    "overnight": ["--model.init_args.encoder.img_size=128", "--model.init_args.predictor.depth=2"],
    "ijepa": ["--model.init_args.predictor.depth=2"],
}
"""A grid of 8 x 8 patches where the masks allow it, and shallow predictors."""


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_bench_measures_every_config(path, data_folder, capsys, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setattr("sys.argv", ["hjepa"])
    text = path.read_text()
    if "imagenet" in text:
        from hjepa_pl.data.sources.class_folders import imagenet100_classes

        write_tree(data_folder / "data" / "imagenet", imagenet100_classes()[:4])
    if "my_images" in text:
        write_tree(data_folder / "data" / "my_images", ["cat", "dog"], per_class=40 if path.stem == "folder" else 4)
    if "shards" in text:
        assert main(["shards", "data/my_images", "data/shards/train-%06d.tar", "--per-shard=4"]) == 0
    capsys.readouterr()
    status = main([
        "bench", "--json", "--quick", "--steps=2", "--config", str(path), "--trainer.accelerator=cpu",
        "--data.init_args.batch_size=4", "--data.init_args.eval_batch_size=8", "--data.init_args.epoch_size=8",
        "--data.init_args.num_workers=0",  # two steps are over before a worker has started
        "--model.init_args.encoder.depth=2",  # sizes are fit's business, and test_configs runs them
        "--model.init_args.optimizer.warmup_epochs=0", *SMALL.get(path.stem, []), *CROPS_AT_ONCE.get(path.stem, []),
        *SMALLER.get(path.stem, []),
    ])  # fmt: skip
    said = capsys.readouterr()
    assert status == 0, said.err
    found = json.loads(said.out)
    assert found["steps_measured"] >= 2
    assert found["flops_per_step"] > 0
    assert not {"ceiling", "largest_batch", "other_precision"} & found.keys()

"""Every config in configs/ runs two real steps through the real CLI, on small files in the official formats."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets as tv
import yaml
from PIL import Image

from hjepa_pl.__main__ import main
from hjepa_pl.data.sources.class_folders import imagenet100_classes

FOLDER = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(p for p in FOLDER.glob("**/*.yaml") if p.parent.name != "on")
FEATURES = sorted(p for p in (FOLDER / "features").glob("*.yaml") if p.stem != "shards")  # which is about data
OBJECTIVES = [*FEATURES, FOLDER / "cifar10.yaml", FOLDER / "lejepa.yaml"]
# What makes a config small enough for a laptop in CI: fewer images, and narrow, shallow networks for large ViTs.
# (`hjepa check` and `bench` of each, in tests/tools/test_all_configs.py, have the sizes as they are.)
SMALL = {
    "ijepa": ["--model.init_args.encoder.embed_dim=64",
              "--model.init_args.encoder.depth=2", "--model.init_args.predictor.depth=2", "--trainer.devices=1"],
    "overnight": ["--model.init_args.encoder.depth=2", "--model.init_args.predictor.depth=2"],
    # Half of 80 images are held out; its validations are every fifth epoch.
    "folder": ["--model.init_args.encoder.embed_dim=48", "--model.init_args.encoder.depth=2",
               "--model.init_args.encoder.img_size=128",
               "--data.init_args.holdout=0.5", "--trainer.check_val_every_n_epoch=1"],
}  # fmt: skip

CROPS_AT_ONCE = {"multicrop": ["--data.init_args.multicrop.warmup_epochs=0.5"]}  # the run is one epoch of two batches


def write_cifar(root: Path, cls: type, key: str) -> None:
    base = root / cls.base_folder
    base.mkdir(parents=True)
    for i, row in enumerate(cls.train_list + cls.test_list):
        pixels = np.random.default_rng(i).integers(0, 256, (4, 3072), dtype=np.uint8)
        (base / row[0]).write_bytes(pickle.dumps({"data": pixels, key: [0, 1, 0, 1]}))
    (base / cls.meta["filename"]).write_bytes(pickle.dumps({cls.meta["key"]: [str(i) for i in range(100)]}))


def write_stl10(root: Path) -> None:
    base = root / "stl10_binary"
    base.mkdir(parents=True)
    for part, n in (("train", 8), ("test", 8), ("unlabeled", 12)):
        np.random.default_rng(n).integers(0, 256, (n, 3, 96, 96), dtype=np.uint8).tofile(base / f"{part}_X.bin")
        if part != "unlabeled":
            np.array([1, 2] * (n // 2), dtype=np.uint8).tofile(base / f"{part}_y.bin")
    (base / "class_names.txt").write_text("\n".join("abcdefghij"))


def write_tree(root: Path, classes: list[str], per_class: int = 2) -> None:
    for split in ("train", "val"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(per_class):
                pixels = np.random.default_rng(i).integers(0, 256, (120, 160, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.JPEG")


@pytest.fixture
def data_folder(tmp_path, monkeypatch) -> Path:
    """A working directory whose data/ holds small files in the official formats."""
    monkeypatch.chdir(tmp_path)
    for cls in (tv.CIFAR10, tv.CIFAR100, tv.STL10):
        for name in ("train_list", "test_list"):  # torchvision checks the official checksums: ours are other files
            monkeypatch.setattr(cls, name, [[row[0], None] for row in getattr(cls, name)])
        if hasattr(cls, "meta"):
            monkeypatch.setattr(cls, "meta", cls.meta | {"md5": None})
    write_cifar(tmp_path / "data", tv.CIFAR10, "labels")
    write_cifar(tmp_path / "data", tv.CIFAR100, "fine_labels")
    write_stl10(tmp_path / "data")
    return tmp_path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_trains_two_steps(path, data_folder, capsys) -> None:
    text = path.read_text()
    if "imagenet" in text:
        write_tree(data_folder / "data" / "imagenet", imagenet100_classes()[:4])
    if "my_images" in text:
        count = 40 if "holdout" in text else 4  # 8 to train on
        write_tree(data_folder / "data" / "my_images", ["cat", "dog"], per_class=count)
    if "shards" in text:
        assert main(["shards", "data/my_images", "data/shards/train-%06d.tar", "--per-shard=4"]) == 0
    name = yaml.safe_load(text)["experiment_name"]
    assert name == path.stem
    status = main([
        "fit", "--config", str(path), "--trainer.max_steps=2", "--trainer.accelerator=cpu",
        "--trainer.log_every_n_steps=1", "--data.init_args.batch_size=4", "--data.init_args.eval_batch_size=8",
        "--data.init_args.epoch_size=8", "--model.init_args.optimizer.warmup_epochs=0",
        *SMALL.get(name, []), *CROPS_AT_ONCE.get(name, []),
    ])  # fmt: skip
    assert status == 0, capsys.readouterr().err
    run = data_folder / "results" / name
    kept = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 2
    for file in ("metrics.csv", "config.yaml", "summary.json", "logs/train.log"):
        assert (run / file).is_file(), file


@pytest.mark.parametrize(
    "path", [pytest.param(p, marks=[] if p.stem == "multicrop" else pytest.mark.slow, id=p.stem) for p in OBJECTIVES]
)
def test_every_objective_runs_on_imagenet100_by_one_more_file(path, data_folder, capsys) -> None:
    write_tree(data_folder / "data" / "imagenet", imagenet100_classes())
    status = main([
        "fit", "--config", str(path), "--config", str(FOLDER / "on" / "imagenet100.yaml"), "--trainer.max_steps=2",
        "--trainer.accelerator=cpu", "--data.init_args.batch_size=4", "--data.init_args.epoch_size=8",
        "--data.init_args.probe=[]", "--model.init_args.encoder.embed_dim=48", "--model.init_args.encoder.depth=2",
        *CROPS_AT_ONCE.get(path.stem, []),
    ])  # fmt: skip
    assert status == 0, capsys.readouterr().err
    first = yaml.safe_load(path.read_text())
    kept = torch.load(data_folder / "results" / path.stem / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["hyper_parameters"]["encoder"]["img_size"] == 224  # the second file's
    assert kept["hjepa_data"]["views"] == first["data"]["init_args"]["views"]  # the first file's
    for term, asked in zip(
        kept["hyper_parameters"]["regularizers"], first["model"]["init_args"].get("regularizers", []), strict=False
    ):
        assert {key: term[key] for key in asked} == asked


def test_no_config_holds_an_empty_mapping() -> None:
    """jsonargparse lets an unknown key with an empty mapping pass, so that none may stand in a shipped file."""

    def walk(node, trail) -> None:
        if isinstance(node, dict):
            assert node, f"{trail} is empty"
            for key, value in node.items():
                walk(value, f"{trail}.{key}")
        elif isinstance(node, list):
            for value in node:
                walk(value, trail)

    for path in CONFIGS:
        walk(yaml.safe_load(path.read_text()), path.stem)

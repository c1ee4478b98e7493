"""Habits that only the parser, the settings or the Trainer can judge: each works, or is one sentence with the fix."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hjepa_pl.__main__ import main
from tests.cli.test_cli import TINY

SIZED = {
    "model": {"encoder": {"size": "tiny", "img_size": 32, "patch_size": 4}},
    "data": {"datasets": [{"name": "digits"}], "views": 2},
}
SMALL = "{embed_dim: 64, depth: 2, num_heads: 2, img_size: 32, patch_size: 4}"
ANSWERED: list[tuple[str, list[str], str]] = [
    ("tiny", ["--model.ema.momentun=0.9"], "did you mean --model.ema.momentum?"),
    ("tiny", ["--lr=3"], "did you mean --model.optimizer.lr?"),
    ("tiny", ["--batch_size", "3"], "did you mean --data.batch_size?"),
    ("tiny", ["--collapse.min_stdd=1"], "did you mean --collapse.min_std?"),
    ("tiny", ["--trainer.max_epoch=3"], "did you mean --trainer.max_epochs?"),
    ("tiny", ["--data.num_workers", "4"], "invalid `data.num_workers=4`: has no effect, all images are in memory"),
    ("tiny", ["--model.encoder", "vit_small_patch16_224"], "`encoder.embed_dim=24`: has no effect with encoder.name"),
    ("sized", ["--model.encoder.name=vit_tiny_patch16_224"], "`encoder.size=tiny`: has no effect with encoder.name"),
    ("sized", [f"--model.init_args.encoder={SMALL}"], "`encoder.size=tiny`: has no effect with encoder.embed_dim"),
    ("tiny", ["--model.encoder.size", "Small"],
     "`model.encoder.size=Small`: must be tiny, small, base, large, huge or null; did you mean small?"),
    ("tiny", ["--model.encoder.size", "vit_small"],
     "size=vit_small`: must be tiny, small, base, large, huge or null; did you mean small?"),
    ("tiny", ["--model.class_path=HJEPA"], "invalid `model.class_path=HJEPA`: must be HJEPALightningModule"),
    ("tiny", ["--data.class_path=Foo"], "invalid `data.class_path=Foo`: must be MultiDatasetDataModule"),
    ("tiny", ["--trainer.max_epochs"], "--trainer.max_epochs lacks its value"),
    ("tiny", ["--model.encoder.depth"], "--model.encoder.depth lacks its value; write --model.encoder.depth=VALUE"),
    ("tiny", ["--model.encoder.dpth=3"], "--model.encoder.dpth is not a key; did you mean --model.encoder.depth?"),
    ("tiny", ["--model.levels=[{cell:1}]"], "does not accept 'cell:1'; YAML needs a space after the colon"),
    ("tiny", ["--model.optimizer.betas=[0.9]"], "betas=[0.9]`: must be a list of 2 numbers in [0, 1)"),
    ("tiny", ["--trainer.callbacks=[{class_path: EarlyStoping}]"], "`trainer.callbacks.class_path=EarlyStoping`: must"),
    ("tiny", ["--data.datasets=digits"], "write data.datasets=[{name: digits}]"),
    ("tiny", ["--data.datasets=[digits]"],
     "invalid `data.datasets=digits`: must be a list of mappings; write data.datasets=[{name: digits}]"),
    ("tiny", ["--model.regularizers=sigreg"], "write model.regularizers=[{kind: sigreg}]"),
    ("tiny", ["--trainer.precision=fp32"],
     "invalid `trainer.precision=fp32`: must be 32-true or bf16-mixed; did you mean 32-true?"),
    ("tiny", ["--trainer.precision=fp16"], "precision=fp16`: must be 32-true or bf16-mixed; did you mean bf16-mixed?"),
    ("tiny", ["--trainer.precision=16"], "invalid `trainer.precision=16`"),
    ("tiny", ["--trainer.precision=16-mixed"], "use 'bf16-mixed'"),
    ("tiny", ["--trainer.accelerator=tpu"], "invalid `trainer.accelerator=tpu`: must be 'auto', 'cpu'"),
    ("tiny", ["--trainer.devices=-1"], "invalid `trainer.devices=-1`: a CPU has no number of devices"),
    ("tiny", ["--trainer.overfit_batches=1"], "invalid `trainer.overfit_batches=1"),
    ("tiny", ["--seed_everything=true"],
     "invalid `seed_everything=true`: must be a whole number in [0, 4294967295] or null"),
    ("tiny", ["--seed_everything=-3"], "invalid `seed_everything=-3`"),
    ("tiny", ["--trainer.callbacks+=EarlyStopping"], "add --trainer.callbacks.monitor=VALUE"),
    ("tiny", ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val_loss"],
     "invalid `trainer.callbacks.EarlyStopping.monitor=val_loss`: must be train/loss, another"),
    ("tiny", ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=probe/digits/knn"],
     "`trainer.callbacks.EarlyStopping.monitor=probe/digits/knn`: it is measured on the test split"),
    ("tiny", ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val_loss"],
     "invalid `trainer.callbacks.ModelCheckpoint.monitor=val_loss`: must be train/loss"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _configs(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["hjepa"])
    for name, tree in (("tiny", TINY), ("sized", SIZED)):
        Path(f"{name}.yaml").write_text(yaml.safe_dump(tree))


@pytest.mark.parametrize(("config", "words", "said"), ANSWERED, ids=[" ".join(words) for _, words, _ in ANSWERED])
def test_it_is_one_sentence_with_status_2(config, words, said, capsys) -> None:
    assert main(["fit", f"{config}.yaml", *words]) == 2
    out = capsys.readouterr()
    message = [line for line in out.err.splitlines() if line.startswith("hjepa: error: ")]
    assert len(message) == 1, out.err
    assert said in message[0]
    assert "Traceback" not in out.err + out.out
    assert len(message[0]) < 400


WORKS: list[tuple[list[str], Any]] = [
    (["tiny.yaml", "--trainer.fast_dev_run"], None),
    (["--config", "tiny.yaml", "short.yaml", "--data.batch_size", "64"], {"size": None, "batch_size": 64}),
    (["-c", "sized.yaml", "--model.encoder.size=null", f"--model.encoder={SMALL}", "--trainer.max_steps=1"],
     {"size": None, "embed_dim": 64}),
    (["sized.yaml", "--model.encoder", "small", "--trainer.max_steps=1", "--data.batch_size=4",
      "--model.encoder.in_chans=1", "--model.encoder.img_size=8", "--data.augmentation=jepa"], {"size": "small"}),
    (["tiny.yaml", "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=probe/digits/linear_val"], {}),
]  # fmt: skip


@pytest.mark.parametrize(("words", "kept"), WORKS, ids=[" ".join(words) for words, _ in WORKS])
def test_it_works(words, kept, capsys) -> None:
    Path("short.yaml").write_text("model: {optimizer: {lr: 0.01}}\n")  # no class_path, no init_args
    gray = ["--model.encoder.in_chans=1", "--data.augmentation=jepa", "--model.encoder.img_size=8"]
    gray += ["--model.encoder.patch_size=2", "--model.levels=[{cell: 1}, {cell: image}]", "--trainer.accelerator=cpu"]
    assert main(["fit", *words, *(gray if "sized.yaml" in words else [])]) == 0, capsys.readouterr().err
    if kept is None:
        assert not Path("results").exists()
        return
    checkpoint = torch.load(next(Path("results").rglob("last.ckpt")), weights_only=True)
    encoder, data = checkpoint["hyper_parameters"]["encoder"], checkpoint["hjepa_data"]
    assert {key: (encoder | data)[key] for key in kept} == kept
    if "short.yaml" in words:
        assert checkpoint["hyper_parameters"]["optimizer"]["lr"] == 0.01

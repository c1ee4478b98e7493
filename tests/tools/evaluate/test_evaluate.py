"""`hjepa eval` on a real run: its figures against the run's own, timm's, and those by hand; the cache; bad input."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from hjepa_pl.__main__ import main
from hjepa_pl.backbones import CleanTransform, load_encoder
from hjepa_pl.data.sources.registry import load_dataset
from hjepa_pl.evaluation import evaluate_probes, knn_accuracy
from hjepa_pl.evaluation.attentive import fit_attentive
from hjepa_pl.evaluation.tasks import TASKS
from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.functional.stratify import stratified
from hjepa_pl.models.families import build_encoder
from hjepa_pl.tools.evaluate import extract

CONFIG = {
    "experiment_name": "run",
    "seed_everything": 3,
    "trainer": {"accelerator": "cpu", "max_steps": 3, "max_epochs": 1, "enable_progress_bar": False},
    "model": {
        "class_path": "HJEPALightningModule",
        "init_args": {
            "encoder": {
                "embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 16, "patch_size": 4, "in_chans": 1,
                "position": "rope",
            },
            "levels": [{"cell": "image"}],
            "projector": {"hidden_dim": 32, "out_dim": 16},
        },
    },
    "data": {
        "class_path": "MultiDatasetDataModule",
        "init_args": {
            "datasets": [{"name": "digits"}], "batch_size": 64, "views": 2,
            "augmentation": {"gray": 0.0, "jitter": [0.4, 0.4, 0.0, 0.0]},
            "probe": [{"name": "digits", "max_train": 300, "max_test": 200}],
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    results = folder / "results"
    assert main(["fit", "--config", str(folder / "run.yaml"), "--results_dir", str(results)]) == 0
    return results / "run"


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HJEPA_CACHE", str(tmp_path / "cache"))


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def chosen(name: str, split: str, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images and labels that an evaluation takes of a split."""
    images = load_dataset(name, None, split)
    index = stratified(images.labels, count, hash_int(seed, Stream.ORDER, ("train", "test").index(split)))
    return images.images[index], images.labels[index]


def test_offline_figures_equal_the_online_ones(run, capsys) -> None:
    assert main(["eval", "--ckpt", str(run), "--tasks", "knn,linear"]) == 0, capsys.readouterr().err
    report, online = report_of(run / "eval"), json.loads((run / "summary.json").read_text())["metrics"]
    assert report["model"]["label"] == "trained (online)"  # without token levels there is no target encoder
    tasks = report["sets"]["digits"]["tasks"]
    for task in ("knn", "linear"):
        for label, prefix in (("trained (online)", ""), ("untrained", "untrained_"), ("raw pixels", "pixels_")):
            assert tasks[task][label]["accuracy"] == pytest.approx(online[f"probe/digits/{prefix}{task}"], abs=1e-9)
    assert tasks["linear"]["trained (online)"]["l2"] == online["probe/digits/linear_l2"]
    difference = report["sets"]["digits"]["differences"]["knn"]["untrained"]
    assert difference["value"] == pytest.approx(
        tasks["knn"]["trained (online)"]["accuracy"] - tasks["knn"]["untrained"]["accuracy"]
    )
    stored = np.load(run / "eval" / "predictions.npz")
    found = 100 * np.mean(stored["digits/knn/untrained/label"] == stored["digits/labels"])
    assert found == pytest.approx(tasks["knn"]["untrained"]["accuracy"])
    screen = capsys.readouterr().out
    assert "above raw pixels" in screen


def test_further_features_are_those_of_the_blocks(run, tmp_path) -> None:
    kinds = "last.mean,last2.mean,1.mean"
    assert main(["eval", "--ckpt", str(run), "--tasks", "knn", "--features", kinds, "--out", str(tmp_path)]) == 0
    found = report_of(tmp_path)["sets"]["digits"]
    assert list(found["features"]) == ["last2.mean", "1.mean"]
    backbone = load_encoder(run)
    encoder = build_encoder(backbone.config, (1, 2)).eval()  # with norms after the first two blocks
    encoder.load_state_dict(backbone.encoder.state_dict())
    x, y = {}, {}
    for split, count in (("train", 300), ("test", 200)):
        images, y[split] = chosen("digits", split, count, seed=3)
        with torch.no_grad():
            tokens = encoder(backbone.transform()(images), blocks=[1, 2, "last"])
        means = {block: value.mean(dim=1) for block, value in tokens.items()}
        x[split] = {"1.mean": means[1], "last2.mean": torch.cat([means[2], means["last"]], dim=1)}
    for kind, measured in found["features"].items():
        expected = knn_accuracy(x["train"][kind], y["train"], x["test"][kind], y["test"], 10)
        assert measured["knn"]["accuracy"] == pytest.approx(expected), kind


def test_every_suite_and_task_runs_and_the_cache_saves_the_passes(run, tmp_path, capsys) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    for out, which in ((first, ["--suite", "full"]), (again, ["--tasks", "knn"])):
        assert main(["eval", "--ckpt", str(run), *which, "--out", str(out)]) == 0, capsys.readouterr().err
    one, two = report_of(first)["sets"]["digits"], report_of(again)["sets"]["digits"]
    assert one["cost"]["trained (online)"]["passes"] == 1.0
    assert two["cost"]["trained (online)"]["passes"] == two["cost"]["untrained"]["passes"] == 0.0
    assert set(one["tasks"]) == set(TASKS)
    for label, metrics in one["tasks"]["knn"].items():
        assert {**metrics, "seconds": 0} == {**two["tasks"]["knn"][label], "seconds": 0}
    # other weights, precision or images are other features
    assert main(["eval", "--ckpt", str(run), "--tasks", "knn", "--precision", "bfloat16", "--out", str(again)]) == 0
    assert report_of(again)["sets"]["digits"]["cost"]["untrained"]["passes"] == 1.0


def test_a_timm_model_equals_its_features_by_hand(tmp_path, capsys) -> None:
    torch.manual_seed(5)
    name = "test_vit"
    model = timm.create_model(name, num_classes=7).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    sets = "[{name: digits, max_train: 60, max_test: 30}]"
    words = ["--timm", name, "--weights", str(tmp_path / "weights.safetensors"), "--sets", sets, "--tasks", "knn"]
    words += ["--features", "pooled,last.mean,last.cls,2.cls", "--out", str(tmp_path)]
    assert main(["eval", *words]) == 0, capsys.readouterr().err
    found = report_of(tmp_path)
    assert found["networks"] == [name, "untrained", "raw pixels"]

    transform = CleanTransform((160, 160), 3, (0.5,) * 3, (0.5,) * 3)
    model.reset_classifier(0)
    features, labels = {}, {}
    for split, count in (("train", 60), ("test", 30)):
        images, labels[split] = chosen("digits", split, count, seed=0)
        with torch.no_grad():
            images = transform(images)
            tokens = model.forward_features(images)
            features[split] = {"pooled": model(images), "last.mean": tokens[:, 1:].mean(1), "last.cls": tokens[:, 0]}
    for kind in features["train"]:
        x, y = features["train"][kind], features["test"][kind]
        expected = evaluate_probes(x, labels["train"], y, labels["test"], 10)["knn"]
        measured = found["sets"]["digits"]
        measured = measured["tasks"]["knn"][name] if kind == "pooled" else measured["features"][kind]["knn"]
        assert measured["accuracy"] == pytest.approx(expected), kind


def test_a_killed_evaluation_goes_on(run, tmp_path, monkeypatch) -> None:
    """The parts that were encoded before a SIGKILL are not encoded again."""
    monkeypatch.setattr(extract, "_PART", 50)
    code = (
        "import os, signal, sys; from hjepa_pl.tools.evaluate import extract; extract._PART = 50; "
        "write = extract._write\n"
        "def killing(folder, start, kind, value):\n"
        "    write(folder, start, kind, value)\n"
        "    if start == 150: os.kill(os.getpid(), signal.SIGKILL)\n"
        "extract._write = killing\n"
        "from hjepa_pl.__main__ import main; main(sys.argv[1:])"
    )
    words = ["eval", "--ckpt", str(run), "--tasks", "knn", "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, env={**os.environ}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / "report.json").exists()
    assert main(words) == 0
    cost = report_of(tmp_path / "out")["sets"]["digits"]["cost"]
    assert cost["trained (online)"]["encoded"] == 500 - 200
    assert cost["untrained"]["encoded"] == 500


def test_help_does_not_import_torch() -> None:
    code = "import sys; from hjepa_pl.__main__ import main; main(['eval', '--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "nothing to judge: --ckpt PATH for a checkpoint or --timm NAME for a timm model."),
        (["results/x"], "'results/x' is not a key; for a checkpoint write --ckpt results/x."),
        (["--ckpt"], "--ckpt needs a value."),
        (["--ckpt", "nowhere.ckpt", "--sets", "digits"], "there is no file or folder nowhere.ckpt"),
        (["--chkpt", "x"], "--chkpt is not a key of hjepa eval; did you mean --ckpt?"),
        (["--ckpt", "RUN", "--tasks", "knn,lienar"], "`eval.tasks=lienar`"),
        (["--ckpt", "RUN", "--protocol", "dina"], "did you mean dino?"),
        (["--ckpt", "RUN", "--suite", "quick", "--tasks", "knn"], "has no effect with --suite; remove one of them."),
        (["--ckpt", "RUN", "--suite", "fast"], "invalid `eval.suite=fast`: must be quick, full or null."),
        (["--ckpt", "RUN", "--device", "tpu"], "invalid `eval.device=tpu`: is not here; use auto or cpu"),
        (["--ckpt", "RUN", "--features", "last.max"], "invalid `eval.features=last.max`: must be like last.mean"),
        (["--ckpt", "RUN", "--features", "4.mean"], "the encoder has blocks 1 to 3."),
        (["--ckpt", "RUN", "--features", "last.cls"], "have no cls features; use last.mean."),
        (["--ckpt", "RUN", "--protocol", "dino"], "The protocol reads last.cls: "),
        (["--ckpt", "RUN", "--branch", "target"], "has no target encoder; use online."),
        (["--ckpt", "RUN", "--weights", "x.pth"], "is for a timm model; name it with --timm or --baseline."),
        (["--ckpt", "RUN", "--timm", "vit_tiny_patch16_224"], "give one of them, not both"),
        (["--ckpt", "RUN", "--sets", "[]"], "invalid `eval.sets=[]`: must hold a dataset"),
        (["--ckpt", "RUN", "--cache", "/proc/none"], "invalid `eval.cache=/proc/none`: cannot be written to"),
        (["--ckpt", "RUN", "--sets", "[{nam: digits}]"], "sets does not accept 'nam'"),
        (["--ckpt", "RUN", "--sets", "[digits, digits]"], "two of --sets are called digits; give one of them a title."),
        (["--ckpt", "RUN", "--sets", "[{name: digits, max_train: 12}]"], "The task knn needs 20 training images"),
        (["--timm", "vit_tiny_patch16_225", "--sets", "digits"], "did you mean vit_tiny_patch16_224?"),
        (["--timm", "vit_tiny_patch16_224"], "name them with --sets"),
        (["--timm", "vit_tiny_patch16_224", "--weights", "no.pth", "--sets", "digits"], "there is no such file."),
    ],
)
def test_bad_input_is_one_sentence(words, sentence, run, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [str(run) if word == "RUN" else word for word in words]
    status = main(["eval", *words, *(["--out", str(tmp_path / "out")] if words else [])])
    error = capsys.readouterr().err.strip()
    assert status == 2
    assert sentence in error
    assert error.startswith("hjepa eval: error: ")
    assert error.count("\n") == 0
    assert not (tmp_path / "out" / "report.json").exists()


def test_features_that_are_not_finite_and_folders_that_cannot_be_written(run, capsys, tmp_path) -> None:
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    content["state_dict"]["context_encoder.vit.norm.weight"].fill_(3e38)
    torch.save(content, tmp_path / "large.ckpt")
    words = ["eval", "--ckpt", str(tmp_path / "large.ckpt"), "--sets", "digits"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "on digits are not finite for 1797 images" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main([*words, "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written to" in capsys.readouterr().err


def test_a_class_that_is_tested_only_is_refused(run, capsys, tmp_path) -> None:
    for split, classes in (("train", "ab"), ("test", "ab")):
        for name in classes:
            (tmp_path / split / name).mkdir(parents=True)
    for i in range(24):
        Image.new("L", (16, 16), i * 10).save(tmp_path / "train" / "a" / f"{i}.png")
    Image.new("L", (16, 16), 9).save(tmp_path / "test" / "a" / "0.png")
    Image.new("L", (16, 16), 9).save(tmp_path / "test" / "b" / "0.png")
    sets = f"[{{name: folder, root: {tmp_path}}}]"
    assert main(["eval", "--ckpt", str(run), "--sets", sets, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_fine_tuning_trains_the_encoder_beside_the_untrained_one(run, tmp_path, capsys) -> None:
    words = ["eval", "--ckpt", str(run), "--tasks", "knn,finetune", "--out", str(tmp_path)]
    found = []
    for settings in ("{epochs: 2, batch_size: 50}", "{epochs: 2, batch_size: 50, augmentation: none}"):
        assert main([*words, "--finetune", settings]) == 0, capsys.readouterr().err
        stored = np.load(tmp_path / "predictions.npz")
        found.append([stored[f"digits/finetune/{label}/confidence"] for label in ("trained (online)", "untrained")])
    report = report_of(tmp_path)
    tasks = report["sets"]["digits"]["tasks"]["finetune"]
    assert set(tasks) == {"trained (online)", "untrained"}  # pixels have no weights to tune
    assert not np.array_equal(found[0][0], found[0][1])
    assert not np.array_equal(found[0][0], found[1][0])
    assert report["finetune"][0]["epochs"] == 2
    for options, sentence in (
        ("{options: {learning_rate: 1}}", "finetune does not accept 'learning_rate'"),
        ("{augmentation: deit3}", "invalid `finetune.augmentation=deit3`: must be crop, small, jepa or none."),
        ("{epochs: 0}", "invalid `finetune.epochs=0`: must be a whole number >= 1."),
    ):
        assert main([*words, "--finetune", options]) == 2
        assert sentence in capsys.readouterr().err
    assert main(["eval", "--ckpt", str(run), "--finetune", "{epochs: 2}"]) == 2
    assert "has no effect without finetune in --tasks." in capsys.readouterr().err


def test_the_attentive_probe_reads_the_tokens_of_the_networks_that_have_them(run, tmp_path, capsys) -> None:
    words = ["eval", "--ckpt", str(run), "--tasks", "attentive", "--out", str(tmp_path)]
    assert main(words) == 0, capsys.readouterr().err
    tasks = report_of(tmp_path)["sets"]["digits"]["tasks"]["attentive"]
    assert set(tasks) == {"trained (online)", "untrained"}  # pixels have no tokens
    backbone = load_encoder(run)
    tokens, labels = {}, {}
    for split, count in (("train", 300), ("test", 200)):
        images, labels[split] = chosen("digits", split, count, seed=3)
        with torch.no_grad():
            tokens[split] = backbone.encoder(backbone.transform()(images))["last"].half()
    expected = fit_attentive(tokens["train"], labels["train"], tokens["test"], 10)
    accuracy = 100 * (expected.logits.argmax(dim=1) == labels["test"]).double().mean()
    assert tasks["trained (online)"]["accuracy"] == pytest.approx(accuracy, abs=1.0)
    assert tasks["trained (online)"]["lr"] == expected.rate

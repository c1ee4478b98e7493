"""`hjepa export`: every format computes what the checkpoint computes, or nothing is written."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save, save_file
from torch.testing import assert_close

import hjepa_pl
from hjepa_pl.__main__ import main
from hjepa_pl.tools.export import export as export_file
from hjepa_pl.tools.export.formats import FORMATS
from tests.models.own_encoder import ConvStemEncoder

KINDS = {
    "plain": {},
    "sincos": {"position": "sincos"},
    "rope": {"position": "rope"},
    "rope_mixed": {"position": "rope_mixed"},
    "rope_scaled": {"position": "rope", "init_values": 0.1, "rope_theta": 50.0},
    "layerscale": {"init_values": 0.1},
    "registers": {"reg_tokens": 3},
    "qk_norm": {"qk_norm": True},
    "gray": {"in_chans": 1},
    "oblong": {"img_size": [16, 24]},
    "named": {"name": "vit_tiny_patch16_224", "img_size": 64, "embed_dim": None, "depth": None, "num_heads": None,
              "patch_size": None},
    "all": {"position": "rope_mixed", "init_values": 0.1, "reg_tokens": 2, "qk_norm": True, "in_chans": 1,
            "img_size": [24, 16]},
}  # fmt: skip
SUFFIX = {"timm": ".safetensors", "safetensors": ".safetensors", "torch-export": ".pt2", "onnx": ".onnx", "hf": ""}
TRACED = [(f, k) for f in ("torch-export", "onnx") for k in KINDS]


def run(path, kind, *words: str, out=None) -> tuple[int, object]:
    out = out or path.parent / f"out{SUFFIX[kind]}"
    return main(["export", "--ckpt", str(path), "--format", kind, "--out", str(out), *words]), out


@pytest.mark.parametrize(
    ("kind", "encoder"),
    [
        *((f, k) for f in ("timm", "safetensors", "hf") for k in KINDS),
        *((f, k) if k == "all" else pytest.param(f, k, marks=pytest.mark.slow) for f, k in TRACED),
    ],
)
def test_parity_of_every_encoder(kind, encoder, write, capsys) -> None:
    """The command's own check passes, and a second one, here, on other images and another batch size."""
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    module, path = write(encoder=KINDS[encoder])
    status, out = run(path, kind)
    shown = capsys.readouterr()
    assert status == 0, shown.err
    assert "largest difference from the checkpoint" in shown.out
    height, width = (g * p for g, p in zip(module.encoder.grid, module.encoder.patch_size, strict=True))
    images = torch.randn(3, module.in_chans, height, width)
    with torch.no_grad():
        features = LOADERS[kind](out, shown.out)(images)
    assert_close(features, module.encode(images), rtol=0, atol=1e-4 if kind == "onnx" else 1e-5)


def _timm(out, shown):
    """The line that the command prints."""
    line = next(line for line in shown.splitlines() if "create_model" in line)
    return eval(line.partition("=")[2], {"timm": timm}).eval()


def _onnx(out, shown):
    import onnxruntime

    session = onnxruntime.InferenceSession(out)
    return lambda images: torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0])


LOADERS = {
    "timm": _timm,
    "hf": _timm,
    "safetensors": lambda out, shown: hjepa_pl.load_encoder(out),
    "torch-export": lambda out, shown: lambda images: torch.export.load(out).module()(images)[0],
    "onnx": _onnx,
}


def test_every_format_is_tested() -> None:
    assert set(FORMATS) == set(LOADERS) == set(SUFFIX)


@pytest.mark.parametrize("kind", ["timm", "safetensors", "hf"])
def test_load_encoder_reads_the_exports(kind, write) -> None:
    """With the same geometry, statistics and features, and without the paths of the machine."""
    data = {"datasets": {"name": "folder", "root": "/home/someone/pictures"}, "mean": [0.3], "std": [0.4]}
    module, path = write(encoder=KINDS["all"], data=data)
    status, out = run(path, kind)
    assert status == 0
    before, after = hjepa_pl.load_encoder(path), hjepa_pl.load_encoder(out)
    for key in ("config", "branch", "img_size", "grid", "patch_size", "in_chans", "embed_dim", "mean", "std"):
        assert getattr(after, key) == getattr(before, key), key
    images = torch.randn(2, 1, 24, 16)
    assert_close(after(images), module.encode(images), rtol=0, atol=1e-6)
    assert after.metadata["data"]["datasets"][0]["root"] == "pictures"
    assert str(path.parent) not in json.dumps(after.metadata)
    with pytest.raises(hjepa_pl.types.ConfigError, match="holds the target encoder only"):
        hjepa_pl.load_encoder(out, branch="online")


def test_the_online_encoder_and_all_weights(write) -> None:
    module, path = write()
    images = torch.randn(2, 3, 16, 16)
    online = module.context_encoder(images)["last"].mean(1)
    status, out = run(path, "timm", "--branch", "online")
    assert status == 0
    assert_close(hjepa_pl.load_encoder(out)(images), online)
    status, out = run(path, "safetensors", "--what", "all", out=path.parent / "all.safetensors")
    assert status == 0
    assert load_file(out).keys() == torch.load(path, weights_only=True)["state_dict"].keys()
    assert_close(hjepa_pl.load_encoder(out)(images), module.encode(images))
    assert_close(hjepa_pl.load_encoder(out, branch="online")(images), online)


@pytest.mark.parametrize("kind", ["safetensors", "torch-export", pytest.param("onnx", marks=pytest.mark.slow)])
def test_the_pyramid(kind, write, capsys) -> None:
    levels = [{"cell": 1}, {"cell": 2}]
    module, path = write(levels=levels, pyramid={"dim": 8}, encoder={"depth": 3})
    for name, x in module.named_parameters():
        if "pyramid" in name:
            torch.nn.init.normal_(x.data, std=0.1)
    torch.save(torch.load(path, weights_only=True) | {"state_dict": module.state_dict()}, path)
    status, out = run(path, kind, "--what", "encoder+pyramid")
    shown = capsys.readouterr()
    assert status == 0, shown.err
    images = torch.randn(3, 3, 16, 16)
    maps = module.encode_pyramid(images)
    if kind == "torch-export":
        assert "features, tokens, map_4, map_8, map_16 = torch.export.load" in shown.out
        for ours, theirs in zip(torch.export.load(out).module()(images)[2:], maps, strict=True):
            assert_close(ours, theirs, rtol=0, atol=1e-5)
    else:
        assert kind == "onnx" or any(name.startswith("target_pyramid.") for name in load_file(out))


@pytest.mark.parametrize("dtype", [pytest.param("float16", marks=pytest.mark.slow), "bfloat16"])
@pytest.mark.parametrize("kind", ["timm", "torch-export", pytest.param("onnx", marks=pytest.mark.slow)])
def test_sixteen_bits(kind, dtype, write, capsys) -> None:
    module, path = write(encoder=KINDS["all"])
    status, out = run(path, kind, "--dtype", dtype)
    shown = capsys.readouterr()
    if (kind, dtype) == ("onnx", "bfloat16"):
        assert status == 2
        assert "--format onnx cannot hold --dtype bfloat16" in shown.err
        return
    assert status == 0, shown.err
    images = torch.randn(2, 1, 24, 16)
    with torch.no_grad():
        features = LOADERS[kind](out, shown.out)(images)
    assert features.dtype == torch.float32
    difference = (features - module.encode(images)).abs().max()
    assert 0 < difference < 0.1
    if kind == "timm":
        assert {x.dtype for x in load_file(out).values()} == {getattr(torch, dtype)}


def test_timms_own_transform_is_close_to_the_clean_one(write, tmp_path) -> None:
    """From config.json, as a user of the hub makes it; the size of an image decides the rounding."""
    _, path = write(encoder={"img_size": 32}, data={"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.2]})
    _, out = run(path, "hf")
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    gradient = torch.linspace(0, 255, 48 * 60).reshape(48, 60).to(torch.uint8)
    image = Image.fromarray(gradient.numpy()).convert("RGB")
    assert_close(transform(image), hjepa_pl.load_encoder(path).transform()(image), rtol=0, atol=2 / 255 / 0.2)


def test_a_run_that_computes_something_else_is_not_kept(write, capsys, monkeypatch) -> None:
    """A format with a defect: the weights that it writes differ by 1e-3."""
    from hjepa_pl.tools.export import timm_file

    monkeypatch.setattr(timm_file, "save", lambda state, metadata: save({k: x + 1e-3 for k, x in state.items()}))
    _, path = write()
    for kind in ("timm", "hf"):
        status, out = run(path, kind, out=path.parent / f"faulty{SUFFIX[kind]}")
        shown = capsys.readouterr()
        assert status == 1
        assert "above 1e-05; nothing was kept" in shown.err
        assert not out.exists()
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_nothing_is_left_behind_when_the_disk_is_full(write, capsys, monkeypatch) -> None:
    _, path = write()
    run(path, "hf")
    before = {p.name: p.read_bytes() for p in (path.parent / "out").iterdir()}
    monkeypatch.setattr(export_file, "measure", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left", "x")))
    status, out = run(path, "hf", "--force")
    assert (status, capsys.readouterr().err.strip()) == (2, "hjepa export: error: x cannot be written (No space left).")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["last.ckpt", "out"]


def test_what_exists_is_kept(write, capsys) -> None:
    module, path = write()
    for kind in ("hf", "timm"):
        status, out = run(path, kind)
        stamp = out.stat().st_mtime_ns
        assert status == 0
        status, _ = run(path, kind)
        assert (status, out.stat().st_mtime_ns) == (2, stamp)
        assert "exists; choose another name, or replace it with --force" in capsys.readouterr().err
        assert run(path, kind, "--force", "--branch=online")[0] == 0
        images = torch.randn(1, 3, 16, 16)
        assert_close(hjepa_pl.load_encoder(out)(images), module.context_encoder(images)["last"].mean(1))
    (path.parent / "out" / "notes.txt").write_text("mine")
    assert run(path, "hf", "--force")[0] == 2
    assert "has other files (notes.txt)" in capsys.readouterr().err


def test_wrong_requests_are_one_sentence(write, capsys) -> None:
    _, path = write(levels=[{"cell": "image"}])
    own = "tests.models.own_encoder.ConvStemEncoder"
    for kind, words, sentence in (
        ("timm", ["--branch", "target"], "has no target encoder; use online"),
        ("timm", ["--branch", "ema"], "invalid choice: 'ema'"),
        ("timm", ["--what", "all"], "--format timm cannot hold --what all, only the encoder"),
        ("hf", ["--what", "encoder+pyramid"], "the online encoder has no pyramid; train with pyramid: {}."),
        ("onnx", ["--what", "all"], "--format onnx cannot hold --what all"),
        ("torch-export", ["--what", "all"], "--format torch-export cannot hold --what all"),
        ("timm", ["--dtype", "int8"], "invalid choice: 'int8'"),
        ("timm", ["--out", "a.bin"], "invalid `--out=a.bin`: must end in .safetensors with --format timm."),
        ("timm", ["--ckpt", "none.ckpt"], "invalid `--ckpt=none.ckpt`: there is no such file or folder."),
        ("timm", ["--strict"], "unrecognized arguments: --strict"),
    ):
        status, _ = run(path, kind, *words)
        error = capsys.readouterr().err
        assert status == 2, (kind, words, error)
        assert sentence in error
        assert error.count("\n") == 1
    assert main(["export", "--format", "gguf"]) == 2
    assert "invalid choice: 'gguf'" in capsys.readouterr().err
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]
    keys = {"family": own, "img_size": 16, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 2}
    module, path = write(encoder=keys | {"num_heads": None})
    assert run(path, "timm")[0] == 2
    assert f"--format timm cannot hold encoder.family={own}" in capsys.readouterr().err
    status, out = run(path, "safetensors")
    images = torch.randn(2, 1, 16, 16)
    assert_close(hjepa_pl.load_encoder(out)(images), module.encode(images))


class Untraceable(ConvStemEncoder):
    """An encoder whose Python depends on the pixels."""

    def forward(self, images, keep=None, blocks=("last",)):
        return super().forward(images * (2 if float(images.sum()) > 1e6 else 1), keep, blocks)


@pytest.mark.parametrize("kind", ["torch-export", pytest.param("onnx", marks=pytest.mark.slow)])
def test_an_encoder_that_cannot_be_traced_is_one_sentence(kind, write, capsys) -> None:
    family = f"{__name__}.Untraceable"
    _, path = write(encoder={"family": family, "in_chans": 1, "num_heads": None})
    assert run(path, kind)[0] == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"--format {kind} cannot hold encoder.family={family}, torch.export cannot trace it (" in error
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("kind", ["torch-export", pytest.param("onnx", marks=pytest.mark.slow)])
def test_an_encoder_of_ones_own_is_a_program_too(kind, write, capsys) -> None:
    own = {"family": "tests.models.own_encoder.ConvStemEncoder", "in_chans": 1, "num_heads": None}
    module, path = write(encoder=own)
    status, out = run(path, kind)
    shown = capsys.readouterr()
    assert status == 0, shown.err
    images = torch.randn(3, 1, 16, 16)
    assert_close(LOADERS[kind](out, shown.out)(images), module.encode(images), rtol=0, atol=1e-4)


def test_a_missing_extra_names_the_command(write, capsys, monkeypatch) -> None:
    from hjepa_pl.tools.export import onnx_file

    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None if name == "onnxruntime" else True)
    assert run(write()[1], "onnx")[0] == 2
    assert "needs onnxruntime; install with: pip install 'hjepa_pl[export]'." in capsys.readouterr().err


def test_foreign_files_are_one_sentence(write, tmp_path) -> None:
    save_file({"blocks.0.norm1.weight": torch.ones(3)}, tmp_path / "foreign.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\0" * 20)
    for name, words in (("foreign", "was not written by `hjepa export`"), ("broken", "cannot be read as a safetens")):
        with pytest.raises(hjepa_pl.types.ConfigError, match=words):
            hjepa_pl.load_encoder(tmp_path / f"{name}.safetensors")


def test_help_imports_neither_torch_nor_lightning() -> None:
    code = (
        "import sys; from hjepa_pl.__main__ import main\n"
        "try: main(['export', '--help'])\n"
        "except SystemExit: pass\n"
        "print(len([m for m in sys.modules if m.split('.')[0] in ('torch', 'timm', 'lightning', 'numpy', 'pydantic')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("\n0")
    assert "torch-export" in done.stdout

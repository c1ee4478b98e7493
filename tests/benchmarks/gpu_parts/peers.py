"""The same step as others make it: the public I-JEPA code, and lightly."""

import importlib.util
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from gpu_parts.setup import Figures, Rows, RunFailed, Setup, attempt, die_with_parent, free, seconds_of
from gpu_parts.vits import measured

HERE = Path(__file__).parents[1]
SIZES = {
    "ViT-S/16 at 224": ["--img=224", "--patch=16", "--pred-depth=6", "--pred-dim=384"],
    "ViT-Ti/4 at 32": ["--img=32", "--patch=4", "--pred-depth=6", "--pred-dim=192"],
}
NAMES = {"ViT-S/16 at 224": ("small", 6, 256), "ViT-Ti/4 at 32": ("tiny", 3, 512)}
"""Size, heads of the predictor, images of a batch."""


def ijepa(setup: Setup) -> Rows:
    """Time the public code and ours in turn, at its numbers of visible and target tokens."""
    if setup.reference is None or setup.ijepa is None:
        yield "", "needs --reference SCRIPT --ijepa CHECKOUT"
        return
    # The script and the code are given: the miniature runs the smaller of the two sizes, on few images.
    for name in ("ViT-Ti/4 at 32",) if setup.miniature else SIZES:
        yield attempt(name, lambda name=name: _pairs(setup, name))


def _pairs(setup: Setup, name: str) -> Figures:
    size, heads, batch = NAMES[name]
    batch, steps, rounds = (4, 1, 1) if setup.miniature else (batch, 30, 2)
    common = [*SIZES[name], f"--batch={batch}", f"--device={setup.device}", f"--steps={steps}", "--bf16"]
    theirs, ours = [], []
    for _ in range(rounds):
        said = _run([str(setup.reference), str(setup.ijepa), f"--model=vit_{size}", *common])
        found = re.search(r"visible (\d+), targets 4x(\d+)", said)
        if found is None:
            raise RunFailed(f"{setup.reference} printed no numbers of tokens")
        visible, cells = map(int, found.groups())
        rows = max(n for n in range(1, int(cells**0.5) + 1) if cells % n == 0)
        more = [f"--visible={visible}", "--block", str(rows), str(cells // rows), f"--pred-heads={heads}"]
        theirs.append(_rate(said))
        ours.append(_rate(_run([str(HERE / "training_step.py"), f"--size={size}", *common, *more])))
    return {
        "I-JEPA images/s": statistics.median(theirs), "ours": statistics.median(ours),
        "ours / I-JEPA": statistics.median(x / y for x, y in zip(ours, theirs, strict=True)),
        "batch": batch, "visible": visible, "targets": f"4 x {cells}",
    }  # fmt: skip


def _run(command: list[str]) -> str:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, preexec_fn=die_with_parent)
    if done.returncode:
        print(done.stderr)
        raise RunFailed(f"{Path(command[0]).name}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return done.stdout


def _rate(said: str) -> float:
    found = re.search(r"([\d.]+) images/s", said)
    if found is None:
        raise RunFailed("no images/s was printed")
    return float(found[1])


def lightly(setup: Setup) -> Rows:
    """Time a step on two views with lightly's SimCLR head and loss, and ours of the image level alone."""
    if importlib.util.find_spec("lightly") is None:
        yield "", "needs the package lightly"
        return
    images = 4 if setup.miniature else 256
    ours = measured(setup, "small", images, "image alone")
    yield f"ours, image level alone, batch {images}", ours

    def theirs() -> Figures:
        figures = _lightly(setup, images)
        return figures | {"ours / lightly": ours["images/s"] / figures["images/s"]}

    yield attempt(f"lightly, SimCLR, batch {images}", theirs)


def _lightly(setup: Setup, images: int) -> dict[str, Any]:
    from lightly.loss import NTXentLoss
    from lightly.models.modules.heads import SimCLRProjectionHead
    from timm.models.vision_transformer import VisionTransformer

    side, patch, width, depth, heads = (32, 4, 48, 2, 3) if setup.miniature else (224, 16, 384, 12, 6)
    encoder = VisionTransformer(
        img_size=side, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, num_classes=0,
        class_token=False, global_pool="avg", fc_norm=False,
    )  # fmt: skip
    network = torch.nn.Sequential(encoder, SimCLRProjectionHead(width, 2048, 128)).to(setup.device)
    optimizer, loss = torch.optim.AdamW(network.parameters(), fused=True), NTXentLoss()
    views = torch.randn(2, images, 3, side, side, device=setup.device)

    def step() -> None:
        with torch.autocast(setup.device, torch.bfloat16):
            found = loss(network(views[0]), network(views[1]))
        found.backward()
        optimizer.step()
        optimizer.zero_grad()

    least, seconds = (2, 0.0) if setup.miniature else (10, 3.0)
    took = statistics.median(seconds_of(step, setup.device, least + 3, seconds)[3:])
    free(setup.device)
    return {"images/s": images / took, "ms": 1e3 * took}

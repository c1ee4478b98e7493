"""Writes golden.ckpt, a checkpoint of today for the versions to come, and golden.json, features by it.

`uv run python -m tests.backbones.make_golden`, only when a version changes checkpoints on purpose: an old file that no
longer loads is a broken promise, so keep it as golden.VERSION.ckpt.
"""

import json
from pathlib import Path

import torch

from hjepa_pl import HJEPALightningModule, __version__, load_encoder
from hjepa_pl.data.sources.embedded import digits

HERE = Path(__file__).parent


def main() -> None:
    """Write both files."""
    torch.manual_seed(0)
    encoder = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 16, "patch_size": 4, "in_chans": 1}
    module = HJEPALightningModule(
        encoder=encoder | {"position": "rope_mixed", "reg_tokens": 1, "init_values": 0.5, "qk_norm": True},
        levels=[{"cell": 1}, {"cell": "image"}],
        predictor={"embed_dim": 8, "depth": 1, "num_heads": 1},
        projector={"hidden_dim": 8, "out_dim": 4},
    )
    for name, x in module.named_parameters():
        if name.startswith("target_encoder"):
            torch.nn.init.trunc_normal_(x.data, std=0.2)
    content = {
        "pytorch-lightning_version": "2.6.6",
        "epoch": 1,
        "global_step": 2,
        "hyper_parameters": dict(module.hparams),
        "state_dict": module.state_dict(),
        "hjepa_data": {"mean": [0.4], "std": [0.3], "datasets": [{"name": "digits"}]},
    }
    torch.save(content, HERE / "golden.ckpt")
    backbone = load_encoder(HERE / "golden.ckpt")
    with torch.no_grad():
        features = backbone(backbone.transform()(digits("", "test").images[:3]))
    (HERE / "golden.json").write_text(json.dumps({"version": __version__, "features": features.tolist()}) + "\n")


if __name__ == "__main__":
    main()

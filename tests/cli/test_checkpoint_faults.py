"""Checkpoints that are damaged, forged or of another program: one sentence, status 2."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hjepa_pl.__main__ import main
from tests.cli.test_cli import config, fit  # noqa: F401 (a fixture)


def put(tree: Any, path: str, value: Any) -> None:
    *steps, last = path.split("/")
    for step in steps:
        tree = tree[int(step) if isinstance(tree, list) else step]
    if value is None:
        del tree[last]
    else:
        tree[last] = value


def spoil(name: str) -> Callable[[dict], None]:
    def change(kept: dict) -> None:
        kept["state_dict"][name].view(-1)[0] = torch.nan

    return change


def reshape_moment(kept: dict) -> None:
    state = kept["optimizer_states"][0]["state"]
    state[next(iter(state))]["exp_avg"] = torch.zeros(7, 7)


def reshape_weight(kept: dict) -> None:
    kept["state_dict"]["predictor.mask_token"] = torch.zeros(7, 7)


OF_ALL = {
    "nan": (spoil("context_encoder.vit.pos_embed"), "that are not finite (context_encoder.vit.pos_embed)"),
    "nan in a batch norm": (spoil("projector.mlp.1.running_var"), "has weights that are not finite (projector"),
    "text for weights": (lambda kept: put(kept, "state_dict", "text"), "its 'state_dict' is not a mapping"),
    "text for a weight": (lambda kept: put(kept, "state_dict/predictor.mask_token", "text"), "is not a tensor"),
    "text for settings": (lambda kept: put(kept, "hyper_parameters", "text"), "'hyper_parameters' is not a mapping"),
    "text for encoder": (lambda kept: put(kept, "hyper_parameters/encoder", "text"), "with other settings: encoder."),
    "lost weight": (
        lambda kept: put(kept, "state_dict/projector.mlp.1.running_var", None),
        'Missing key(s) in state_dict: "projector.mlp.1.running_var"); use another',
    ),
    "a later Lightning": (lambda kept: put(kept, "pytorch-lightning_version", "99.1.0"), "written by Lightning 99.1.0"),
}  # fmt: skip
OF_FIT = {
    "reshaped weight": (reshape_weight, "lacks an optimizer state in the shapes of its weights"),
    "no optimizer": (lambda kept: put(kept, "optimizer_states", None), "lacks an optimizer state"),
    "no optimizers": (lambda kept: put(kept, "optimizer_states", []), "lacks an optimizer state"),
    "empty optimizer": (lambda kept: put(kept, "optimizer_states/0/state", {}), "lacks an optimizer state"),
    "reshaped optimizer": (reshape_moment, "lacks an optimizer state"),
    "no groups": (lambda kept: put(kept, "optimizer_states/0/param_groups", []), "is damaged (ValueError: "),
    "no loops": (lambda kept: put(kept, "loops", {}), "lacks the counters of its loops"),
    "text in loops": (lambda kept: put(kept, "loops/fit_loop/epoch_progress", "text"), "lacks the counters"),
    "text for a loop": (lambda kept: put(kept, "loops/fit_loop/epoch_loop.batch_progress/current", "text"), "damaged"),
    "no step": (lambda kept: put(kept, "global_step", "text"), "lacks global_step"),
    "text for data": (lambda kept: put(kept, "hjepa_data/augmentation", "text"), "data.augmentation was text"),
    "text for callbacks": (lambda kept: put(kept, "callbacks", {"RunSummary": "text"}), "is damaged ("),
}  # fmt: skip


def test_a_forged_checkpoint_is_refused_in_one_sentence(config, capsys) -> None:  # noqa: F811
    assert fit(config, "--trainer.max_epochs=1") == 0
    whole = torch.load("results/tiny/checkpoints/last.ckpt", weights_only=True)
    wrong = []
    for name, (forge, sentence) in (OF_ALL | OF_FIT).items():
        kept = copy.deepcopy(whole)
        forge(kept)
        torch.save(kept, "forged.ckpt")
        capsys.readouterr()
        found = {"fit": fit(config, "--ckpt_path=forged.ckpt", "--experiment_name=b", "--trainer.max_epochs=2")}
        for command in ("validate", *(["predict"] if name == "nan" else [])) if name in OF_ALL else ():
            found[command] = main([command, "--config", str(config), "--ckpt_path=forged.ckpt"])
        said = capsys.readouterr().err
        refused = [line for line in said.splitlines() if line.startswith("hjepa: error: ") and sentence in line]
        if set(found.values()) != {2} or len(refused) != len(found) or Path("results/b").exists():
            wrong.append((name, found, said))
    assert not wrong, "\n".join(map(str, wrong))

"""What is trained, in one line when training starts."""

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class ModelLine(ModelSummary):
    """Prints the networks with their parameters, in the place of Lightning's table.

    That table has a column of FLOPs, which are counted on an `example_input_array` and are 0 without one, and counts of
    modules in train and eval mode; `hjepa check` has true operations.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the line."""
        networks = {name: sum(p.numel() for p in net.parameters()) for name, net in pl_module.named_children()}
        frozen = {n for n, net in pl_module.named_children() if not any(p.requires_grad for p in net.parameters())}
        _say(
            "parameters: "
            + ", ".join(
                f"{n} {_short(count)}{' (no gradient)' * (n in frozen)}" for n, count in networks.items() if count
            )
        )


@rank_zero_only
def _say(line: str) -> None:
    print(line, flush=True)


def _short(count: int) -> str:
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)

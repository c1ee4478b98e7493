"""One line with the networks and their parameters, printed when training starts."""

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class ModelLine(ModelSummary):
    """Prints the networks with their parameters, instead of Lightning's table.

    That table has a column of FLOPs that is 0 without an `example_input_array`; `hjepa check` prints the real FLOPs.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the line."""
        networks = {name: sum(p.numel() for p in net.parameters()) for name, net in pl_module.named_children()}
        frozen = {n for n, net in pl_module.named_children() if not any(p.requires_grad for p in net.parameters())}
        _print(
            "parameters: "
            + ", ".join(
                f"{n} {_short(count)}{' (no gradient)' * (n in frozen)}" for n, count in networks.items() if count
            )
        )


@rank_zero_only
def _print(line: str) -> None:
    print(line, flush=True)


def _short(count: int) -> str:
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)

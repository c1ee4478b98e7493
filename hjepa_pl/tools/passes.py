"""The passes that a step makes through its networks, and their tokens."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from hjepa_pl.modules.hjepa import HJEPALightningModule


class Encoded(NamedTuple):
    """One pass of an encoder over all images of a batch."""

    images: int
    """Views or crops that it is given, of one image."""
    tokens: int
    """Patches of each that it computes on."""


class Passes:
    """Notes the tokens of every pass of the encoders and the predictor, while it is entered.

    Args:
        module: Whose networks.
        batch_size: Images of the batch that they are given.
    """

    def __init__(self, module: HJEPALightningModule, batch_size: int) -> None:
        self.module, self.batch_size = module, batch_size
        self._encoded: dict[str, list[Encoded]] = {"context": [], "target": []}
        self._predicted = 0
        self._hooks: list[Any] = []

    def __enter__(self) -> "Passes":
        for name, net in (("context", self.module.context_encoder), ("target", self.module.target_encoder)):
            if net is not None:
                self._hooks.append(net.register_forward_hook(self._encodes(name)))
        if self.module.predictor is not None:
            self._hooks.append(self.module.predictor.register_forward_hook(self._predicts))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _encodes(self, name: str) -> Callable[..., None]:
        def note(net: nn.Module, args: Any, out: dict[Any, Tensor]) -> None:
            images, tokens = next(iter(out.values())).shape[:2]
            self._encoded[name].append(Encoded(images // self.batch_size, tokens))

        return note

    def _predicts(self, net: Any, args: Any, out: tuple[Tensor, ...]) -> None:
        context, _, targets, beside = args
        copies = targets[0].shape[1] if net.config.targets == "separate" else 1
        seen = copies * context.shape[1] + (0 if beside is None else beside.tokens.shape[1])
        self._predicted += seen + sum(x.shape[1] for x in out)

    @property
    def found(self) -> tuple[tuple[Encoded, ...], tuple[Encoded, ...], int]:
        """The passes of context and target encoder, and the predictor's tokens of an image."""
        return tuple(self._encoded["context"]), tuple(self._encoded["target"]), self._predicted

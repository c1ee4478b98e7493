"""Operations, memory and tokens of a training step, counted on fake tensors without computing it."""

import dataclasses
import statistics
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from hjepa_pl.data.augment.multicrop import ViewPlan
from hjepa_pl.masks import MaskGenerator, MaskShape
from hjepa_pl.modules.hjepa import HJEPALightningModule
from hjepa_pl.types import Counters, ViewBatch


class Encoded(NamedTuple):
    """One forward pass of an encoder."""

    images: int
    """Views or crops per image."""
    tokens: int
    """Patches of each that are encoded."""


class TokenCounter:
    """Context manager that counts the tokens of the encoders' and the predictor's forward passes.

    Args:
        module: The module.
        batch_size: Images of the batch.
    """

    def __init__(self, module: HJEPALightningModule, batch_size: int) -> None:
        self.module, self.batch_size = module, batch_size
        self._encoded: dict[str, list[Encoded]] = {"context": [], "target": []}
        self._predicted = 0
        self._hooks: list[Any] = []

    def __enter__(self) -> "TokenCounter":
        for name, net in (("context", self.module.context_encoder), ("target", self.module.target_encoder)):
            if net is not None:
                self._hooks.append(net.register_forward_hook(self._encoder_hook(name)))
        if self.module.predictor is not None:
            self._hooks.append(self.module.predictor.register_forward_hook(self._predictor_hook))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _encoder_hook(self, name: str) -> Callable[..., None]:
        def hook(net: nn.Module, args: Any, out: dict[Any, Tensor]) -> None:
            images, tokens = next(iter(out.values())).shape[:2]
            self._encoded[name].append(Encoded(images // self.batch_size, tokens))

        return hook

    def _predictor_hook(self, net: Any, args: Any, out: tuple[Tensor, ...]) -> None:
        context, _, targets, crops = args
        copies = targets[0].shape[1] if net.config.targets == "separate" else 1
        visible = copies * context.shape[1] + (0 if crops is None else crops.tokens.shape[1])
        self._predicted += (visible + sum(x.shape[1] for x in out)) * (len(context) // self.batch_size)

    @property
    def counts(self) -> tuple[tuple[Encoded, ...], tuple[Encoded, ...], int]:
        """The passes of context and target encoder, and the predictor's tokens per image."""
        return tuple(self._encoded["context"]), tuple(self._encoded["target"]), self._predicted


_LATE = 10**12
"""A step after all curricula of local crops."""


class StepCount(NamedTuple):
    """Cost of one training step of one process."""

    flops: int
    """Floating-point operations of forward and backward, two per multiply-add, without those that checkpointing
    repeats."""
    peak: int
    """Peak bytes of gradients, activations and temporaries; weights, optimizer moments and images not included."""
    context: tuple[Encoded, ...]
    """The passes of the context encoder, with gradient."""
    target: tuple[Encoded, ...]
    """The passes of the target encoder."""
    predictor: int
    """Tokens of the predictor per image, queries included; 0 without a predictor."""

    @property
    def tokens(self) -> int:
        """Tokens of the two encoders per image."""
        return sum(p.images * p.tokens for p in (*self.context, *self.target))


class Operations(TorchDispatchMode):
    """Counts floating-point operations, and the bytes of live storages.

    FlopCounterMode's formulas; in one mode, since each mode costs time at every operation.

    Args:
        known: Existing tensors, whose bytes are not counted.

    Attributes:
        flops: Two per multiply-add, of matrix products, convolutions and attention.
        alive, peak: Bytes now, and the most so far.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.alive = self.peak = 0
        self._seen = weakref.WeakSet(t.untyped_storage() for t in known)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count it and its outputs."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._seen:
            self._seen.add(storage)
            weakref.finalize(storage, self._free, storage.nbytes())
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)

    def _free(self, size: int) -> None:
        self.alive -= size


class StepCounter:
    """Counts the cost of training steps on fake tensors.

    Args:
        module: A module on the meta device; its parameters become fake tensors.
        views: The views of a batch; local crops are counted after any curriculum.
        device: The device whose kernels are counted.
        half: True if steps run under autocast to bfloat16.
    """

    def __init__(self, module: HJEPALightningModule, views: ViewPlan, device: torch.device, half: bool) -> None:
        self.module, self.views, self.device, self.half = module, views, device, half
        self._fake = FakeTensorMode()
        with self._fake:
            module._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device=device))  # type: ignore[no-untyped-call]
        module.train()

    def count(self, batch_size: int, step: int = 0) -> StepCount:
        """Return the cost of a step; `step` decides the sizes of the masks."""
        flops, peak, passes = self._run(batch_size, step)
        networks: list[Any] = [self.module.context_encoder, self.module.predictor]
        recomputing = [n for n in networks if n is not None and n.config.grad_checkpointing]
        if recomputing:
            # Again without checkpointing: operations that it repeats do not count.
            configs = [network.config for network in recomputing]
            for network in recomputing:
                network.config = dataclasses.replace(network.config, grad_checkpointing=False, checkpoint_every=1)
            flops, _, _ = self._run(batch_size, step)
            for network, config in zip(recomputing, configs, strict=True):
                network.config = config
        return StepCount(flops, peak, *passes)

    def _run(self, batch_size: int, step: int) -> tuple[int, int, tuple[tuple[Encoded, ...], tuple[Encoded, ...], int]]:
        module = self.module
        with self._fake, TokenCounter(module, batch_size) as passes:
            batch = empty_batch(module, self.views, batch_size, step, self.device)
            known = [*module.parameters(), *module.buffers(), *tree_iter(batch)]
            with Operations(t for t in known if isinstance(t, Tensor)) as counted:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                    loss, record = module.compute(batch)
                loss.backward()
                del loss, record
                if module.ema is not None:
                    module.move_target(0.5)
            module.zero_grad(set_to_none=True)
        return counted.flops, counted.peak, passes.counts


def sizes_of(views: ViewPlan) -> list[tuple[int, int]]:
    """Return the height and width of each view and crop of an image, after any curriculum."""
    return [augmenter.img_size for augmenter, _ in views.at(_LATE)]


def empty_batch(
    module: HJEPALightningModule, views: ViewPlan, images: int, step: int, device: torch.device
) -> ViewBatch:
    """Return a batch of zeros with the shapes of the data module's, after any curriculum."""
    made = tuple(torch.zeros(images, module.in_chans, *size, device=device) for size in sizes_of(views))
    label = torch.zeros(images, dtype=torch.int64, device=device)
    counters = Counters(0, step, torch.arange(images, device=device))
    boxes = None
    if views.multicrop is not None:
        boxes = torch.tensor([0.0, 0.0, 1.0, 1.0], device=device).expand(len(made), images, -1)
    return ViewBatch(made[: views.views], label, label, counters, made[views.views :], boxes)


def steps_by_shape(masks: MaskGenerator | None) -> dict[MaskShape | None, int]:
    """Return the first step of each mask shape, in the order of the masks' table."""
    if masks is None:
        return {None: 0}
    found: dict[MaskShape | None, int] = {}
    step = 0
    while len(found) < len(set(masks.shapes)):
        found.setdefault(masks.shape_of(step), step)
        step += 1
    return {shape: found[shape] for shape in masks.shapes}


class TableCount(NamedTuple):
    """Costs of the steps of a run, one for each row of the masks' table; every step draws a row."""

    steps: list[int]
    """A step with the sizes of each row."""
    counts: list[StepCount]

    @property
    def flops(self) -> float:
        """Mean operations of a step of one process."""
        return statistics.fmean(c.flops for c in self.counts)

    @property
    def tokens(self) -> float:
        """Mean tokens of the encoders per image."""
        return statistics.fmean(c.tokens for c in self.counts)

    @property
    def peak(self) -> int:
        """Peak bytes of all steps."""
        return max(c.peak for c in self.counts)

    @property
    def heaviest(self) -> int:
        """The step with the highest peak."""
        return max(zip(self.counts, self.steps, strict=True), key=lambda pair: pair[0].peak)[1]


def count_table(counter: StepCounter, batch_size: int) -> TableCount:
    """Count a step for each row of the masks' table; rows with the same numbers of tokens are counted once."""
    masks = counter.module.masks
    by_shape = steps_by_shape(masks)
    counted: dict[object, StepCount] = {}
    for shape, step in by_shape.items():
        lengths = _lengths(shape)
        if lengths not in counted:
            counted[lengths] = counter.count(batch_size, step)
    rows = [None] if masks is None else masks.shapes
    return TableCount([by_shape[r] for r in rows], [counted[_lengths(r)] for r in rows])


def _lengths(shape: MaskShape | None) -> object:
    return None if shape is None else shape.lengths

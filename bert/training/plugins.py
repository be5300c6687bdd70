"""ColossalAI's plugins behind one interface: ddp, ZeRO-1 (zero1), tensor parallelism (hybrid).

Under each of them, weights and optimizer state are loaded and saved as whole float32 tensors by the
model's names, so that a checkpoint fits every plugin and every number of ranks. The optimizer
(bert/training/optimization.py) does clipping, loss scale and norms; the plugins' own are off.
"""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from colossalai.amp.naive_amp.mixed_precision_mixin import BF16MixedPrecisionMixin
from colossalai.booster import Booster
from colossalai.booster.plugin import HybridParallelPlugin, LowLevelZeroPlugin, TorchDDPPlugin
from colossalai.shardformer.layer import DropoutForParallelInput, DropoutForReplicatedInput

from bert.training.choices import DTYPES
from bert.training.optimization import AdamWeightDecay

# No second copy of the gradients; BERT's buffers are constants.
_DDP_OPTIONS = {"gradient_as_bucket_view": True, "broadcast_buffers": False}


@dataclass
class Part:
    """What this process holds of a parameter."""

    name: str
    whole_shape: torch.Size
    weight: torch.nn.Parameter  # of the model
    master: torch.Tensor  # the optimizer updates it: float32

    def gather(self, shard: torch.Tensor) -> torch.Tensor:
        """Returns the whole tensor from each process's shard, shaped like `master`. Collective."""
        return shard.reshape(self.whole_shape)

    def shard_of(self, whole: torch.Tensor) -> torch.Tensor:
        """Returns this process's shard of a whole tensor, shaped like `master`."""
        return whole

    def weight_shard_of(self, whole: torch.Tensor) -> torch.Tensor:
        """Returns this process's shard of a whole tensor, shaped like `weight`."""
        return whole


@dataclass
class FlatPart(Part):
    """ZeRO: the weight is whole; the master is an equal share of its elements, with padding."""

    group: dist.ProcessGroup | None

    def gather(self, shard: torch.Tensor) -> torch.Tensor:
        return _gather(shard, self.group, 0)[: self.whole_shape.numel()].reshape(self.whole_shape)

    def shard_of(self, whole: torch.Tensor) -> torch.Tensor:
        size = dist.get_world_size(self.group)
        padding = -whole.numel() % size
        return F.pad(whole.flatten(), (0, padding)).chunk(size)[dist.get_rank(self.group)]


@dataclass
class SlicePart(Part):
    """Tensor parallelism: weight and master are a slice of one dimension, perhaps with padding."""

    group: dist.ProcessGroup | None

    @property
    def dimension(self) -> int:
        shapes = zip(self.weight.shape, self.whole_shape)
        return [size == whole_size for size, whole_size in shapes].index(False)

    def gather(self, shard: torch.Tensor) -> torch.Tensor:
        whole = _gather(shard, self.group, self.dimension)
        return whole.narrow(self.dimension, 0, self.whole_shape[self.dimension])

    def shard_of(self, whole: torch.Tensor) -> torch.Tensor:
        size = dist.get_world_size(self.group)
        padding = self.weight.shape[self.dimension] * size - self.whole_shape[self.dimension]
        later_dimensions = (0, 0) * (whole.dim() - 1 - self.dimension)
        padded = F.pad(whole, (*later_dimensions, 0, padding))
        return padded.chunk(size, self.dimension)[dist.get_rank(self.group)]

    weight_shard_of = shard_of


def _copy_to_cpu(tensor):
    return tensor.to("cpu", copy=True)  # also where it is there already: training changes it


def _gather(tensor, group, dimension):
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, tensor.contiguous(), group=group)
    return torch.cat(parts, dimension)


class DataParallel:
    """`--plugin=ddp`: every process has everything; float32 weights, autocast to bf16 or fp16.

    Attributes: `module`, `inner_optimizer`: those given. `model`, `optimizer`: ColossalAI's around
    them. `data_group`: the processes that together have all examples once.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        optimizer: AdamWeightDecay,
        device: torch.device,
        precision: str,
        tp_size: int,
    ):
        """module, optimizer: on the CPU, the same on every process. precision: a key of DTYPES."""
        self.module, self.inner_optimizer = module, optimizer
        self.device, self.dtype = device, getattr(torch, DTYPES[precision])
        self.data_group = dist.group.WORLD
        self._booster = Booster(plugin=self._plugin(precision, tp_size))
        self.model, self.optimizer, *_ = self._booster.boost(module, optimizer)
        self.model.train()
        self._parts = self._make_parts()

    def _plugin(self, precision, tp_size):
        return TorchDDPPlugin(**_DDP_OPTIONS)

    def _make_parts(self):
        return [
            Part(name, weight.shape, weight, weight)
            for name, weight in self.module.named_parameters()
        ]

    @property
    def num_parameters(self) -> int:
        return sum(part.whole_shape.numel() for part in self._parts)

    @property
    def bytes_per_process(self) -> int:
        """Weights, gradients and optimizer state; an update needs next to nothing in addition."""
        weights = sum(part.weight.numel() for part in self._parts)
        masters = sum(part.master.numel() for part in self._parts)
        with_gradients = 2 * weights * self._parts[0].weight.element_size()
        if self._parts[0].weight is not self._parts[0].master:
            with_gradients += 2 * 4 * masters
        return with_gradients + 2 * 4 * masters

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def no_sync(self) -> AbstractContextManager:
        """A context in which backward passes only add up gradients, without exchanging them."""
        return self._booster.no_sync(self.model, self.optimizer)

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of a loss, averaged over `data_group`, times the loss scale if any."""
        scale = self.inner_optimizer.loss_scale
        self._booster.backward(loss if scale is None else loss * scale.value, self.optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Returns a copy, {"weights", "m", "v": {name: whole float32 tensor on the CPU}, "t", ...},
        on rank 0, {} on others. Collective.
        """
        state_of = self.inner_optimizer.state
        state = {"weights": self.whole_weights()}
        for kind in "mv":
            state[kind] = self._whole(lambda part: state_of[part.master][kind])
        if dist.get_rank() != 0:
            return {}
        scale = self.inner_optimizer.loss_scale
        return state | {
            "t": _copy_to_cpu(state_of[self._parts[-1].master]["t"]),
            "loss_scale": None
            if scale is None
            else {name: _copy_to_cpu(value) for name, value in scale.state_dict().items()},
        }

    def whole_weights(self) -> dict[str, torch.Tensor]:
        """Returns copies, {name: whole float32 tensor on the CPU}, on rank 0, {} on others.
        Collective.
        """
        return self._whole(lambda part: part.master.detach())

    def _whole(self, shard: Callable[[Part], torch.Tensor]) -> dict[str, torch.Tensor]:
        """Gathers a tensor of each parameter, of which `shard` returns this process's shard."""
        tensors = ((part.name, part.gather(shard(part))) for part in self._parts)
        return {name: _copy_to_cpu(tensor) for name, tensor in tensors if dist.get_rank() == 0}

    @torch.no_grad()
    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """weights: {name: whole float32 tensor}."""
        for part in self._parts:
            whole = weights[part.name].to(self.device)
            part.master.copy_(part.shard_of(whole))
            if part.weight is not part.master:
                part.weight.copy_(part.weight_shard_of(whole))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """state: from `state_dict`, under any plugin."""
        self.load_weights(state["weights"])
        for part in self._parts:
            restored = self.inner_optimizer.state[part.master]
            for kind in "mv":
                restored[kind] = part.shard_of(state[kind][part.name].to(self.device)).clone()
            restored["t"] = state["t"].clone().to(self.device)
        if self.inner_optimizer.loss_scale is not None and state["loss_scale"] is not None:
            self.inner_optimizer.loss_scale.load_state_dict(state["loss_scale"])


class _CastModel(DataParallel):
    """zero1 and hybrid: weights in the chosen precision, the optimizer's masters in float32."""

    def __init__(self, module, *args):
        # Copies, because ColossalAI rounds and cuts them; the masters start from unrounded weights.
        weights = {name: weight.detach().clone() for name, weight in module.named_parameters()}
        self._whole_shapes = {name: weight.shape for name, weight in weights.items()}
        super().__init__(module, *args)
        self.load_weights(weights)

    def autocast(self) -> AbstractContextManager:
        return contextlib.nullcontext()


class Zero1(_CastModel):
    """`--plugin=zero1`: the optimizer's masters and moments are distributed over the processes."""

    def _plugin(self, precision, tp_size):
        # With overlap a bucket ends wherever decayed and excepted parameters alternate: gradients
        # would be exchanged almost one by one, and each backward pass would wait for the GPU.
        return LowLevelZeroPlugin(stage=1, precision=precision, overlap_communication=False)

    def _make_parts(self):
        self.optimizer.mixed_precision_mixin = None  # its loss scale
        # It would wait for the GPU, and only ColossalAI's clipping needs it.
        self.optimizer._compute_grad_norm = lambda **_: 0.0
        masters = self.optimizer.get_working_to_master_map()
        self.inner_optimizer.split_over(self.data_group, masters.values())
        return [
            FlatPart(name, shape, weight, masters[id(weight)], self.data_group)
            for (name, weight), shape in zip(
                self.module.named_parameters(), self._whole_shapes.values(), strict=True
            )
        ]


class Hybrid(_CastModel):
    """`--plugin=hybrid`: layers cut over `tp_size` consecutive ranks, which share examples."""

    def _plugin(self, precision, tp_size):
        plugin = HybridParallelPlugin(
            tp_size=tp_size, pp_size=1, zero_stage=0, precision=precision, parallel_output=False,
            **_DDP_OPTIONS,
        )  # fmt: skip
        self.data_group, self._tp_group = plugin.dp_group, plugin.tp_group
        return plugin

    def _make_parts(self):
        _use_plain_dropout(self.module)
        masters = self.optimizer.get_working_to_master_map() or {}
        if hasattr(self.optimizer, "mixed_precision"):
            self.optimizer.mixed_precision = BF16MixedPrecisionMixin()  # without a loss scale
        parts: list[Part] = []
        for name, weight in self.module.named_parameters():
            shape, master = self._whole_shapes[name], masters.get(id(weight), weight)
            if weight.shape == shape:
                parts.append(Part(name, shape, weight, master))
            else:
                parts.append(SlicePart(name, shape, weight, master, self._tp_group))
        cut = [part.master for part in parts if isinstance(part, SlicePart)]
        copied = [part.master for part in parts if not isinstance(part, SlicePart)]
        self.inner_optimizer.split_over(self._tp_group, cut)
        if dist.get_world_size(self._tp_group) > 1:
            self.inner_optimizer.average_over(self._tp_group, copied)
        return parts


def _use_plain_dropout(module):
    """Replaces ColossalAI's dropout by torch's.

    ColossalAI's draws another mask on each rank for activations that the ranks share: their copies
    of layer norms and biases would drift apart. torch's draws from the process's generator, which
    has the same seed on all ranks of a tensor-parallel group. (So the heads of all ranks drop the
    same attention weights.)
    """
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, (DropoutForParallelInput, DropoutForReplicatedInput)):
                setattr(parent, name, torch.nn.Dropout(child.p))


def parallelize(
    plugin: str,
    module: torch.nn.Module,
    optimizer: AdamWeightDecay,
    device: torch.device,
    precision: str,
    tp_size: int,
) -> DataParallel:
    """Returns the model and optimizer under a plugin of choices.PLUGINS."""
    return {"ddp": DataParallel, "zero1": Zero1, "hybrid": Hybrid}[plugin](
        module, optimizer, device, precision, tp_size
    )

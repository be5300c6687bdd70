"""ColossalAI's plugins behind one face: data parallelism (ddp), ZeRO-1 (zero1), tensor with data
parallelism (hybrid).

Whichever it is, a run's weights and optimizer state go in and out whole, in float32 and under the
model's names, so that a checkpoint fits every plugin and every number of ranks. Clipping, loss
scale and norms are the optimizer's (bert/training/optimization.py) under all three; the plugins'
own are off.
"""

import contextlib
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from colossalai.amp.naive_amp.mixed_precision_mixin import BF16MixedPrecisionMixin
from colossalai.booster import Booster
from colossalai.booster.plugin import HybridParallelPlugin, LowLevelZeroPlugin, TorchDDPPlugin
from colossalai.shardformer.layer import DropoutForParallelInput, DropoutForReplicatedInput

PLUGINS = ("ddp", "zero1", "hybrid")
# No second copy of the gradients; BERT's buffers are constants.
_DDP_OPTIONS = {"gradient_as_bucket_view": True, "broadcast_buffers": False}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Part:
    """What this process holds of a parameter.

    `weight` is the model's; `master` is what the optimizer updates, float32.
    """

    name: str
    whole_shape: torch.Size
    weight: torch.nn.Parameter
    master: torch.Tensor

    def whole(self, tensor):
        """Returns the whole tensor of which `tensor` (like `master`) is this process's part.

        Collective.
        """
        return tensor.reshape(self.whole_shape)

    def own(self, whole):
        """Returns this process's part of a whole tensor, like `master`."""
        return whole

    def own_weight(self, whole):
        """Returns this process's part of a whole tensor, like `weight`."""
        return whole


@dataclass
class FlatPart(Part):
    """ZeRO: the weight is whole; the master is an equal share of its elements, of which the last
    are padding.
    """

    group: dist.ProcessGroup

    def whole(self, tensor):
        return _gather(tensor, self.group, 0)[: self.whole_shape.numel()].reshape(self.whole_shape)

    def own(self, whole):
        size = dist.get_world_size(self.group)
        padding = -whole.numel() % size
        return F.pad(whole.flatten(), (0, padding)).chunk(size)[dist.get_rank(self.group)]


@dataclass
class SlicePart(Part):
    """Tensor parallelism: weight and master are a slice along one dimension, of which the last may
    be padding.
    """

    group: dist.ProcessGroup

    @property
    def dimension(self):
        return next(
            d
            for d, (own, whole) in enumerate(zip(self.weight.shape, self.whole_shape))
            if own != whole
        )

    def whole(self, tensor):
        return _gather(tensor, self.group, self.dimension).narrow(
            self.dimension, 0, self.whole_shape[self.dimension]
        )

    def own(self, whole):
        size = dist.get_world_size(self.group)
        padding = self.weight.shape[self.dimension] * size - self.whole_shape[self.dimension]
        before_last = (0, 0) * (whole.dim() - 1 - self.dimension)
        return F.pad(whole, (*before_last, 0, padding)).chunk(size, self.dimension)[
            dist.get_rank(self.group)
        ]

    own_weight = own


def _gather(tensor, group, dimension):
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, tensor.contiguous(), group=group)
    return torch.cat(parts, dimension)


class DataParallel:
    """`--plugin=ddp`: every process holds everything; float32 weights, arithmetic in bf16 or fp16
    by autocast.

    module: the model itself. data_group: the processes that together have all examples once.
    """

    def __init__(self, module, optimizer, device, precision, tp_size):
        """module, optimizer: as built, on the CPU, the same on every process; the optimizer is one
        of bert/training/optimization.py.
        """
        self.module, self.inner_optimizer, self.device, self.precision = (
            module,
            optimizer,
            device,
            DTYPES[precision],
        )
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
    def num_parameters(self):
        return sum(part.whole_shape.numel() for part in self._parts)

    @property
    def bytes_per_process(self):
        """(weights, gradients and optimizer state, what an update needs besides)."""
        weights, masters = (
            sum(tensor.numel() for tensor in tensors)
            for tensors in zip(*((p.weight, p.master) for p in self._parts))
        )
        has_masters = self._parts[0].weight is not self._parts[0].master
        with_gradients = 2 * (
            weights * self._parts[0].weight.element_size() + (4 * masters if has_masters else 0)
        )
        return with_gradients + 2 * 4 * masters, 2 * 4 * masters

    def autocast(self):
        return torch.autocast(
            self.device.type, self.precision, enabled=self.precision != torch.float32
        )

    def no_sync(self):
        """A context in which backward passes only add up gradients, without exchanging them."""
        return self._booster.no_sync(self.model, self.optimizer)

    def backward(self, loss):
        """Gradients of a loss, averaged over `data_group`, and multiplied by the loss scale if
        there is one.
        """
        scale = self.inner_optimizer.loss_scale
        self._booster.backward(loss if scale is None else loss * scale.value, self.optimizer)

    def state_dict(self):
        """Returns {"weights", "m", "v": {name: whole float32 tensor on the CPU}, "t", ...} on rank
        0, {} on others. Collective.
        """
        is_main = dist.get_rank() == 0
        kinds = {"weights": {}, "m": {}, "v": {}}
        for part in self._parts:
            state = self.inner_optimizer.state[part.master]
            for kind, tensors in kinds.items():
                whole = part.whole(part.master.detach() if kind == "weights" else state[kind])
                if is_main:
                    tensors[part.name] = whole.cpu()
        if not is_main:
            return {}
        scale = self.inner_optimizer.loss_scale
        return kinds | {
            "t": state["t"].cpu(),
            "loss_scale": None if scale is None else scale.state_dict(),
        }

    def whole_weights(self):
        """Returns {name: whole float32 tensor on the CPU} on rank 0, {} on others. Collective."""
        weights = ((part.name, part.whole(part.master.detach())) for part in self._parts)
        return {name: weight.cpu() for name, weight in weights if dist.get_rank() == 0}

    @torch.no_grad()
    def load_weights(self, weights):
        """Takes {name: whole float32 tensor}."""
        for part in self._parts:
            whole = weights[part.name].to(self.device)
            part.master.copy_(part.own(whole))
            if part.weight is not part.master:
                part.weight.copy_(part.own_weight(whole))

    def load_state_dict(self, state):
        """Takes what `state_dict` returned, under whatever plugin."""
        self.load_weights(state["weights"])
        for part in self._parts:
            moments = {
                kind: part.own(state[kind][part.name].to(self.device)).clone() for kind in "mv"
            }
            self.inner_optimizer.state[part.master] = moments | {
                "t": state["t"].clone().to(self.device)
            }
        if self.inner_optimizer.loss_scale is not None and state["loss_scale"] is not None:
            self.inner_optimizer.loss_scale.load_state_dict(state["loss_scale"])


class _CastModel(DataParallel):
    """What zero1 and hybrid share: the model's weights are of the precision asked for, the
    optimizer's masters float32.
    """

    def __init__(self, module, *args):
        # Copies, because boosting rounds and cuts them; the masters begin with what was not
        # rounded.
        weights = {name: weight.detach().clone() for name, weight in module.named_parameters()}
        self._whole_shapes = {name: weight.shape for name, weight in weights.items()}
        super().__init__(module, *args)
        self.load_weights(weights)

    def autocast(self):
        return contextlib.nullcontext()


class Zero1(_CastModel):
    """`--plugin=zero1`: the optimizer's masters and moments are distributed over the processes."""

    def _plugin(self, precision, tp_size):
        # Overlapping would exchange gradients almost one by one, as it ends a bucket wherever
        # decayed and excepted parameters alternate, and would wait for the GPU behind each backward
        # pass.
        return LowLevelZeroPlugin(stage=1, precision=precision, overlap_communication=False)

    def _make_parts(self):
        self.optimizer.mixed_precision_mixin = None  # its loss scale
        # Would wait for the GPU; only its own clipping uses it.
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
    """`--plugin=hybrid`: layers are cut over `tp_size` neighbouring processes, which take the same
    examples.
    """

    def _plugin(self, precision, tp_size):
        plugin = HybridParallelPlugin(
            tp_size=tp_size,
            pp_size=1,
            zero_stage=0,
            precision=precision,
            parallel_output=False,
            **_DDP_OPTIONS,
        )
        self.data_group, self._tp_group = plugin.dp_group, plugin.tp_group
        return plugin

    def _make_parts(self):
        _use_plain_dropout(self.module)
        masters = self.optimizer.get_working_to_master_map() or {}
        if hasattr(self.optimizer, "mixed_precision"):
            self.optimizer.mixed_precision = BF16MixedPrecisionMixin()  # without a loss scale
        parts = []
        for name, weight in self.module.named_parameters():
            shape, master = self._whole_shapes[name], masters.get(id(weight), weight)
            is_cut = weight.shape != shape
            parts.append(
                SlicePart(name, shape, weight, master, self._tp_group)
                if is_cut
                else Part(name, shape, weight, master)
            )
        self.inner_optimizer.split_over(
            self._tp_group, [part.master for part in parts if isinstance(part, SlicePart)]
        )
        if dist.get_world_size(self._tp_group) > 1:
            copies = [part.master for part in parts if not isinstance(part, SlicePart)]
            self.inner_optimizer.average_over(self._tp_group, copies)
        return parts


def _use_plain_dropout(module):
    """Undoes ColossalAI's dropout, which draws another mask on each rank for activations that the
    ranks share.

    Their copies of the layer norms and biases would drift apart. Plain dropout draws from the
    process's generator, which the ranks of a tensor-parallel group seed alike. (So the heads of one
    rank drop the same attention weights as those of another.)
    """
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, (DropoutForParallelInput, DropoutForReplicatedInput)):
                setattr(parent, name, torch.nn.Dropout(child.p))


def parallelize(plugin, module, optimizer, device, precision, tp_size):
    """Returns the model and optimizer under a plugin of PLUGINS."""
    return {"ddp": DataParallel, "zero1": Zero1, "hybrid": Hybrid}[plugin](
        module, optimizer, device, precision, tp_size
    )

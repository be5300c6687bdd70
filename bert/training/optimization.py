"""LAMB and AdamW by MLPerf's rules, gradient clipping, warm-up and decay."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

from bert.training import update_cpu

# Tensors with one of these in their name are neither decayed nor scaled by a trust ratio (MLPerf's
# BERT reference).
EXCEPTED = ("LayerNorm", "layer_norm", "bias")

Tensors = list[torch.Tensor]


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Returns two parameter groups: those decayed by `weight_decay`, and the excepted ones."""
    regular: Tensors = []
    excepted: Tensors = []
    for name, parameter in model.named_parameters():
        (excepted if any(part in name for part in EXCEPTED) else regular).append(parameter)
    return [
        {"params": regular, "weight_decay": weight_decay, "layer_adaptation": True},
        {"params": excepted, "weight_decay": 0.0, "layer_adaptation": False},
    ]


class AdamWeightDecay(torch.optim.Optimizer):
    """Adam with decoupled weight decay; by default without bias correction, as in MLPerf's BERT.

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w -= lr * (m / (sqrt(v) + eps) + wd * w)

    With bias correction m / (1 - b1^t) and v / (1 - b2^t) replace m and v in the last formula. g is
    the gradient clipped to a total norm of `max_grad_norm` (0: no clipping). An update with
    non-finite gradients is skipped and not counted in t. Parameters may be parts of tensors that
    are distributed over several ranks: see `split_over`.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        bias_correction: bool = False,
        max_grad_norm: float = 0.0,
        loss_scale: "LossScale | None" = None,
    ):
        """loss_scale: the gradients are divided by it."""
        super().__init__(
            groups, {"lr": lr, "betas": betas, "eps": eps, "bias_correction": bias_correction}
        )
        self.max_grad_norm, self.loss_scale = max_grad_norm, loss_scale
        self.gradient_norm: torch.Tensor  # of the last step, before clipping: float32 []
        # (process group, ids of the parameters split over it, masks of them by list of parameters)
        self._splits: list[tuple[dist.ProcessGroup | None, set[int], dict]] = []
        # (process group, parameters of which each of its ranks has a copy)
        self._copies: list[tuple[dist.ProcessGroup | None, Tensors]] = []

    def split_over(
        self, group: dist.ProcessGroup | None, parameters: Iterable[torch.Tensor]
    ) -> None:
        """Marks parameters as parts of tensors split over `group`: norms are of whole tensors."""
        self._splits.append((group, {id(parameter) for parameter in parameters}, {}))

    def average_over(
        self, group: dist.ProcessGroup | None, parameters: Iterable[torch.Tensor]
    ) -> None:
        """Marks parameters as copies, one on each rank of `group`: gradients are averaged.

        The ranks compute the same gradients, but GPU kernels add in no fixed order: the copies
        would drift apart by rounding.
        """
        self._copies.append((group, list(parameters)))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # takes no closure
        """Updates all weights; their gradients are undefined afterwards. Never waits for a GPU."""
        self._average_copies()
        factor, is_finite = self._measure_gradients()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._update(weights, group, factor, is_finite)

    def _average_copies(self):
        for group, parameters in self._copies:
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            total = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(total, group=group)
            means = (total / dist.get_world_size(group)).split(
                [gradient.numel() for gradient in gradients]
            )
            torch._foreach_copy_(
                gradients, [mean.view_as(gradient) for mean, gradient in zip(means, gradients)]
            )

    def _measure_gradients(self):
        """Returns the factor that clips all gradients, and whether all are finite, [] each."""
        weights = [
            weight
            for group in self.param_groups
            for weight in group["params"]
            if weight.grad is not None
        ]
        squares = _passes(weights).squared_norms([weight.grad for weight in weights])
        scale = 1.0 if self.loss_scale is None else self.loss_scale.value
        self.gradient_norm = self._sum_parts(weights, squares).sum().sqrt() / scale
        is_finite = self.gradient_norm.isfinite()
        factor = torch.ones_like(self.gradient_norm)
        if self.max_grad_norm > 0:
            factor *= (self.max_grad_norm / self.gradient_norm).clamp(max=1.0)
        factor /= scale
        if self.loss_scale is not None:
            self.loss_scale.update(is_finite)
        return factor, is_finite

    def _update(self, weights, group, factor, is_finite):
        """Updates the weights of one group, and their m, v and t, unless the update is skipped."""
        for weight in weights:
            if not self.state[weight]:
                zeros = {name: torch.zeros_like(weight) for name in "mv"}
                self.state[weight] |= zeros | {"t": weight.new_zeros(())}
        m, v, t = ([self.state[weight][name] for weight in weights] for name in "mvt")
        # As a list: torch would read a single tensor as a number, and wait for the GPU. Updates
        # with learning rate 0 count too.
        torch._foreach_add_(t, [is_finite.to(t[0].dtype)] * len(t))
        corrections = [torch.ones_like(factor)] * 2
        if group["bias_correction"]:
            # At least 1 even if the first update is skipped. In float64, because 1 - 0.999 has only
            # four digits in float32.
            count = t[0].double().clamp(min=1)
            corrections = [(1 - beta**count).to(factor.dtype) for beta in group["betas"]]
        scalars = torch.stack([factor, is_finite.to(factor.dtype), *corrections])

        passes = _passes(weights)
        directions = [weight.grad.contiguous() for weight in weights]
        squares = passes.compute_directions(
            weights, directions, m, v, scalars, group["betas"], group["eps"], group["weight_decay"]
        )
        ratios = self._trust_ratios(weights, squares, group)
        passes.subtract(weights, directions, ratios * is_finite * group["lr"])

    def _trust_ratios(self, weights, squares, group):
        """Returns float32 [T]. squares: of the weights and of their directions, float32 [2, T]."""
        return squares.new_ones(len(weights))

    def _sum_parts(self, weights, squares):
        """Returns the sums of squares of whole tensors. squares: of this rank, float32 [..., T]."""
        for group, ids, masks in self._splits:
            key = tuple(map(id, weights))
            if key not in masks:  # the same few lists at each step
                masks[key] = torch.tensor(
                    [id(weight) in ids for weight in weights], device=squares.device
                )
            sums = squares * masks[key]
            dist.all_reduce(sums, group=group)
            squares = torch.where(masks[key], sums, squares)
        return squares


class Lamb(AdamWeightDecay):
    """LAMB: Adam with bias correction and weight decay, times a trust ratio ||w|| / ||u||.

    Each tensor has its own ratio, which is not clamped; it is 1 if either norm is 0, and for the
    excepted tensors. Source: MLPerf's BERT reference.
    """

    def __init__(self, groups: list[dict[str, Any]], **options: Any):
        super().__init__(groups, bias_correction=True, **options)

    def _trust_ratios(self, weights, squares, group):
        if not group["layer_adaptation"]:
            return super()._trust_ratios(weights, squares, group)
        weight_norms, direction_norms = self._sum_parts(weights, squares).sqrt()
        is_usable = (weight_norms > 0) & (direction_norms > 0)
        return torch.where(is_usable, weight_norms / direction_norms, 1.0)


def _passes(weights):
    """Returns the module that works through lists of tensors on the weights' device."""
    if weights[0].is_cuda:
        from bert.training import update_triton  # triton comes with torch's packages for CUDA only

        return update_triton
    return update_cpu


class LossScale:
    """The factor of losses in fp16, so that small gradients do not vanish.

    Halved when a gradient overflows, doubled after 2,000 updates in a row without overflow, as by
    torch.amp.GradScaler, which cannot be used: ColossalAI's optimizers hide gradients from it.
    """

    INITIAL, GROWTH_INTERVAL = 2.0**16, 2000

    def __init__(self, device: torch.device | str):
        self.value = torch.tensor(self.INITIAL, device=device)  # float32 []
        self._good_updates = torch.zeros((), device=device)

    def update(self, is_finite: torch.Tensor) -> None:
        """is_finite: whether an update's gradients were finite, bool [] on the scale's device."""
        good_updates = (self._good_updates + 1) * is_finite
        is_due = good_updates >= self.GROWTH_INTERVAL
        self.value = torch.where(
            is_finite, torch.where(is_due, self.value * 2, self.value), self.value / 2
        )
        self._good_updates = torch.where(is_due, 0.0, good_updates)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"value": self.value, "good_updates": self._good_updates}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.value = state["value"].to(self.value.device)
        self._good_updates = state["good_updates"].to(self.value.device)


def learning_rate(
    step: int,
    base: float,
    num_warmup_steps: int,
    num_train_steps: int,
    poly_power: float = 1.0,
    start_warmup_step: int = 0,
) -> float:
    """Returns the rate after `step` updates: linear warm-up to `base`, then polynomial decay.

    Decay counts from step 0, not from the end of the warm-up (MLPerf's BERT reference), so the rate
    jumps there.
    """
    if step - start_warmup_step < num_warmup_steps:
        return base * (step - start_warmup_step) / num_warmup_steps
    return base * (1 - min(step, num_train_steps) / num_train_steps) ** poly_power

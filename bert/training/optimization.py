"""LAMB and AdamW by MLPerf's rules, gradient clipping, warm-up and decay."""

import torch
import torch.distributed as dist

# Tensors with one of these in their name are neither decayed nor scaled by a trust ratio (MLPerf's
# BERT reference).
EXCEPTED = ("LayerNorm", "layer_norm", "bias")


def parameter_groups(model, weight_decay):
    """Returns two parameter groups: those decayed by `weight_decay`, and the excepted ones."""
    regular, excepted = [], []
    for name, parameter in model.named_parameters():
        (excepted if any(part in name for part in EXCEPTED) else regular).append(parameter)
    return [
        {"params": regular, "weight_decay": weight_decay, "layer_adaptation": True},
        {"params": excepted, "weight_decay": 0.0, "layer_adaptation": False},
    ]


class AdamWeightDecay(torch.optim.Optimizer):
    """Adam with decoupled weight decay; without bias correction, as Google's and MLPerf's BERT have
    it, unless asked for.

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w -= lr * (m / (sqrt(v) + eps) + wd * w)

    With bias correction m / (1 - b1^t) and v / (1 - b2^t) take the places of m and v in the last
    formula. g is the gradient clipped to a total norm of `max_grad_norm` (0: not clipped). An
    update whose gradients are not finite is left out, t included. Parameters may be parts of
    tensors that several ranks share: see `split_over`.
    """

    def __init__(
        self,
        groups,
        lr=0.0,
        betas=(0.9, 0.999),
        eps=1e-6,
        bias_correction=False,
        max_grad_norm=0.0,
        loss_scale=None,
    ):
        """loss_scale: a LossScale by which the gradients are too large, or None."""
        super().__init__(
            groups, {"lr": lr, "betas": betas, "eps": eps, "bias_correction": bias_correction}
        )
        self.max_grad_norm, self.loss_scale = max_grad_norm, loss_scale
        self.gradient_norm = None  # of the last step, before clipping: float32 []
        # (process group, ids of the parameters that it shares, masks by the lists they are for)
        self._splits = []
        self._copies = []  # (process group, parameters of which each of its ranks has a copy)

    def split_over(self, group, parameters):
        """Tells that each of these parameters is one part of a tensor, whose others the other ranks
        of `group` hold.
        """
        self._splits.append((group, {id(parameter) for parameter in parameters}, {}))

    def average_over(self, group, parameters):
        """Tells that every rank of `group` has a copy of these parameters, computes the same
        gradients, and may round otherwise.

        Their gradients are averaged: what GPU kernels add in no fixed order would let the copies
        drift apart.
        """
        self._copies.append((group, list(parameters)))

    @torch.no_grad()
    def step(self, closure=None):
        """One update of all weights; their gradients are used up. Nothing here waits for a GPU."""
        self._average_copies()
        is_finite = self._clip_gradients()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                updates = self._updates(weights, group, is_finite)
                torch._foreach_mul_(updates, is_finite.to(updates[0].dtype))
                self._adapt(updates, weights, group)
                torch._foreach_add_(weights, updates, alpha=-group["lr"])

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

    def _clip_gradients(self):
        """Scales all gradients, or makes them 0 if one of them is not finite; returns whether they
        are, bool [].
        """
        weights = [
            weight
            for group in self.param_groups
            for weight in group["params"]
            if weight.grad is not None
        ]
        gradients = [weight.grad for weight in weights]
        scale = 1.0 if self.loss_scale is None else self.loss_scale.value
        self.gradient_norm = self._squared_norms(weights, gradients).sum().sqrt() / scale
        is_finite = self.gradient_norm.isfinite()
        factor = (
            (self.max_grad_norm / self.gradient_norm).clamp(max=1.0)
            if self.max_grad_norm > 0
            else 1.0
        )
        torch._foreach_mul_(gradients, self.gradient_norm.new_ones(()) * factor / scale)
        is_left_out = is_finite.logical_not()
        for gradient in gradients:
            gradient.masked_fill_(is_left_out, 0.0)  # 0 * infinity would not be 0
        if self.loss_scale is not None:
            self.loss_scale.update(is_finite)
        return is_finite

    def _updates(self, weights, group, is_finite):
        """Brings m, v and t up to date; returns the direction of each weight's update."""
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] |= {
                    "m": torch.zeros_like(weight),
                    "v": torch.zeros_like(weight),
                    "t": weight.new_zeros(()),
                }
        gradients = [weight.grad for weight in weights]
        m, v, t = ([self.state[weight][name] for weight in weights] for name in "mvt")
        # As a list: a lone tensor would be taken for a number, which waits for the GPU. Counts
        # updates with learning rate 0 too.
        torch._foreach_add_(t, [is_finite.to(t[0].dtype)] * len(t))
        for moments, beta in zip((m, v), group["betas"]):
            torch._foreach_mul_(moments, torch.where(is_finite, beta, 1.0))
        torch._foreach_add_(m, gradients, alpha=1 - group["betas"][0])
        torch._foreach_addcmul_(v, gradients, gradients, value=1 - group["betas"][1])
        corrections = 1.0, 1.0
        if group["bias_correction"]:
            # At least 1 also if the very first update is left out. In float64: 1 - 0.999 has four
            # digits in float32.
            count = t[0].double().clamp(min=1)
            corrections = [(1 - beta**count).to(m[0].dtype) for beta in group["betas"]]
        # Two lists as large as the weights, not more: this is the step's largest need of memory.
        updates, denominators = (
            torch._foreach_div(moments, by) for moments, by in zip((m, v), corrections)
        )
        torch._foreach_sqrt_(denominators)
        torch._foreach_add_(denominators, group["eps"])
        torch._foreach_div_(updates, denominators)
        torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        return updates

    def _adapt(self, updates, weights, group):
        """Scales each weight's update in place."""

    def _squared_norms(self, weights, *lists):
        """Squared Euclidean norms, over whole tensors, of one or more lists of tensors like
        `weights`: float32 [lists * T].
        """
        squares = torch.cat([squared_norms(tensors) for tensors in lists])
        for group, ids, masks in self._splits:
            key = tuple(map(id, weights)), len(lists)
            if key not in masks:  # the same few lists at each step
                masks[key] = torch.tensor(
                    [id(weight) in ids for weight in weights] * len(lists), device=squares.device
                )
            is_part = masks[key]
            sums = squares * is_part
            dist.all_reduce(sums, group=group)
            squares = torch.where(is_part, sums, squares)
        return squares


class Lamb(AdamWeightDecay):
    """LAMB: Adam with bias correction, decay added to the update, and a trust ratio ||w|| / ||u||
    for each tensor.

    The ratio is not clamped; it is 1 if either norm is 0, and for the excepted tensors. Source:
    MLPerf's BERT reference.
    """

    def __init__(self, groups, **options):
        super().__init__(groups, bias_correction=True, **options)

    def _adapt(self, updates, weights, group):
        if group["layer_adaptation"]:
            weight_norms, update_norms = (
                self._squared_norms(weights, weights, updates).sqrt().chunk(2)
            )
            is_usable = (weight_norms > 0) & (update_norms > 0)
            torch._foreach_mul_(
                updates, torch.where(is_usable, weight_norms / update_norms, 1.0).unbind()
            )


def squared_norms(tensors):
    """Squared Euclidean norm of each tensor, float32 [T]."""
    if tensors[0].is_cuda:
        return torch.stack(torch._foreach_norm(tensors)).float().square()
    # torch's own CPU norms of large float32 tensors are off by up to 1e-3.
    return torch.stack([tensor.float().pow(2).sum() for tensor in tensors])


class LossScale:
    """The factor by which losses are multiplied in fp16, lest small gradients vanish: halved when
    one overflows.

    Doubled again after 2,000 updates in a row without overflow, as torch.amp.GradScaler does it;
    that class would have to see gradients which ColossalAI's optimizers keep to themselves.
    """

    INITIAL, GROWTH_INTERVAL = 2.0**16, 2000

    def __init__(self, device):
        self.value = torch.tensor(self.INITIAL, device=device)  # float32 []
        self._good_updates = torch.zeros((), device=device)

    def update(self, is_finite):
        """Takes whether the gradients of an update were finite, bool [] on the scale's device."""
        good_updates = (self._good_updates + 1) * is_finite
        is_due = good_updates >= self.GROWTH_INTERVAL
        self.value = torch.where(
            is_finite, torch.where(is_due, self.value * 2, self.value), self.value / 2
        )
        self._good_updates = torch.where(is_due, 0.0, good_updates)

    def state_dict(self):
        return {"value": self.value, "good_updates": self._good_updates}

    def load_state_dict(self, state):
        self.value, self._good_updates = (
            state[name].to(self.value.device) for name in ("value", "good_updates")
        )


def learning_rate(
    step, base, num_warmup_steps, num_train_steps, poly_power=1.0, start_warmup_step=0
):
    """Returns the rate of the update before which `step` updates were done: linear warm-up, then
    polynomial decay.

    Decay counts from step 0, not from the end of the warm-up (MLPerf's BERT reference), so the rate
    jumps there.
    """
    if step - start_warmup_step < num_warmup_steps:
        return base * (step - start_warmup_step) / num_warmup_steps
    return base * (1 - min(step, num_train_steps) / num_train_steps) ** poly_power

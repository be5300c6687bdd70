"""LAMB and AdamW by MLPerf's rules, gradient clipping, warm-up and decay."""

import torch

# Tensors with one of these in their name are neither decayed nor scaled by a trust ratio (MLPerf's BERT reference).
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
    """Adam with decoupled weight decay; without bias correction, as Google's and MLPerf's BERT have it, unless asked for.

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w -= lr * (m / (sqrt(v) + eps) + wd * w)

    With bias correction m / (1 - b1^t) and v / (1 - b2^t) take the places of m and v in the last formula.
    """

    def __init__(self, groups, lr=0.0, betas=(0.9, 0.999), eps=1e-6, bias_correction=False):
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "bias_correction": bias_correction})

    @torch.no_grad()
    def step(self, closure=None, is_finite=True):
        """One update of all weights; none at all, also of m, v and t, if `is_finite` (bool [], on their device) is False.

        The gradients must then be 0. Nothing here waits for a GPU.
        """
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                is_applied = torch.as_tensor(is_finite, device=weights[0].device)
                updates = self._updates(weights, group, is_applied)
                self._scale(updates, weights, group, is_applied)
                torch._foreach_add_(weights, updates, alpha=-group["lr"])

    def _updates(self, weights, group, is_applied):
        """Brings m, v and t up to date; returns the direction of each weight's update."""
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] |= {"m": torch.zeros_like(weight), "v": torch.zeros_like(weight), "t": weight.new_zeros(())}
        gradients = [weight.grad for weight in weights]
        m, v, t = ([self.state[weight][name] for weight in weights] for name in "mvt")
        torch._foreach_add_(t, is_applied.to(t[0].dtype))  # counts updates with learning rate 0 too
        for moments, beta in zip((m, v), group["betas"]):
            torch._foreach_mul_(moments, torch.where(is_applied, beta, 1.0))
        torch._foreach_add_(m, gradients, alpha=1 - group["betas"][0])
        torch._foreach_addcmul_(v, gradients, gradients, value=1 - group["betas"][1])
        if group["bias_correction"]:
            # At least 1 also if the very first update is left out. In float64: 1 - 0.999 has four digits in float32.
            count = t[0].double().clamp(min=1)
            m, v = (torch._foreach_div(moments, 1 - beta**count) for moments, beta in zip((m, v), group["betas"]))
        denominators = torch._foreach_sqrt(v)
        torch._foreach_add_(denominators, group["eps"])
        updates = torch._foreach_div(m, denominators)
        torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        return updates

    def _scale(self, updates, weights, group, is_applied):
        torch._foreach_mul_(updates, is_applied.to(updates[0].dtype))


class Lamb(AdamWeightDecay):
    """LAMB: Adam with bias correction, decay added to the update, and a trust ratio ||w|| / ||u|| for each tensor.

    The ratio is not clamped; it is 1 if either norm is 0, and for the excepted tensors. Source: MLPerf's BERT reference.
    """

    def __init__(self, groups, **options):
        super().__init__(groups, bias_correction=True, **options)

    def _scale(self, updates, weights, group, is_applied):
        super()._scale(updates, weights, group, is_applied)
        if group["layer_adaptation"]:
            for update, weight in zip(updates, weights):
                weight_norm, update_norm = norm(weight), norm(update)
                is_usable = (weight_norm > 0) & (update_norm > 0)
                update.mul_(torch.where(is_usable, weight_norm / update_norm, 1.0))


def norm(tensor):
    """Euclidean norm; torch's own CPU norms of large float32 tensors are off by up to 1e-3."""
    return tensor.float().pow(2).sum().sqrt()


@torch.no_grad()
def clip_gradients(parameters, max_norm):
    """Scales all gradients by min(1, max_norm / total norm), in place; max_norm 0: no clipping.

    Returns the total norm before (0-d tensor) and whether it is finite (bool []); if it is not, all gradients become 0.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    total_norm = torch.stack([gradient.float().pow(2).sum() for gradient in gradients]).sum().sqrt()
    is_finite = total_norm.isfinite()
    scale = (max_norm / total_norm).clamp(max=1.0) if max_norm > 0 else total_norm.new_ones(())
    for gradient in gradients:
        gradient.mul_(scale).masked_fill_(~is_finite, 0.0)
    return total_norm, is_finite


def learning_rate(step, base, num_warmup_steps, num_train_steps, poly_power=1.0, start_warmup_step=0):
    """Returns the rate of the update before which `step` updates were done: linear warm-up, then polynomial decay.

    Decay counts from step 0, not from the end of the warm-up (MLPerf's BERT reference), so the rate jumps there.
    """
    if step - start_warmup_step < num_warmup_steps:
        return base * (step - start_warmup_step) / num_warmup_steps
    return base * (1 - min(step, num_train_steps) / num_train_steps) ** poly_power

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
    """Adam with decoupled weight decay and no bias correction, as Google's and MLPerf's BERT have it.

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w -= lr * (m / (sqrt(v) + eps) + wd * w)
    """

    bias_correction = False

    def __init__(self, groups, lr=0.0, betas=(0.9, 0.999), eps=1e-6):
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    update = self._update(weight, group)
                    weight.sub_(group["lr"] * self._trust_ratio(weight, update, group) * update)

    def _update(self, weight, group):
        state, (beta_1, beta_2) = self.state[weight], group["betas"]
        if not state:
            state["step"] = 0
            state["m"], state["v"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1  # counts updates with learning rate 0 too
        m = state["m"].mul_(beta_1).add_(weight.grad, alpha=1 - beta_1)
        v = state["v"].mul_(beta_2).addcmul_(weight.grad, weight.grad, value=1 - beta_2)
        if self.bias_correction:
            m, v = m / (1 - beta_1 ** state["step"]), v / (1 - beta_2 ** state["step"])
        return m / (v.sqrt() + group["eps"]) + group["weight_decay"] * weight

    def _trust_ratio(self, weight, update, group):
        return 1.0


class Lamb(AdamWeightDecay):
    """LAMB: Adam with bias correction, decay added to the update, and a trust ratio ||w|| / ||u|| for each tensor.

    The ratio is not clamped; it is 1 if either norm is 0, and for the excepted tensors. Source: MLPerf's BERT reference.
    """

    bias_correction = True

    def _trust_ratio(self, weight, update, group):
        if not group["layer_adaptation"]:
            return 1.0
        weight_norm, update_norm = norm(weight), norm(update)
        usable = (weight_norm > 0) & (update_norm > 0)
        return torch.where(usable, weight_norm / update_norm, 1.0)


def norm(tensor):
    """Euclidean norm; torch's own CPU norms of large float32 tensors are off by up to 1e-3."""
    return tensor.float().pow(2).sum().sqrt()


@torch.no_grad()
def clip_gradients(parameters, max_norm):
    """Scales all gradients by min(1, max_norm / total norm), in place; returns the total norm before (0-d tensor).

    max_norm 0: no clipping.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    total_norm = torch.stack([gradient.float().pow(2).sum() for gradient in gradients]).sum().sqrt()
    if max_norm > 0:
        scale = (max_norm / total_norm).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale)
    return total_norm


def learning_rate(step, base, num_warmup_steps, num_train_steps, poly_power=1.0, start_warmup_step=0):
    """Returns the rate of the update before which `step` updates were done: linear warm-up, then polynomial decay.

    Decay counts from step 0, not from the end of the warm-up (MLPerf's BERT reference), so the rate jumps there.
    """
    if step - start_warmup_step < num_warmup_steps:
        return base * (step - start_warmup_step) / num_warmup_steps
    return base * (1 - min(step, num_train_steps) / num_train_steps) ** poly_power

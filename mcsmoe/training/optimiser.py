"""AdamW for weights of any precision, with decay by role and a rate that warms up and falls."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mcsmoe.distributed import placed
from mcsmoe.params import Training

BETAS = (0.9, 0.98)
EPSILON = 1e-6
HALF = (torch.bfloat16, torch.float16)
FLOAT16_SCALE = 2.0**10
"""Factor of the loss if a weight is float16, in which a gradient below 6e-8 would be 0."""
MASTER = "master"


class Optimiser:
    """AdamW over the trainable parameters of `model`, for a training of `steps` steps.

    Half-precision weights have float32 copies, the masters. AdamW moves those, and the weights are the masters,
    rounded. On its own, a bfloat16 weight of 1 would never move at a rate of 1e-5: the next number below is 0.996.

    The loss must be multiplied by `scale` before the backward pass.
    """

    def __init__(self, model: nn.Module, settings: Training, steps: int) -> None:
        self._settings, self._steps = settings, steps
        self._weights = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self._masters = {
            name: nn.Parameter(value.detach().float()) if value.dtype in HALF else value
            for name, value in self._weights.items()
        }
        self._trained = [*self._masters.values()]
        # Switch casts its routers in the first forward pass; they keep to the numbers of the precision they came in.
        self._rounded = [
            (weight, self._masters[name], weight.dtype)
            for name, weight in self._weights.items()
            if weight is not self._masters[name]
        ]
        self.scale = FLOAT16_SCALE if any(dtype == torch.float16 for *_, dtype in self._rounded) else 1.0
        decaying = {name for name, value in self._weights.items() if decays(model, name, value)}
        groups = [
            {"params": [p for name, p in self._masters.items() if (name in decaying) == decay], "weight_decay": rate}
            for decay, rate in ((True, settings.weight_decay), (False, 0.0))
        ]
        self._adam = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=BETAS, eps=EPSILON, fused=True)

    @torch.no_grad()
    def step(self, number: int) -> Tensor:
        """Clip the gradients and make step `number` (from 1); return the norm that they had, a scalar.

        Gradients are None afterwards. A parameter without a gradient stays as it is.
        """
        for weight, master, _ in self._rounded:
            if weight.grad is not None:
                master.grad, weight.grad = weight.grad.float(), None
        if self.scale != 1:
            torch._foreach_div_([master.grad for master in self._trained if master.grad is not None], self.scale)
        norm = nn.utils.clip_grad_norm_(self._trained, self._settings.max_grad_norm)
        factor = rate_factor(number, self._settings.warmup_steps, self._steps)
        for group in self._adam.param_groups:
            group["lr"] = self._settings.learning_rate * factor
        self._adam.step()
        self._adam.zero_grad()
        for weight, master, precision in self._rounded:
            weight.copy_(master.to(precision))
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """Masters and what AdamW remembers: `master.NAME`, `exp_avg.NAME`, …; see `Stateful`."""
        masters = {f"{MASTER}.{n}": m.detach() for n, m in self._masters.items() if m is not self._weights[n]}
        remembered = {
            f"{kind}.{name}": value
            for name, master in self._masters.items()
            for kind, value in self._adam.state.get(master, {}).items()
        }
        return masters | remembered

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with what `tensors` returned; see `Stateful`."""
        for key, value in tensors.items():
            kind, _, name = key.partition(".")
            master = self._masters[name]
            if kind == MASTER:
                master.copy_(placed(value, master))
            elif value.shape == master.shape:
                self._adam.state[master][kind] = placed(value, master).clone()
            else:  # how many steps it took
                self._adam.state[master][kind] = value.clone().to(master.device)


def decays(model: nn.Module, name: str, value: Tensor) -> bool:
    """Whether the parameter `name` of `model` decays: it is a matrix, or a stack of matrices, that multiplies.

    Some parameters have as many axes but add or scale: biases of experts [E, f], of relative positions [buckets,
    heads] and of routers [1, E], logarithms of decay rates in state-space layers, norms of each head.
    """
    path = name.split(".")
    adds = any(part.endswith("bias") for part in path)
    scales = path[-1] == "A_log" or "norm" in type(model.get_submodule(".".join(path[:-1]))).__name__.lower()
    return value.ndim >= 2 and not adds and not scales


def rate_factor(step: int, warmup_steps: int, steps: int) -> float:
    """The share of the learning rate in step `step` (from 1) of `steps`.

    It rises linearly over `warmup_steps` steps, and then falls linearly, to 0 after the last one. A warm-up of a
    whole training or more takes the first half of it.
    """
    done, warmup = step - 1, warmup_steps if warmup_steps < steps else steps // 2
    if done < warmup:
        return (done + 1) / (warmup + 1)
    return (steps - done) / max(1, steps - warmup)

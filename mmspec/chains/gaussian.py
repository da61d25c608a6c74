"""Chains of Gaussian transitions: what a target is whose states are vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite

import torch
from torch import Tensor

from ..errors import MMSpecError
from ..settings.arguments import whole_number


class GaussianChain:
    """A random state that moves `steps` times; the next one is normal, `N(mean(state), std**2)` in every coordinate.

    Samplers of diffusion models are such chains: the model's `prediction` (a noise, a drift, a clean sample) is dear,
    and the mean that follows from it is cheap. A subclass implements `predict`, `mean` and `std`.

    Args:
        shape: the shape of a state.
        steps: transitions from the first state to the result, at least 1.
        device, dtype: where the states are, and their dtype.

    Raises:
        MMSpecError: for a value out of range.
    """

    def __init__(
        self,
        shape: Sequence[int],
        steps: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.shape = tuple(whole_number(self, lowest=1, shape=size) for size in shape)
        self.steps = whole_number(self, lowest=1, steps=steps)
        self.device, self.dtype = torch.device(device), dtype

    def predict(self, states: Tensor, steps: Tensor) -> Tensor:
        """Return what the model says of states, any number of them in one call: the dear part.

        Args:
            states: `[count, *shape]`.
            steps: `[count]` how many transitions each has behind it, from 0 to `steps - 1`.

        Returns:
            `[count, ...]` whatever `mean` reads.
        """
        raise NotImplementedError

    def mean(self, states: Tensor, steps: Tensor, prediction: Tensor) -> Tensor:
        """Return the means of the next states, `[count, *shape]`: the cheap part, which drafters call with predictions
        for other states."""
        raise NotImplementedError

    def std(self, steps: Tensor) -> Tensor:
        """Return the standard deviations of the next states, `[count]`, 0 or more: the same for every state."""
        raise NotImplementedError

    def first(self, generator: torch.Generator) -> Tensor:
        """Draw the first state of one chain, `[*shape]`: standard normal, unless a chain says otherwise."""
        return torch.randn(self.shape, generator=generator, device=self.device, dtype=self.dtype)


class AncestralChain(GaussianChain):
    """The ancestral sampler of a denoising diffusion model (DDPM, arXiv 2006.11239, equation 11 and sigma of its
    beta-tilde, section 3.2).

    Args:
        noise: `noise(states, times)`, the model: the noise in `[count, *shape]` states at `[count]` times, which go
            down from `len(betas) - 1` to 0.
        betas: the variances of the forward process, in the order of time, each between 0 and 1.
        shape, device, dtype: see `GaussianChain`.

    Raises:
        MMSpecError: for betas that are none.
    """

    def __init__(
        self,
        noise: Callable[[Tensor, Tensor], Tensor],
        betas: Sequence[float] | Tensor,
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        given = [float(beta) for beta in betas]
        if wrong := [beta for beta in given if not (isfinite(beta) and 0 < beta < 1)]:
            raise MMSpecError(f"AncestralChain: betas hold {wrong[0]}; each must lie between 0 and 1")
        super().__init__(shape, len(given), device, dtype)
        beta = torch.tensor(given, dtype=torch.float64)
        alpha_bar = (1 - beta).cumprod(0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        self.noise = noise
        self._scale = self._by_step(1 / (1 - beta).sqrt())
        self._weight = self._by_step(beta / (1 - alpha_bar).sqrt())
        self._std = self._by_step((beta * (1 - before) / (1 - alpha_bar)).sqrt())

    def _by_step(self, by_time: Tensor) -> Tensor:
        """Return a coefficient by the number of transitions that are done: time goes down."""
        return by_time.flip(0).to(self.device, self.dtype)

    def _of(self, coefficient: Tensor, steps: Tensor) -> Tensor:
        return coefficient[steps].view(-1, *[1] * len(self.shape))

    def predict(self, states: Tensor, steps: Tensor) -> Tensor:
        """Return the noise that the model sees in states."""
        return self.noise(states, self.steps - 1 - steps)

    def mean(self, states: Tensor, steps: Tensor, prediction: Tensor) -> Tensor:
        """Return the means of the next states, by equation 11."""
        return self._of(self._scale, steps) * (states - self._of(self._weight, steps) * prediction)

    def std(self, steps: Tensor) -> Tensor:
        """Return the square roots of beta-tilde, of which the last one is 0."""
        return self._std[steps]

"""Adams methods of variable step and order, each sample on its own: one evaluation a step."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.solvers._adaptive_run import AdaptiveMethod
from scoresde.solvers._circle import Circle
from scoresde.solvers._quadrature import gauss_legendre
from scoresde.solvers._step_control import Tolerance, rms, scaled

_FAR = -1e3  # where a node that does not exist yet is put: away from all others; its weights are not used


class Adams(AdaptiveMethod):
    r"""The Adams-Bashforth-Moulton pair of orders k and k + 1 for dy/dp = v(y, p), in P(EC) form.

    With the last k values of v, at unequal steps, in Newton's form of their interpolant::

        predict    y_p = y + ∫ (v through the k last)        evaluate   v_p = v(y_p, p')
        correct    y'  = y + ∫ (v through v_p and the k last)

    The corrector's last term is the error of order k, the terms before and after those of k - 1 and k + 1, so the
    order that allows the longest step is known without further evaluations (Shampine & Gordon 1975; Hairer, Nørsett &
    Wanner 1993, sections III.5 and III.7). v_p, not v(y', p'), enters the history: a step costs one evaluation.
    """

    evaluations = 1

    def __init__(self, circle: Circle, y: Tensor, p: Tensor, tolerance: Tolerance, max_order: int, safety: float):
        self.circle, self.tolerance, self.max_order, self.safety = circle, tolerance, max_order, safety
        batch, slots = y.shape[0], max_order + 1
        first = circle.slope(y, circle.at(p))
        self.finite = first.detach().reshape(batch, -1).isfinite().all(1)
        # a ring of values and their p for each sample; `newest` is the slot written last, `known` how many there are
        self.values = first.reshape(batch, 1, -1).repeat(1, slots, 1)
        self.places = p[:, None].repeat(1, slots)
        self.newest = torch.zeros(batch, dtype=torch.long, device=y.device)
        self.known = torch.ones_like(self.newest)
        self.order = torch.ones_like(self.newest)

    def first_step(self, y: Tensor) -> Tensor:
        """A step of order 1 makes an error like its square."""
        return self.tolerance.of(y).sqrt()

    def attempt(self, y: Tensor, p: Tensor, h: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict, evaluate, correct, judge."""
        slots = self.places.shape[1]
        # which slot holds the r-th newest value; read the other way round, how new the value of a slot is
        ring = (self.newest[:, None] - torch.arange(slots, device=y.device)) % slots
        unit = torch.where(h > 0, h, torch.ones_like(h))  # finished samples take steps of length 0
        past = ((self.places - p[:, None]) / unit[:, None]).gather(1, ring)  # 0, then negative
        exists = torch.arange(slots, device=y.device) < self.known[:, None]
        fake = _FAR * torch.arange(1, slots + 1, dtype=past.dtype, device=y.device)
        past = torch.where(exists, past, fake)
        k = self.order[:, None]
        predict = _newton(past, torch.ones_like(h))
        used = torch.arange(slots, device=y.device) < k
        weights = (predict * used[:, :, None]).sum(1)
        guess = y + scaled(h, self._combined(weights.gather(1, ring))).reshape(y.shape)
        new = self.circle.slope(guess, self.circle.at(target))
        self.trial = (new, torch.cat([torch.ones_like(past[:, :1]), past], 1), ring, h, target)
        terms = _newton(self.trial[1], torch.ones_like(h))  # (B, slots + 1, slots + 1): term j's weights
        used = torch.arange(slots + 1, device=y.device) <= k
        after = y + scaled(h, self._sum((terms * used[:, :, None]).sum(1), new)).reshape(y.shape)
        with torch.no_grad():
            scale = torch.maximum(self.tolerance.of(y), self.tolerance.of(after))
            error, self.factor, self.shift = self._choose(terms.detach(), new.detach(), h.detach() / scale)
        return after, error, self.factor

    def _choose(self, terms: Tensor, new: Tensor, per_unit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The error of the order in use, the factor for h, and whether the order changes, -1, 0 or 1."""
        errors = []
        for shift in (-1, 0, 1):
            j = (self.order + shift).clamp(0, self.max_order)
            row = terms.gather(1, j[:, None, None].expand(-1, 1, terms.shape[2]))[:, 0]
            errors.append((rms(self._sum(row, new)) * per_unit).nan_to_num(torch.inf, torch.inf))
        factors = [
            self.safety * error.clamp_min(1e-12) ** (-1 / (self.order + shift + 1).double())
            for shift, error in zip((-1, 0, 1), errors, strict=True)
        ]
        low, same, high = factors
        judged = (self.known > self.order) & (self.order < self.max_order)
        up = judged & (high > same) & (high > low)
        down = (self.order > 1) & (low > same) & ~up
        # in the first steps there is no value yet by which to judge the next order; it is tried
        up |= (self.known <= self.order) & (self.order < self.max_order) & (errors[1] <= 1)
        factor = torch.where(up & judged, high, torch.where(down, low, same))
        return errors[1], factor, up.long() - down.long()

    def commit(self, accepted: Tensor) -> None:
        """The value at the predicted state joins the history; the order changes."""
        new, _, _, _, target = self.trial
        slots = self.places.shape[1]
        slot = torch.where(accepted, (self.newest + 1) % slots, self.newest)
        at = torch.arange(slots, device=slot.device) == slot[:, None]
        write = at & accepted[:, None]
        self.places = torch.where(write, target[:, None], self.places)
        flat = new.reshape(new.shape[0], 1, -1)
        if new.requires_grad or self.values.requires_grad:
            self.values = torch.where(write[:, :, None], flat, self.values)
        else:
            chosen = accepted.nonzero()[:, 0]
            self.values[chosen, slot[chosen]] = flat[chosen, 0]
        self.newest = slot
        self.known = (self.known + accepted).clamp_max(slots)
        # a rejected step may lower the order, not raise it
        shift = torch.where(accepted, self.shift, self.shift.clamp_max(0))
        self.order = torch.minimum((self.order + shift).clamp(1, self.max_order), self.known)

    def between(self, y: Tensor, part: Tensor) -> Tensor:
        """From the corrector's interpolant."""
        new, nodes, _, h, _ = self.trial
        used = torch.arange(nodes.shape[1], device=y.device) <= self.order[:, None]
        weights = (_newton(nodes, part) * used[:, :, None]).sum(1)
        return y + scaled(h, self._sum(weights, new)).reshape(y.shape)

    def select(self, rows: Tensor) -> None:
        """Only these samples go on."""
        for name in ("values", "places", "newest", "known", "order"):
            setattr(self, name, getattr(self, name)[rows])

    def _combined(self, weights: Tensor) -> Tensor:
        """Σ over the ring with weights (B, slots), (B, D)."""
        return torch.bmm(weights.to(self.values.dtype)[:, None], self.values)[:, 0]

    def _sum(self, weights: Tensor, new: Tensor) -> Tensor:
        """The same with the new value first, then the ring from the newest on, (B, D)."""
        old = self._combined(weights[:, 1:].gather(1, self.trial[2]))
        return old + scaled(weights[:, 0], new.reshape(new.shape[0], -1))


def _newton(nodes: Tensor, part: Tensor) -> Tensor:
    """Term j of Newton's interpolant, integrated from 0 to ``part`` (B,), as weights of the values: (B, j, i).

    Term j is the divided difference over nodes 0..j, which is Σ_i f_i / Π_{l <= j, l ≠ i} (u_i - u_l), times
    ∫ Π_{l < j} (u - u_l) du.
    """
    m = nodes.shape[1]
    points, measure = (v.to(nodes.device) for v in gauss_legendre(7))  # exact up to degree 13
    u = part[:, None] * points
    before = torch.cat([torch.ones_like(u)[..., None], u[..., None] - nodes[:, None, :-1]], 2).cumprod(2)  # (B, Q, j)
    integral = part[:, None] * torch.einsum("q,bqj->bj", measure, before)
    gaps = nodes[:, :, None] - nodes[:, None, :]  # (B, i, l)
    same = torch.eye(m, dtype=torch.bool, device=nodes.device)
    product = torch.where(same, torch.ones_like(gaps), gaps).cumprod(2)  # (B, i, j)
    inside = ~torch.ones(m, m, dtype=torch.bool, device=nodes.device).tril(-1)  # i <= j
    return torch.where(inside, integral[:, None] / product, torch.zeros_like(product)).mT

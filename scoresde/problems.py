"""Problems with known answers: the exact score, density, classifier and flow map under any SDE, at every t::

    problem = GaussianMixture(torch.ones(2), torch.tensor([[-1.0], [1.0]]), 0.1)
    score = problem.score(sde)                      # a Score, exact in every combination
    problem.sample(1000, 0), problem.log_prob(x, sde, t), problem.label_log_prob(sde)
    Gaussian(mean, covariance).flow(sde, x, t, s)   # the probability-flow ODE in closed form
    problem.posterior(operator, y, noise_std)       # the law of x_0 given a linear measurement: again a mixture
    Empirical(data)                                 # what a network that memorises would learn

Whatever claims an accuracy is measured on one of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import checks
from scoresde.models.combination import Combination, combine
from scoresde.models.score import Score
from scoresde.noise import Noise, as_noise
from scoresde.sde import SDE, Time, signal_left

MOST_NOISE = 1e100
"""Deviation of a measurement's noise, of which squares must be numbers."""


def _weights(weights: object, count: int) -> Tensor:
    """Positive weights (count,), float64, of sum 1."""
    found = checks.real(weights, name="weights")
    checks.finite(found, name="weights")
    if found.shape != (count,):
        raise ValueError(f"weights must be ({count},) and positive, got {checks.got(found)}.")
    if not bool((found > 0).all()):
        raise ValueError(f"weights must be ({count},) and positive, got {found.tolist()}.")
    return found / found.sum()


def _points(values: object, name: str, what: str) -> Tensor:
    """Floating values (N, *event), at least one, finite."""
    found = values if isinstance(values, Tensor) else checks.real(values, name=name).to(torch.get_default_dtype())
    checks.state(found, name=name, values=True)
    if found.ndim < 2 or not found.numel():
        raise ValueError(f"{name} must be floating, {what}; got {found.dtype} {tuple(found.shape)}.")
    return found


def _plain(scale: float) -> float:
    """A finite number."""
    given = checks.number(scale, name="scale")
    if not math.isfinite(given):
        raise ValueError(f"scale must be a finite number, got {given:g}.")
    return given


class GaussianMixture:
    r"""p(x_0) = Σ_k w_k N(μ_k, C_k), for which everything is known: p_t = Σ_k w_k N(α μ_k, α² C_k + σ² I).

    Args:
        weights: (K,) positive; normalised here.
        means: (K, *event).
        covariances: (K, D, D) full, (K, D) diagonal, (K,) or a number for multiples of the identity, with D the size
            of the event flattened; positive semi-definite (0 is a point mass).

    Raises:
        ValueError: shapes that do not fit, weights or covariances that are not positive (semi-)definite.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor | float) -> None:
        self.means = _points(means, "means", "(K, *event)")
        self.weights = _weights(weights, len(self.means))
        self._log_weights = self.weights.log()
        self.event = tuple(self.means.shape[1:])
        self._mu = self.means.double().flatten(1)
        k, d = self._mu.shape
        self.covariances = cov = checks.real(covariances, name="covariances")
        checks.finite(cov, name="covariances")
        self._basis: Tensor | None = None  # (K, D, D) eigenvectors; None where the axes already are
        if cov.ndim <= 1 and cov.numel() in (1, k):
            self._spectrum = cov.reshape(-1, 1).expand(k, d)
        elif cov.shape == (k, d):
            self._spectrum = cov
        elif cov.shape == (k, d, d):
            if not torch.allclose(cov, cov.mT, rtol=1e-8, atol=1e-12):
                raise ValueError(f"covariances must be symmetric, got {checks.got(cov)} that are not.")
            self._spectrum, self._basis = torch.linalg.eigh(cov)
        else:
            raise ValueError(
                f"covariances must be ({k}, {d}, {d}), ({k}, {d}), ({k},) or a number; got {tuple(cov.shape)}."
            )
        if not bool((self._spectrum >= -1e-10 * self._spectrum.abs().max()).all()):
            raise ValueError(f"covariances must be positive semi-definite; least eigenvalue {self._spectrum.min():g}.")
        self._spectrum = self._spectrum.clamp_min(0.0)
        # The dtype of samples; scores and densities follow x.
        self.dtype = self.means.dtype

    def sample(self, n: int, noise: Noise | torch.Generator | int) -> Tensor:
        """n samples (n, *event) of p(x_0)."""
        return self.sample_labelled(n, noise)[0]

    def sample_labelled(self, n: int, noise: Noise | torch.Generator | int) -> tuple[Tensor, Tensor]:
        """n samples (n, *event), and the component (n,) of each."""
        n, source = checks.count(n, name="n", least=0), as_noise(noise, "data")
        k, d = self._mu.shape
        pick = torch.special.ndtr(source.initial((n,), dtype=torch.float64, device=torch.device("cpu")))
        label = torch.searchsorted(self.weights.cumsum(0), pick).clamp_max(k - 1)
        z = source.initial((n, d), dtype=torch.float64, device=torch.device("cpu"))
        z = z * self._spectrum[label].sqrt()
        if self._basis is not None:
            z = torch.einsum("nde,ne->nd", self._basis[label], z)
        return (self._mu[label] + z).reshape(n, *self.event).to(self.dtype), label

    def _parts(self, x: Tensor, sde: SDE | None, t: Time | None) -> tuple[Tensor, Tensor, Tensor]:
        """x_t's components: log w_k N_k(x) (B, K), coordinates (B, K, D) along each one's axes, variances there."""
        if (sde is None) != (t is None):
            raise ValueError(f"sde and t must be given together, or neither for the data; got {sde} and t = {t}.")
        if sde is None or t is None:
            checks.state(x)
            one = torch.ones((), dtype=torch.float64)
            return self._parts_at(x, one, one - one)
        return self._parts_at(x, *_schedule(x, sde, t))

    def _parts_at(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same from α and σ, () or (B,)."""
        if tuple(x.shape[1:]) != self.event:
            raise ValueError(f"x must be (B, {', '.join(map(str, self.event))}), got {tuple(x.shape)}.")
        mu, spectrum, basis, log_weights = self._as(x)
        alpha, variance = (_like(c, x).reshape(-1, 1, 1) for c in (alpha, sigma**2))
        y = x.reshape(x.shape[0], 1, mu.shape[1]) - alpha * mu
        if basis is not None:
            y = torch.einsum("bkd,kde->bke", y, basis)
        total = alpha**2 * spectrum + variance
        if checks.readable(total) and not bool((total > 0).all()):
            raise ValueError(
                "x has no density here: the covariance is singular and no noise has been added (or has been rounded "
                f"away in {x.dtype}). Ask at a time where σ(t) > 0."
            )
        constant = log_weights - 0.5 * y.shape[-1] * math.log(2 * math.pi)
        return constant - 0.5 * (y.square() / total + total.log()).sum(-1), y, total

    def _log_joint(self, x: Tensor, sde: SDE, t: Time) -> tuple[Tensor, ...]:
        """log w_k N_k(x), (B, K), first."""
        return self._parts(x, sde, t)

    def _as(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        basis = None if self._basis is None else _like(self._basis, x)
        return _like(self._mu, x), _like(self._spectrum, x), basis, _like(self._log_weights, x)

    def log_prob(self, x: Tensor, sde: SDE | None = None, t: Time | None = None) -> Tensor:
        """log p_t(x) in nats, (B,); of the data themselves without an SDE and a time."""
        return self._parts(x, sde, t)[0].logsumexp(1)

    def score(self, sde: SDE, label: int | Tensor | None = None) -> Score:
        """The exact score ∇ log p_t; with ``label``, an index or (B,), that of the component alone."""
        return MixtureScore(self, sde, label)

    def expectation(
        self, x: Tensor, sde: SDE, t: Time, wanted: Combination, label: int | Tensor | None = None
    ) -> Tensor:
        r"""The wanted combination p x̂_0 + q ε̂, (B, *event)::

            Σ_k r_k [p μ_k + (p α C_k + q σ I) (α² C_k + σ² I)⁻¹ (x - α μ_k)]

        with r_k the posterior weights of the components; 1 for ``label`` alone.
        """
        alpha, sigma = _schedule(x, sde, t)
        log_joint, y, total = self._parts_at(x, alpha, sigma)
        mu, spectrum, basis, _ = self._as(x)
        sigma = sigma.clamp_min(1e-150)  # at σ = 0, too: q σ of the score is -1
        p, q = wanted.of_predictions(alpha, sigma)
        of_cov, of_one, of_mean = (
            _like(torch.as_tensor(c, dtype=torch.float64), x).reshape(-1, 1, 1) for c in (p * alpha, q * sigma, p)
        )
        if label is None:
            share = log_joint.softmax(1)[:, :, None]
        else:
            share = torch.nn.functional.one_hot(self._label(label, x), len(self.weights))[:, :, None].to(x.dtype)
        moved = share * (of_cov * spectrum + of_one) / total * y
        mean = of_mean[:, 0] * (share[:, :, 0] @ mu)
        along = moved.sum(1) if basis is None else torch.einsum("kde,bke->bd", basis, moved)
        return (mean + along).reshape(x.shape)

    def label_log_prob(self, sde: SDE) -> Callable[[Tensor, Tensor], Tensor]:
        """The exact classifier (x, t) -> log p(k | x_t = x), (B, K)."""
        return LabelLogProb(self, sde)

    def posterior(self, operator: Tensor | Callable[[Tensor], Tensor], y: Tensor, noise_std: float) -> GaussianMixture:
        r"""The law of x_0 given y = A x_0 + N(0, noise_std² I): again a mixture (Bishop 2006, eq. 2.116)::

            S_k = A C_k Aᵀ + σ_y² I,  G_k = C_k Aᵀ S_k⁻¹,  μ_k' = μ_k + G_k (y - A μ_k),
            C_k' = (I - G_k A) C_k (I - G_k A)ᵀ + σ_y² G_k G_kᵀ,  w_k' ∝ w_k N(y; A μ_k, S_k)

        Components whose weight underflows are left out.

        Args:
            operator: A, a matrix (m, D) or a linear function of (B, *event).
            y: the measurement, of the shape of one answer of A, or (m,).
            noise_std: σ_y; 0 where no S_k is singular.

        Raises:
            ValueError: A is not linear, y does not fit, noise_std is negative, or an S_k is singular.
        """
        mu, matrix = self._mu, self._matrix(operator)
        measured, m = checks.real(y, name="y").flatten(), matrix.shape[0]
        if measured.shape != (m,):
            raise ValueError(f"y must hold the {m} numbers that A answers for one sample, got {checks.got(y)}.")
        checks.finite(measured, name="y")
        noise_std = checks.not_negative(noise_std, name="noise_std")
        if noise_std > MOST_NOISE:
            raise ValueError(
                f"noise_std must be at most {MOST_NOISE:g}, so that its square is a number, got {noise_std:g}."
            )
        cov = self._covariances()
        total = matrix @ cov @ matrix.mT + noise_std**2 * torch.eye(m, dtype=torch.float64)
        factor, failed = torch.linalg.cholesky_ex(total)
        # a pivot that is rounding alone: what it stands for is known from the measurements before it
        pivots, largest = factor.diagonal(dim1=1, dim2=2).square(), total.diagonal(dim1=1, dim2=2).amax(1, keepdim=True)
        if bool(failed.any()) or bool((pivots < 100 * m * torch.finfo(torch.float64).eps * largest).any()):
            raise ValueError("A C Aᵀ + noise_std² I is singular: measure with noise, or drop repeated measurements.")
        gain = torch.cholesky_solve(matrix @ cov, factor).mT  # (K, D, m)
        residual = measured - mu @ matrix.mT  # (K, m)
        complement = torch.eye(mu.shape[1], dtype=torch.float64) - gain @ matrix
        white = torch.linalg.solve_triangular(factor, residual[..., None], upper=False)[..., 0]
        log_weights = self.weights.log() - 0.5 * white.square().sum(1) - factor.diagonal(dim1=1, dim2=2).log().sum(1)
        weights = (log_weights - log_weights.max()).exp()
        means = mu + torch.einsum("kdm,km->kd", gain, residual)
        covariances = complement @ cov @ complement.mT + noise_std**2 * gain @ gain.mT
        some = weights > 1e-300
        means = means[some].reshape(-1, *self.event).to(self.dtype)
        return GaussianMixture(weights[some], means, 0.5 * (covariances + covariances.mT)[some])

    def _matrix(self, operator: Tensor | Callable[[Tensor], Tensor]) -> Tensor:
        """A as a matrix (m, D), float64."""
        d = self._mu.shape[1]
        if isinstance(operator, Tensor):
            checks.state(operator, name="operator", values=True)
            if operator.ndim != 2 or operator.shape[1] != d:
                raise ValueError(f"operator, the matrix A, must be (m, {d}), got {tuple(operator.shape)}.")
            return operator.double().cpu()
        checks.function(operator, name="operator", what="of (B, *event), or a matrix")
        probe = torch.linspace(1, 2, d, dtype=torch.float64)[None]
        basis = torch.cat([torch.eye(d, dtype=torch.float64), probe, 0 * probe]).reshape(d + 2, *self.event)
        answer = operator(basis)
        if not isinstance(answer, Tensor) or len(answer) != d + 2:
            raise ValueError(
                f"operator must answer a tensor with a row for each sample, here {d + 2}; it answered "
                f"{checks.got(answer)}."
            )
        columns = answer.detach().reshape(d + 2, -1).double()
        matrix = columns[:d].mT
        # a few roundings of a sum of D terms
        slack = 1e-12 * float(columns.abs().max()) * d
        if not torch.allclose(matrix @ probe[0], columns[d], rtol=0, atol=slack) or bool((columns[d + 1] != 0).any()):
            raise ValueError("the exact posterior is known for linear A only, and this A is not: A(Σ c_i e_i) differs "
                             "from Σ c_i A(e_i), or A(0) from 0.")  # fmt: skip
        return matrix

    def _covariances(self) -> Tensor:
        """(K, D, D)."""
        if self._basis is None:
            return torch.diag_embed(self._spectrum)
        return (self._basis * self._spectrum[:, None]) @ self._basis.mT

    def tilted_log_prob(
        self, x: Tensor, label: int | Tensor, scale: float, sde: SDE | None = None, t: Time | None = None
    ) -> Tensor:
        """log p_t(x) + scale · log p(label | x_t = x), (B,): not normalised; of the data without t."""
        joint, scale = self._parts(x, sde, t)[0], _plain(scale)
        chosen = joint.log_softmax(1).gather(1, self._label(label, x)[:, None])[:, 0]
        return joint.logsumexp(1) + scale * chosen

    def tilted_sample(self, label: int, scale: float, n: int, noise: Noise | torch.Generator | int) -> Tensor:
        """n exact samples (n, *event) of the density ∝ p(x_0) p(label | x_0)^scale, scale >= 0, by rejection.

        At scale >= 1 the component proposes and p(label | x)^(scale - 1) accepts; below, p and p(label | x)^scale.

        Raises:
            ValueError: scale negative, where the density need not exist; or so few accepted that it would not end.
        """
        n, scale = checks.count(n, name="n", least=0), checks.not_negative(scale, name="scale")
        label = checks.whole(label, name="label", least=0, most=len(self.weights) - 1)
        source = as_noise(noise, "data")
        chosen = slice(label, label + 1)
        basis = self._covariances() if self._basis is not None else self._spectrum
        alone = GaussianMixture(torch.ones(1), self.means[chosen], basis[chosen])
        proposal, power = (alone, scale - 1) if scale >= 1 else (self, scale)
        kept: list[Tensor] = []
        found, asked = 0, 0
        while found < n:
            x = proposal.sample(max(256, 2 * (n - found)), source)
            uniform = torch.special.ndtr(source.initial((len(x),), dtype=torch.float64, device=torch.device("cpu")))
            log_accept = power * self._parts(x.double(), None, None)[0].log_softmax(1)[:, label]
            kept.append(x[uniform.log() < log_accept])
            found, asked = found + len(kept[-1]), asked + len(x)
            if asked > 10**7 and found < 1e-5 * asked:
                raise ValueError(
                    f"of {asked} proposals only {found} were accepted: class {label} hardly ever explains its own at "
                    f"scale {scale:g}. Take a smaller scale, or components that lie further apart."
                )
        return torch.cat([self.means.new_zeros(0, *self.event), *kept])[:n]

    def _label(self, label: int | Tensor, x: Tensor) -> Tensor:
        chosen = checks.integers(label, name="label", least=0, most=len(self.weights) - 1).to(x.device)
        if chosen.shape not in ((), x.shape[:1]):
            raise ValueError(
                f"label must be one number or one for each sample, ({len(x)},); got {tuple(chosen.shape)}."
            )
        return chosen.expand(x.shape[0])


class Gaussian(GaussianMixture):
    """p(x_0) = N(mean, covariance), with the closed-form flow of its probability-flow ODE.

    Args:
        mean: (*event).
        covariance: (D, D), (D,) diagonal, or a number.
    """

    def __init__(self, mean: Tensor, covariance: Tensor | float) -> None:
        mean = _points(mean[None] if isinstance(mean, Tensor) else [mean], "mean", "(*event) with an axis at least")
        found = checks.real(covariance, name="covariance")
        checks.finite(found, name="covariance")
        dim = mean[0].numel()
        if found.shape not in ((), (dim,), (dim, dim)):
            raise ValueError(f"covariance must be ({dim}, {dim}), ({dim},) or a number; got {checks.got(found)}.")
        try:
            super().__init__(torch.ones(1), mean, found[None] if found.ndim else found)
        except ValueError as error:
            raise ValueError(str(error).replace("covariances", "covariance")) from error

    def moments(self, sde: SDE, t: Time) -> tuple[Tensor, Tensor]:
        """Mean (*event) and covariance (D, D) of x_t, float64; t is a single time."""
        time = checks.time(t, checks.instance(sde, SDE, name="sde").t_max, what=type(sde).__name__)
        if time.ndim:
            raise ValueError(f"t must be a single time, got shape {tuple(time.shape)}.")
        alpha, sigma = sde.alpha(time), sde.sigma(time)
        total = (alpha**2 * self._spectrum[0] + sigma**2).double()
        basis = torch.eye(len(total), dtype=torch.float64) if self._basis is None else self._basis[0]
        return alpha * self._mu[0].reshape(self.event), (basis * total) @ basis.mT

    def flow(self, sde: SDE, x: Tensor, t: Time, s: Time) -> Tensor:
        """Where the probability-flow ODE carries x (B, *event) from time t to time s, exactly.

        Along each axis of the covariance, with v(t) = α² λ + σ²: x_s = α_s μ + sqrt(v(s)/v(t)) (x - α_t μ).
        """
        _, y, before = self._parts_at(x, *_schedule(x, sde, t))
        s = checks.time(s, sde.t_max, name="s", what=type(sde).__name__)
        checks.same_batch(s, x, name="s")
        mu, _, basis, _ = self._as(x)
        alpha, variance = sde.alpha(s).to(x).reshape(-1, 1, 1), (sde.sigma(s) ** 2).to(x).reshape(-1, 1, 1)
        y = y * ((alpha**2 * self._spectrum.to(x) + variance) / before).sqrt()
        if basis is not None:
            y = torch.einsum("kde,bke->bkd", basis, y)
        return (alpha * mu + y)[:, 0].reshape(x.shape)


class Empirical:
    r"""The empirical law of a finite data set: p_t = Σ_i w_i N(α x_i, σ² I), what a network that memorises would learn.

    Args:
        data: (N, *event).
        weights: (N,) positive, equal unless given.
    """

    def __init__(self, data: Tensor, weights: Tensor | None = None) -> None:
        self.data = _points(data, "data", "(N, *event) with N >= 1")
        self.weights = _weights(torch.ones(len(self.data)) if weights is None else weights, len(self.data))
        self.event = tuple(self.data.shape[1:])

    def sample(self, n: int, noise: Noise | torch.Generator | int) -> Tensor:
        """n samples (n, *event), with replacement."""
        n = checks.count(n, name="n", least=0)
        pick = as_noise(noise, "data").initial((n,), dtype=torch.float64, device=torch.device("cpu"))
        index = torch.searchsorted(self.weights.cumsum(0), torch.special.ndtr(pick))
        return self.data[index.clamp_max(len(self.data) - 1)]

    def _log_joint(self, x: Tensor, sde: SDE, t: Time) -> tuple[Tensor, Tensor, Tensor]:
        """log w_i N(x; α x_i, σ² I) (B, N), α and σ² as (B or 1, 1)."""
        checks.state(x)
        if tuple(x.shape[1:]) != self.event:
            raise ValueError(f"x must be (B, {', '.join(map(str, self.event))}), got {tuple(x.shape)}.")
        checks.instance(sde, SDE, name="sde")
        time = checks.time(t, sde.t_max, what=type(sde).__name__)
        checks.same_batch(time, x)
        if checks.readable(time) and not bool((sde.sigma(time) > 0).all()):
            raise ValueError(f"the data themselves have no density: ask at a time where σ(t) > 0, got t = {t}.")
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # as the state of a run is
        alpha, sigma = (v.to(x).reshape(-1, 1) for v in (sde.alpha(time), sde.sigma(time)))
        d = math.prod(self.event)
        # differences are taken before squaring; of x/α where one cdist must serve a batch of times
        flat, data = x.reshape(len(x), d), self.data.to(x).reshape(len(self.data), -1)
        if len(alpha) == 1:
            far = torch.cdist(flat, alpha * data, compute_mode="donot_use_mm_for_euclid_dist")
        else:
            signal = signal_left(alpha, sigma)
            over = torch.where(signal, alpha, torch.ones_like(alpha))
            far = torch.cdist(flat / over, data, compute_mode="donot_use_mm_for_euclid_dist") * over
            far = torch.where(signal, far, flat.norm(dim=1, keepdim=True))  # α = 0: as far from each
        log_normal = -0.5 * (far / sigma) ** 2 - d * (sigma.log() + 0.5 * math.log(2 * math.pi))
        return log_normal + self.weights.log().to(x), alpha, sigma**2

    def log_prob(self, x: Tensor, sde: SDE, t: Time) -> Tensor:
        """log p_t(x) in nats, (B,); t > 0, since the data themselves have no density."""
        return self._log_joint(x, sde, t)[0].logsumexp(1)

    def score(self, sde: SDE) -> Score:
        """The exact score (α Σ_i r_i x_i - x) / σ², r_i the posterior weight of each data point."""
        return EmpiricalScore(self, sde)

    def label_log_prob(self, sde: SDE) -> Callable[[Tensor, Tensor], Tensor]:
        """(x, t) -> log probability, (B, N), that x_t = x came from each data point."""
        return LabelLogProb(self, sde)

    def expectation(self, x: Tensor, sde: SDE, t: Time, wanted: Combination) -> Tensor:
        """A x + B x̂_0, x̂_0 = Σ_i r_i x_i."""
        log_joint = self._log_joint(x, sde, t)[0]
        mean = (log_joint.softmax(1) @ self.data.to(log_joint).reshape(len(self.data), -1)).to(x)
        of_x, of_x0 = wanted.of_x0(*_schedule(x, sde, t))
        return combine((of_x, x), (of_x0, mean.reshape(x.shape)))


def _like(c: Tensor, x: Tensor) -> Tensor:
    """``c.to(x)``, of x's dtype and beside it."""
    return c if c.dtype == x.dtype and c.device == x.device else c.to(x)


def _schedule(x: Tensor, sde: SDE, t: Time) -> tuple[Tensor, Tensor]:
    """α and σ at a checked time, float64, () or (B,)."""
    checks.state(x)
    checks.instance(sde, SDE, name="sde")
    time = checks.time(t, sde.t_max, what=type(sde).__name__)
    checks.same_batch(time, x)
    return sde.alpha(time), sde.sigma(time)


@dataclass(frozen=True, eq=False)
class MixtureScore(Score):
    """The exact score of a mixture; made by :meth:`GaussianMixture.score`."""

    problem: GaussianMixture
    sde: SDE
    label: int | Tensor | None = None

    def __post_init__(self) -> None:
        checks.fields(self)
        if self.label is not None:
            checks.integers(self.label, name="label", least=0, most=len(self.problem.weights) - 1)

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        return self.problem.expectation(x, self.sde, t, wanted, self.label)


@dataclass(frozen=True, eq=False)
class EmpiricalScore(Score):
    """The exact score of a finite data set; made by :meth:`Empirical.score`."""

    problem: Empirical
    sde: SDE

    def __post_init__(self) -> None:
        checks.fields(self)

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        return self.problem.expectation(x, self.sde, t, wanted)


@dataclass(frozen=True, eq=False)
class LabelLogProb:
    """(x, t) -> log p(k | x_t = x), (B, K): the exact classifier of a problem."""

    problem: GaussianMixture | Empirical
    sde: SDE

    def __post_init__(self) -> None:
        checks.fields(self)
        if not isinstance(self.problem, (GaussianMixture, Empirical)):
            raise TypeError(f"problem must be a GaussianMixture or an Empirical, got {checks.got(self.problem)}.")

    def __call__(self, x: Tensor, t: Time) -> Tensor:
        return self.problem._log_joint(x, self.sde, t)[0].log_softmax(1)

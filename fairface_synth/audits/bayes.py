"""Bayesian linear regression under the published priors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_args

import numpy as np

from ..errors import DataError
from ..tables import TableLike
from .columns import check_count, import_audit
from .design import ModelData, check_design, check_varies
from .results import Result, find_row, number_text, range_text, result_text

Prior = Literal["colour", "traits", "category"]
PRIORS: tuple[str, ...] = get_args(Prior)

SIGMA = "sigma"
_SHARED_SCALE = ("masculinity", "femininity")  # methods of arXiv 2402.09786: these two traits share one scale
_RHAT = 1.01  # Vehtari et al. 2021
_FEW_SAMPLES = 400  # ESS below which a 95 % interval's limits are themselves noisy (Vehtari et al. 2021)


@dataclass(frozen=True)
class Posterior:
    """Posterior of a coefficient: `mean`, `sd`, 95 % highest-density interval, split R̂, effective sample size."""

    term: str
    mean: float
    sd: float
    low: float
    high: float
    rhat: float
    ess: float


@dataclass(frozen=True, eq=False)
class BayesLinreg(Result):
    """A Bayesian linear regression.

    Attributes:
        rows: posterior of "intercept", each coefficient, and "sigma" (SD of the residuals).
        prior: which of the published sets; priors: what it says, a line each, and how its gaps were filled.
        n, chains, draws: rows of the table; chains and draws kept of each.
        worst_rhat, least_ess: over the coefficients, sigma and the prior's own parameters (these on a log scale).
        divergences: divergent transitions of NUTS.
        samples: {term: draws [chains, draws]}.
        missing, notes: rows left out, caveats; a sampler that did not converge is noted here (and warned of).
    """

    rows: tuple[Posterior, ...]
    prior: str
    priors: tuple[str, ...]
    n: int
    chains: int
    draws: int
    worst_rhat: float
    least_ess: float
    divergences: int
    missing: Mapping[str, int]
    notes: tuple[str, ...]
    samples: Mapping[str, np.ndarray] = field(repr=False, metadata={"plain": False})

    @property
    def converged(self) -> bool:
        """R̂ ≤ 1.01 everywhere and no divergence."""
        return self.worst_rhat <= _RHAT and self.divergences == 0

    def __getitem__(self, term: str) -> Posterior:
        return find_row(self.rows, "term", term)

    def __str__(self) -> str:
        rows = [
            [
                r.term,
                number_text(r.mean, 3),
                number_text(r.sd, 3),
                range_text(r.low, r.high),
                f"{r.rhat:.3f}",
                f"{r.ess:.0f}",
            ]
            for r in self.rows
        ]
        run = f"n = {self.n}; {self.chains} chains × {self.draws} draws; R̂ ≤ {self.worst_rhat:.3f}, "
        run += f"ESS ≥ {self.least_ess:.0f}, {self.divergences} divergences."
        head = ["term", "mean", "SD", "95 % HDI", "R̂", "ESS"]
        return result_text(self, head, rows, run, "Priors: " + "; ".join(self.priors) + ".")


def bayes_linreg(
    table: TableLike,
    numeric: Sequence[str] = (),
    factors: Sequence[str] = (),
    prior: Prior = "colour",
    score: str = "score",
    chains: int = 4,
    draws: int = 1000,
    warmup: int = 1000,
    seed: int = 0,
    reference: Mapping[str, str] | None = None,
    shared_scale: Sequence[Sequence[str]] | None = None,
) -> BayesLinreg:
    """Bayesian linear regression of the score with one of the published sets of priors (methods 3.5 a–c).

    - "colour": σ, σ_c, σ₀ ~ Half-t(10, scale 1); β_c ~ N(0, σ_c); β₀ ~ N(ȳ, σ₀).
    - "traits": β_c ~ Student-t(ν, μ_c, σ_c); ν ~ Half-Cauchy(2); μ_c ~ N(0, σ_c); σ_c ~ Half-t(10, 1); columns
      masculinity and femininity share one σ_c; σ ~ Half-Normal(SD of the score), which the code uses in the end (the
      slides: Half-Cauchy(10)). β₀'s prior was not found: that of "colour".
    - "category": every level of every factor has a coefficient beside the intercept, β_l ~ Student-t(ν, 0, SD of the
      scores in that group); ν ~ Half-Normal(10). Not found: σ ~ Half-Normal(SD of the score), β₀ ~ N(ȳ, SD of the
      score). Only the priors tell the levels from the intercept: compare levels with one another.

    Indices are read as written: a scale σ_c for each coefficient, one ν for all. Columns enter as they are (no
    standardising), so the priors mean what they say per unit of the column: σ_c ~ Half-t(10, 1) suits colours on
    0–255 and ratings on 1–7, and shrinks the coefficient of a luminance on 0–1 (about 100) towards 0.

    All three are normal given their scales, so the coefficients are integrated out in closed form; NUTS (numpyro, on
    the CPU, 64 bit) samples σ, the scales and ν, and each draw of these gives one exact draw of the coefficients.
    This samples the published posterior itself, without the funnels that slow its usual parametrisation.

    Args:
        table: anything `read_table` reads.
        numeric: columns that enter as they are ("colour", "traits").
        factors: columns of labels: treatment-coded, or for "category" all levels.
        prior: "colour", "traits" or "category".
        score: the scored column.
        chains, draws, warmup: chains, draws kept and thrown away of each (the paper: 10 chains × 50,000 draws).
        seed: the same seed gives the same draws.
        reference: {factor: level to compare with}, as in `ols`; not for "category".
        shared_scale: "traits" only: groups of columns that share a σ_c; by default masculinity with femininity.

    Raises:
        DataError: numpyro is not installed, unknown columns or prior, collinear columns ("colour", "traits"),
            numeric columns under "category", fewer than 4 draws.

    Warns:
        RuntimeWarning: R̂ above 1.01, or divergences; also noted in the result.
    """
    if prior not in PRIORS:
        raise DataError("unknown prior", expected=", ".join(PRIORS), got=prior)
    for name, value, least in (("chains", chains, 1), ("draws", draws, 4), ("warmup", warmup, 1)):
        check_count(name, value, least)
    data = ModelData.read(table, score, numeric, factors)
    check_varies(data.y, score)
    model = _published_model(prior, data, reference, shared_scale)
    sampled, spread, divergences = _nuts(model, data.y, chains, draws, warmup, seed)
    beta = _draw_coefficients(model.X, data.y, sampled[SIGMA], spread, seed)
    samples = {name: beta[..., j] for j, name in enumerate(model.names)} | {SIGMA: sampled[SIGMA][..., 0]}
    rows = tuple(_posterior(name, x) for name, x in samples.items())
    quality = [(r.rhat, r.ess) for r in rows]
    quality += [_mixing(np.log(x[..., j])) for x in sampled.values() for j in range(x.shape[-1])]
    worst_rhat, least_ess = max(r for r, _ in quality), min(e for _, e in quality)
    notes = []
    if not worst_rhat <= _RHAT or divergences:
        what = f"the sampler has not converged: R̂ up to {worst_rhat:.3f}, {divergences} divergences"
        notes.append(f"{what}; more warmup and draws may help")
        warnings.warn(notes[0], RuntimeWarning, stacklevel=2)
    if least_ess < _FEW_SAMPLES:
        notes.append(f"only {least_ess:.0f} effective draws: the limits of the intervals are rough")
    kept = (len(data.y), chains, draws, worst_rhat, least_ess, divergences)
    return BayesLinreg(rows, prior, model.priors, *kept, data.missing, tuple(notes), samples)


@dataclass(frozen=True)
class _Model:
    """A linear model whose coefficients are normal given positive parameters: σ, scales, degrees of freedom.

    `sizes` {parameter: how many}; `known`: what the prior takes from the data. `_log_prior` gives their density and
    each coefficient's prior SD. The coefficients' prior means are 0, and ȳ for the intercept, which comes first.
    """

    kind: str
    names: list[str]
    X: np.ndarray
    priors: tuple[str, ...]
    sizes: Mapping[str, int]
    known: Mapping[str, Any]


def _published_model(
    prior: str, data: ModelData, reference: Mapping[str, str] | None, shared_scale: Sequence[Sequence[str]] | None
) -> _Model:
    if prior != "traits" and shared_scale is not None:
        raise DataError("only the prior 'traits' shares scales", got=f"shared_scale with {prior!r}")
    if prior == "category":
        return _category_model(data, reference)
    references = data.references(reference)
    names, X = data.design(data.terms("none"), references)
    if len(names) == 1:
        raise DataError("nothing to regress on", expected="at least one numeric column or factor")
    check_design(names, X, data.y)
    return _colour_model(names, X) if prior == "colour" else _traits_model(names, X, data.y, shared_scale)


def _colour_model(names: list[str], X: np.ndarray) -> _Model:
    lines = ("σ, σ_c, σ₀ ~ Half-t(10, scale 1)", "β_c ~ N(0, σ_c), a σ_c for each", "β₀ ~ N(mean score, σ₀)")
    return _Model("colour", names, X, lines, {SIGMA: 1, "scale": len(names)}, {})


def _traits_model(
    names: list[str], X: np.ndarray, y: np.ndarray, shared_scale: Sequence[Sequence[str]] | None
) -> _Model:
    slopes = names[1:]
    if shared_scale is None:
        pair = [name for name in slopes if name.lower() in _SHARED_SCALE]
        shared_scale = [pair] if len(pair) == 2 else []
    shared = [name for group in shared_scale for name in group]
    if set(shared) - set(slopes) or len(set(shared)) < len(shared):
        raise DataError("shared_scale does not fit", expected=f"groups of {', '.join(slopes)}", got=shared_scale)
    groups = [*map(tuple, shared_scale), *((name,) for name in slopes if name not in shared)]
    index = np.array([next(g for g, group in enumerate(groups) if name in group) for name in slopes])
    sd = float(y.std(ddof=1))
    together = "; ".join(f"{' and '.join(g)} share σ_c" for g in groups if len(g) > 1)
    lines: tuple[str, ...] = ("β_c ~ Student-t(ν, μ_c, σ_c), one ν for all", "ν ~ Half-Cauchy(2)", "μ_c ~ N(0, σ_c)")
    lines += ("σ_c, σ₀ ~ Half-t(10, scale 1)", *filter(None, [together]), f"σ ~ Half-Normal({sd:.4g})")
    sizes = {SIGMA: 1, "intercept_scale": 1, "scale": len(groups), "nu": 1, "stretched_w": len(slopes)}
    lines += ("β₀ ~ N(mean score, σ₀), not found in the paper",)
    return _Model("traits", names, X, lines, sizes, {"sd": sd, "index": index})


def _category_model(data: ModelData, reference: Mapping[str, str] | None) -> _Model:
    if data.numbers or not data.labels or reference:
        raise DataError(
            "the prior 'category' is for factors alone, all levels of each",
            expected="factors, no numeric columns, no reference",
            got=f"numeric {list(data.numbers)}, factors {list(data.labels)}, reference {dict(reference or {})}",
        )
    names, X = data.design(data.terms("none"), {})
    groups = [data.y[column == 1] for column in X[:, 1:].T]
    small = [name for name, group in zip(names[1:], groups, strict=True) if len(group) < 2 or np.ptp(group) == 0]
    if small:
        raise DataError("a group has no SD", expected="two different scores in each", got=", ".join(small))
    sd, sds = float(data.y.std(ddof=1)), np.array([group.std(ddof=1) for group in groups])
    lines: tuple[str, ...] = ("β_l ~ Student-t(ν, 0, SD of the group's scores), one ν for all", "ν ~ Half-Normal(10)")
    lines += (f"σ ~ Half-Normal({sd:.4g}) and β₀ ~ N(mean score, {sd:.4g}), not found in the paper",)
    return _Model("category", names, X, lines, {SIGMA: 1, "nu": 1, "stretched_w": len(sds)}, {"sd": sd, "sds": sds})


def _log_prior(kind: str, at: Mapping[str, Any], known: Mapping[str, Any]) -> tuple[Any, Any]:
    """Log density of a model's parameters, and the prior SD of each coefficient given them [p]; traced by jax."""
    dist, jnp = import_audit("numpyro.distributions"), import_audit("jax.numpy")
    half_t = dist.FoldedDistribution(dist.StudentT(10.0, 0.0, 1.0))
    if kind == "colour":
        return half_t.log_prob(at[SIGMA]).sum() + half_t.log_prob(at["scale"]).sum(), at["scale"]
    log_p = dist.HalfNormal(known["sd"]).log_prob(at[SIGMA]).sum()
    # A Student-t of scale s is a normal of variance s²/w, w ~ Gamma(ν/2, ν/2). The larger ν, the nearer w to 1: log w
    # is sampled times √(1 + ν/2), which is as wide for any ν, so that NUTS meets no funnel.
    stretch = jnp.sqrt(1 + at["nu"] / 2)
    log_w = jnp.log(at["stretched_w"]) / stretch
    w = jnp.exp(log_w)
    log_p += (dist.Gamma(at["nu"] / 2, at["nu"] / 2).log_prob(w) + log_w - log_w * stretch - jnp.log(stretch)).sum()
    if kind == "category":
        log_p += dist.HalfNormal(10.0).log_prob(at["nu"]).sum()
        return log_p, jnp.concatenate([known["sd"][None], known["sds"] / jnp.sqrt(w)])
    log_p += dist.HalfCauchy(2.0).log_prob(at["nu"]).sum()
    log_p += half_t.log_prob(at["intercept_scale"]).sum() + half_t.log_prob(at["scale"]).sum()
    spread = at["scale"][known["index"]] * jnp.sqrt(1 / w + 1)  # + 1: μ_c ~ N(0, σ_c)
    return log_p, jnp.concatenate([at["intercept_scale"], spread])


def _nuts(
    model: _Model, y: np.ndarray, chains: int, draws: int, warmup: int, seed: int
) -> tuple[dict[str, np.ndarray], np.ndarray, int]:
    """Draws of the positive parameters [chains, draws, size], of the coefficients' prior SDs, and divergences."""
    jax = import_audit("jax")
    r = y - y.mean()
    known: dict[str, Any] = {
        "XX": model.X.T @ model.X,
        "Xr": model.X.T @ r,
        "rr": r @ r,
        "n": float(len(y)),
        **model.known,
    }
    starts = np.random.default_rng(seed).uniform(-2, 2, (chains, sum(model.sizes.values())))
    # Older jax has enable_x64 among its experiments. Neither context changes a setting outside this block.
    x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else import_audit("jax.experimental").enable_x64
    with x64(True), jax.default_device(jax.devices("cpu")[0]):
        chain, keys = _chain(model.kind, tuple(model.sizes.items()), warmup, draws), jax.random.PRNGKey(seed)
        runs = [chain(key, start, known) for key, start in zip(jax.random.split(keys, chains), starts, strict=True)]
    sampled = {name: np.stack([np.asarray(at[name]) for at, *_ in runs]) for name in model.sizes}
    return sampled, np.stack([np.asarray(s) for _, s, _ in runs]), int(sum(d.sum() for *_, d in runs))


@cache  # compiling takes seconds, sampling a fraction of one
def _chain(kind: str, sizes: tuple[tuple[str, int], ...], warmup: int, draws: int) -> Callable[..., Any]:
    """Compiled: (key, start, known) to draws of the parameters, of the coefficients' prior SDs, and divergences."""
    jax, jnp, infer = import_audit("jax"), import_audit("jax.numpy"), import_audit("numpyro.infer")
    solve_triangular = import_audit("jax.scipy.linalg").solve_triangular
    ends = np.cumsum([0, *(size for _, size in sizes)])

    def parameters(u: Any) -> dict[str, Any]:
        return {name: jnp.exp(u[end - size : end]) for (name, size), end in zip(sizes, ends[1:], strict=True)}

    def chain(key: Any, start: Any, known: Mapping[str, Any]) -> Any:
        def potential(u: Any) -> Any:
            """−log prior − log p(y | parameters), the coefficients integrated out; u: logs of the parameters."""
            at = parameters(u)
            log_prior, spread = _log_prior(kind, at, known)
            sigma = at[SIGMA][0]
            L = jnp.linalg.cholesky(jnp.eye(len(spread)) + spread[:, None] * known["XX"] * spread / sigma**2)
            h = solve_triangular(L, spread * known["Xr"] / sigma**2, lower=True)
            log_p = h @ h / 2 - known["rr"] / (2 * sigma**2) - known["n"] * jnp.log(sigma)
            return jnp.log(jnp.diagonal(L)).sum() - log_p - log_prior - u.sum()

        kernel = infer.NUTS(potential_fn=potential, target_accept_prob=0.95, dense_mass=True)

        def step(state: Any, _: None) -> Any:
            state = kernel.sample(state, (), {})
            at = parameters(state.z)
            return state, (at, _log_prior(kind, at, known)[1], state.diverging)

        draw = jax.lax.scan(step, kernel.init(key, warmup, start, (), {}), None, length=warmup + draws)[1]
        return jax.tree.map(lambda x: x[warmup:], draw)

    return jax.jit(chain)


def _draw_coefficients(X: np.ndarray, y: np.ndarray, sigma: np.ndarray, spread: np.ndarray, seed: int) -> np.ndarray:
    """One exact draw of the coefficients [chains, draws, p] for each draw of σ and of their prior SDs."""
    rng = np.random.default_rng(seed)
    XX, Xr = X.T @ X, X.T @ (y - y.mean())
    beta = np.empty_like(spread)
    for chain, (s, S) in enumerate(zip(sigma, spread, strict=True)):  # a chain at a time, to save memory
        M = np.eye(len(Xr)) + S[:, :, None] * XX * S[:, None, :] / (s**2)[..., None]
        L, noise = np.linalg.cholesky(M), rng.standard_normal(S.shape)
        h = np.linalg.solve(L, (S * Xr / s**2)[..., None]) + noise[..., None]
        beta[chain] = S * np.linalg.solve(L.transpose(0, 2, 1), h)[..., 0]
    beta[..., 0] += y.mean()
    return beta


def _posterior(term: str, x: np.ndarray) -> Posterior:
    """Summary of draws [chains, draws]."""
    import_audit("numpyro")
    from numpyro.diagnostics import hpdi

    low, high = (float(v) for v in hpdi(x.reshape(-1), prob=0.95))
    return Posterior(term, float(x.mean()), float(x.std(ddof=1)), low, high, *_mixing(x))


def _mixing(x: np.ndarray) -> tuple[float, float]:
    """Split R̂ and effective sample size of draws [chains, draws]."""
    from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

    return float(split_gelman_rubin(x)), float(effective_sample_size(x))

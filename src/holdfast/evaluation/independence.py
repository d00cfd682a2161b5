"""Does a representation depend on what it should not? Permutation tests, their power and size, and the verdict.

`permutation_test` asks whether ``R`` depends on ``U`` given strata, `paired_test` whether two sides of the same cases
differ. `power_within` and `power_of_pairs` plant dependence of stated size in the data's own rows. `verdict` puts both
together: a test that found nothing says something only where it would have found what matters.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from holdfast.core.errors import NumericsError
from holdfast.core.results import Metric, Verdict
from holdfast.evaluation.dependence import Array, Statistic, Variable, distances_from_products
from holdfast.evaluation.exchange import Pairs, Spread, Within
from holdfast.evaluation.intervals import Interval, clopper_pearson

ALPHA = 0.05
ENOUGH = 0.8
"""Power that a verdict needs."""
DRAWS = 999
"""Draws that a verdict needs at least."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a permutation test found. Without a ``p_value`` nothing could be tested, and ``reason`` says why."""

    statistic: float | None
    """HSIC (biased), or distance correlation, of what strata leave over."""
    effect: float | None
    """Observed less the mean draw, as a share of the largest possible value: 0 on average where nothing depends."""
    p_value: float | None
    n: int
    """Rows (or pairs) that could change places."""
    left_out: int
    """Rows that could not: alone in their stratum, or no two values of ``U`` in it."""
    share: float | None
    """Share of the variance of ``R`` that lies within strata (or pairs): what ``effect`` is an effect on."""
    draws: int
    seed: int
    kind: Statistic
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Trial:
    """How power is simulated."""

    shifts: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    """Planted, in standard deviations of ``R`` along the direction, within strata."""
    simulations: int = 200
    draws: int = 199
    """Of the test within each simulation; the real test has more, so its power is a little higher."""
    alpha: float = ALPHA
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Power:
    """How often planted dependence was found; shift 0 is the null, so its rate is the size of the test."""

    found: dict[float, int]
    """Simulations in which the test rejected, by planted shift."""
    trial: Trial = field(default_factory=Trial)
    reason: str = ""
    """Why nothing could be simulated, or empty."""

    def rate(self, shift: float) -> float:
        """Share of simulations in which a planted shift was found.

        Raises:
            NumericsError: that shift was not simulated.
        """
        if shift not in self.found:
            raise NumericsError(
                f"Power: got no simulations of a shift of {shift:g}, expected one of "
                f"{', '.join(f'{known:g}' for known in self.found)}. Do: add it to the trial's shifts."
            )
        return self.found[shift] / self.trial.simulations

    def interval(self, shift: float) -> Interval:
        """Clopper-Pearson interval of `rate` at 95 %."""
        self.rate(shift)
        return clopper_pearson(self.found[shift], self.trial.simulations)

    @property
    def size(self) -> float:
        """Share of simulations without dependence in which the test rejected."""
        return self.rate(0.0)


def permutation_test(
    R_nd: NDArray[np.float64],
    U: Variable,
    strata: Sequence[Hashable] | None = None,
    *,
    statistic: Statistic = "hsic",
    draws: int = DRAWS,
    seed: int = 0,
) -> Finding:
    """Test ``R _||_ U | strata``: ``U`` changes places among rows of the same stratum, nothing else moves.

    Exact at any number of rows where, within a stratum, ``U`` was given to rows at random or by us. What it averages
    over strata can cancel: an effect that points another way in every stratum is found only as a change of shape.

    Args:
        R_nd: Representations, ``(n, d)``.
        U: What they may not depend on: ``n`` labels, or numbers ``(n, q)``.
        strata: One key a row, e.g. the pair of system instruction and data; ``None`` puts all rows into one.
        statistic: ``hsic`` or ``distance_correlation``.
        draws: Permutations.
        seed: Of the permutations.
    Returns:
        Rows that cannot change places are left out and counted. Without a p-value, but with a reason: no rows that
        can, too few ways to change places, or ``R`` constant in each stratum.
    Raises:
        NumericsError: values not finite, unequal numbers of rows, too many rows, or no draws.
    Reference:
        Gretton et al., NeurIPS 2007; p-value: Phipson & Smyth, Stat. Appl. Genet. Mol. Biol. 9 (2010); what strata
        leave over: Zhang et al., Kernel-based Conditional Independence Test, UAI 2011, for discrete conditions.
    """
    _check_draws(draws)
    rows = Within(R_nd, U, strata, statistic)
    if rows.reason:
        return Finding(None, None, None, rows.n, rows.left_out, None, draws, seed, statistic, rows.reason)
    D2_nn = distances_from_products(rows.R_nd @ rows.R_nd.T)
    spread = rows.spread(D2_nn, np.arange(rows.n), draws, np.random.default_rng(seed))
    return _finding(spread, rows.n, rows, draws, seed)


def paired_test(
    A_nd: NDArray[np.float64],
    B_nd: NDArray[np.float64],
    clusters: Sequence[Hashable] | None = None,
    *,
    statistic: Statistic = "hsic",
    draws: int = DRAWS,
    seed: int = 0,
) -> Finding:
    """Test whether both sides of the same cases have one distribution: sides change places within pairs.

    It is `permutation_test` with a stratum for each pair and the side for ``U``: any difference that has a common
    direction or shape is found, not only of means.

    Args:
        A_nd: One side, e.g. representations of the benign inputs.
        B_nd: The other side of the same cases, e.g. attacked.
        clusters: One key a pair; pairs of one cluster change sides together. Needed where pairs share a row, as one
            benign input against several attacks does; ``None`` makes every pair its own cluster.
        statistic: ``hsic`` or ``distance_correlation``.
        draws: Random signs.
        seed: Of the signs.
    Returns:
        ``n`` counts pairs. Without a p-value, but with a reason: too few clusters, or no side differs.
    Raises:
        NumericsError: values not finite, unequal numbers of rows, too many rows, or no draws.
    Reference:
        Signs at random: Fisher, The Design of Experiments (1935), 21; the statistic: Gretton et al., A Kernel
        Two-Sample Test, JMLR 13 (2012).
    """
    _check_draws(draws)
    pairs = Pairs(A_nd, B_nd, clusters, statistic)
    if pairs.reason:
        return Finding(None, None, None, pairs.n, 0, None, draws, seed, statistic, pairs.reason)
    spread = pairs.spread(pairs.half_nd @ pairs.half_nd.T, np.ones(pairs.n), draws, np.random.default_rng(seed))
    return _finding(spread, 2 * pairs.n, pairs, draws, seed)


def _finding(spread: Spread, points: int, design: Within | Pairs, draws: int, seed: int) -> Finding:
    scaled = spread.observed / points**2
    if design.kind == "distance_correlation":
        scaled = float(np.sqrt(max(0.0, spread.observed) / spread.most)) if spread.most else 0.0
    left_out = design.left_out if isinstance(design, Within) else 0
    return Finding(scaled, spread.effect, spread.p_value, design.n, left_out, design.share, draws, seed, design.kind)


def _check_draws(draws: int) -> None:
    if draws < 1:
        raise NumericsError(f"Permutation test: got draws={draws}, expected at least 1. Do: take {DRAWS}.")


def power_within(
    R_nd: NDArray[np.float64],
    U: Variable,
    strata: Sequence[Hashable] | None = None,
    *,
    statistic: Statistic = "hsic",
    trial: Trial | None = None,
) -> Power:
    r"""Power and size of `permutation_test` on these rows, by planting dependence in them.

    Each simulation permutes ``U`` within strata, so that nothing depends, then adds
    :math:`s \sigma_u c(U) u` to ``R``: ``u`` a random direction, :math:`\sigma_u` the standard deviation of ``R`` along
    it within strata, ``s`` the stated shift. ``c`` gives a random half of the labels one half and the others minus
    one half, and standardises numbers along a random direction. Then it tests, as `permutation_test` would.

    Args:
        R_nd: As in `permutation_test`, as are ``U``, ``strata`` and ``statistic``.
        trial: Shifts, simulations, draws, level and seed.
    Returns:
        Counts by shift, 0 among them, or a reason.
    Raises:
        NumericsError: as `permutation_test`.
    """
    trial = trial or Trial()
    rows = Within(R_nd, U, strata, statistic)
    if rows.reason:
        return Power({}, trial, rows.reason)
    G_nn = rows.R_nd @ rows.R_nd.T
    freedom = rows.n - len(rows.starts)

    def simulate(rng: np.random.Generator) -> Callable[[float], Spread]:
        order_n = rows.orders(1, rng)[0]
        along_n = rows.R_nd @ _direction(rows.R_nd.shape[1], rng)
        sd = np.sqrt(np.square(along_n).sum() / freedom)
        code_n = rows.planted(order_n, rng)
        draws_seed = rng.integers(2**63)

        def shifted(shift: float) -> Spread:
            D2_nn = distances_from_products(_planted(G_nn, along_n, shift * sd * code_n))
            return rows.spread(D2_nn, order_n, trial.draws, np.random.default_rng(draws_seed))

        return shifted

    return _simulated(simulate, trial)


def power_of_pairs(
    A_nd: NDArray[np.float64],
    B_nd: NDArray[np.float64],
    clusters: Sequence[Hashable] | None = None,
    *,
    statistic: Statistic = "hsic",
    trial: Trial | None = None,
) -> Power:
    """Power and size of `paired_test` on these pairs: sides change places at random, then one side is shifted.

    As in `power_within`, of which this is the case with pairs for strata: a shift is in standard deviations of ``R``
    within pairs, along a random direction.
    """
    trial = trial or Trial()
    pairs = Pairs(A_nd, B_nd, clusters, statistic)
    if pairs.reason:
        return Power({}, trial, pairs.reason)
    G_nn = pairs.half_nd @ pairs.half_nd.T

    def simulate(rng: np.random.Generator) -> Callable[[float], Spread]:
        signs_n = pairs.signs(1, rng)[0][pairs.cluster_n]
        along_n = signs_n * (pairs.half_nd @ _direction(pairs.half_nd.shape[1], rng))
        sd = np.sqrt(2 * np.square(along_n).mean())
        null_nn = G_nn * signs_n * signs_n[:, None]
        draws_seed = rng.integers(2**63)

        def shifted(shift: float) -> Spread:
            moved_nn = _planted(null_nn, along_n, np.full(pairs.n, shift * sd / 2))
            return pairs.spread(moved_nn, np.ones(pairs.n), trial.draws, np.random.default_rng(draws_seed))

        return shifted

    return _simulated(simulate, trial)


def _simulated(simulate: Callable[[np.random.Generator], Callable[[float], Spread]], trial: Trial) -> Power:
    """Every shift in every simulation; a simulation's direction and draws are the same for all its shifts."""
    _check_draws(trial.draws)
    if trial.simulations < 1 or 1 / (1 + trial.draws) > trial.alpha:
        raise NumericsError(
            f"Power: got {trial.simulations} simulations and {trial.draws} draws at level {trial.alpha:g}, expected at "
            "least one simulation, and draws of which one can be significant. Do: take 200 of 199."
        )
    found = dict.fromkeys((0.0, *trial.shifts), 0)
    for stream in np.random.SeedSequence(trial.seed).spawn(trial.simulations):
        shifted = simulate(np.random.default_rng(stream))
        for shift in found:
            found[shift] += shifted(shift).p_value <= trial.alpha
    return Power(found, trial)


def _direction(d: int, rng: np.random.Generator) -> Array:
    drawn_d = rng.standard_normal(d)
    return np.asarray(drawn_d / np.linalg.norm(drawn_d), dtype=np.float64)


def _planted(G_nn: Array, along_n: Array, added_n: Array) -> Array:
    """Inner products of rows to which ``added`` was added along a unit direction, where they were at ``along``."""
    cross_nn = np.outer(along_n, added_n)
    return G_nn + cross_nn + cross_nn.T + np.outer(added_n, added_n)


def verdict(
    tested: Finding, power: Power, *, name: str, null: str, shift: float, alpha: float = ALPHA, enough: float = ENOUGH
) -> Verdict:
    """Independence ``holds``, fails, or nothing can be said.

    It fails where the p-value is at most ``alpha``. It holds where it is not, and a planted ``shift`` is found with at
    least ``enough`` power. It abstains where nothing could be tested, where power is too low, and where the test
    rejects too often without dependence (the interval of its size lies above ``alpha``).

    Args:
        tested: Of `permutation_test` or `paired_test`.
        power: Of the same rows, at level ``alpha``, with ``shift`` among its shifts.
        name: Of the verdict, e.g. ``causal/independence/layers.3``.
        null: The null hypothesis in words, e.g. ``R _||_ U_instr | S, U_data``.
        shift: The planted dependence that must not be missed, in standard deviations.
        alpha: Level of the test.
        enough: Power needed.
    Raises:
        NumericsError: fewer draws than 999, power at another level, or ``shift`` not simulated.
    """
    if tested.draws < DRAWS or power.trial.alpha != alpha:
        raise NumericsError(
            f"Verdict {name}: got {tested.draws} draws and power at level {power.trial.alpha:g}, expected at least "
            f"{DRAWS} draws and level {alpha:g}. Do: test and simulate again with those."
        )
    if tested.p_value is None or tested.effect is None or power.reason:
        return _said(tested, name, null, None, f"cannot be tested: {tested.reason or power.reason}")
    low, _ = power.interval(0.0)
    strength = (
        f"a planted shift of {shift:g} sd is found in {power.rate(shift):.0%} of {power.trial.simulations} trials"
    )
    facts = f"effect {tested.effect:.4f} on {tested.share:.1%} of the variance; {strength}; size {power.size:.3f}"
    if tested.left_out:
        facts += f"; {tested.left_out} rows left out that cannot change places"
    if low > alpha:
        return _said(tested, name, null, None, f"abstains (rejects too often without dependence); {facts}")
    if tested.p_value <= alpha:
        return _said(tested, name, null, False, f"fails; {facts}")
    if power.rate(shift) < enough:
        return _said(tested, name, null, None, f"abstains (power too low, {enough:.0%} needed); {facts}")
    return _said(tested, name, null, True, f"holds; {facts}")


def _said(tested: Finding, name: str, null: str, holds: bool | None, reason: str) -> Verdict:
    return Verdict(
        name=name,
        holds=holds,
        statistic=tested.statistic,
        p_value=tested.p_value,
        n=tested.n,
        null=f"{null} ({tested.kind.replace('_', ' ')})",
        draws=tested.draws,
        reason=reason,
    )


def figures(tested: Finding, power: Power, *, name: str) -> list[Metric]:
    """Effect, size and the power curve as metrics: ``NAME/effect``, ``NAME/size``, ``NAME/power`` by shift."""
    effect = Metric(
        name=f"{name}/effect",
        value=tested.effect,
        n=tested.n,
        higher_is_better=False,
        reason=tested.reason,
        seed=tested.seed,
    )
    rates = []
    for shift, found in power.found.items():
        low, high = power.interval(shift)
        rates.append(
            Metric(
                name=f"{name}/power" if shift else f"{name}/size",
                value=power.rate(shift),
                n=power.trial.simulations,
                k=found,
                low=low,
                high=high,
                interval="clopper-pearson 95%",
                higher_is_better=bool(shift),
                seed=power.trial.seed,
                group=f"shift={shift:g}" if shift else "",
            )
        )
    return [effect, *rates]

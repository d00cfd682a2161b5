"""How good a critic is on answers it has not seen, and the gates against one that says nothing of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.core.errors import NumericsError
from holdfast.core.results import Metric
from holdfast.evaluation.intervals import clustered_bootstrap, wilson
from holdfast.methods.token_weighting.critic_config import CriticConfig
from holdfast.methods.token_weighting.rewards import Answers

VARIANCE = 1e-6
"""Least variance of the values within an answer, as a share of that of the rewards."""
SPREAD = 1e-4
"""Least distance between the largest and the smallest weight."""
CORRELATION = 0.7
"""Largest correlation, by absolute value, with the place in the answer."""
_ADVICE = "Do: train it on more answers or for more epochs, or choose another scorer."


@dataclass(frozen=True, slots=True)
class Figures:
    """Of a critic, on the questions held out."""

    n_answers: int
    """Answers learnt from."""
    n_held_out: int
    n_pairs: int
    """Pairs of a better and a worse answer to one question, among those held out."""
    n_right: int
    """Pairs in which the better answer has the higher value, on average over its tokens."""
    low: float | None
    high: float | None
    """Interval of ``n_right / n_pairs``: resampled by question, or where all pairs agree Wilson's, a question each."""
    explained: float | None
    """Share of the variance of rewards that the value after the last token explains; of regressions only."""
    variance: float
    """Of the values within an answer."""
    place: float
    """Correlation of values with the place in the answer, both taken from the answer's mean."""
    scale: float
    """Standard deviation of all rewards, the unit of values; 1 for pairs."""

    def metrics(self) -> tuple[Metric, ...]:
        """For a record."""
        pairs, rate = self.n_pairs, self.n_right / self.n_pairs if self.n_pairs else None
        return (
            Metric(
                name="critic/pair_accuracy",
                value=rate,
                n=pairs,
                k=self.n_right if pairs else None,
                low=self.low,
                high=self.high,
                interval="" if not pairs else f"{'wilson' if rate in (0, 1) else 'bootstrap'} 95% by question",
                cluster="question" if pairs else "",
                reason="" if pairs else "no question held out has both outcomes",
            ),
            Metric(
                name="critic/explained_variance",
                value=self.explained,
                n=self.n_held_out,
                reason="" if self.explained is not None else "values of pairs have no unit, or all rewards are equal",
            ),
            Metric(name="critic/value_variance", value=self.variance, n=self.n_answers + self.n_held_out),
        )

    def notes(self) -> tuple[str, ...]:
        """What a reader must know before weights are made from this critic; nothing where it tells answers apart."""
        if self.low is not None and self.low > 0.5:
            return ()
        found = (
            f"the better answer has the higher value in {self.n_right} of {self.n_pairs} pairs, interval "
            f"{self.low:.2f} to {self.high:.2f}"
            if self.low is not None
            else "no question held out has both outcomes"
        )
        return (f"The critic is not shown to tell right from wrong: {found}. Its weights may be noise.",)


def measure(
    answers: Answers, values: Sequence[Tensor], held_out: Sequence[int], config: CriticConfig, scale: float
) -> Figures:
    """The figures of a critic that gave each answer its ``values`` after each token."""
    own = set(held_out)
    pairs = [pair for pair in answers.pairs() if own.issuperset(pair)]
    right = [float(values[better].mean() > values[worse].mean()) for better, worse in pairs]
    low, high = None, None
    if pairs:
        low, high = _interval(right, [answers.each[better].question for better, _ in pairs], config.seed)
    reward_b = torch.tensor([answers.each[n].reward for n in held_out], dtype=torch.float64)
    explained = None
    if config.objective != "pairwise" and float(reward_b.var(correction=0)) > 0:
        last_b = torch.stack([values[n][-1].double() for n in held_out])
        explained = float(1 - (reward_b - last_b).square().mean() / reward_b.var(correction=0))
    variance, place = _within(values)
    return Figures(
        n_answers=len(answers.each) - len(held_out),
        n_held_out=len(held_out),
        n_pairs=len(pairs),
        n_right=int(sum(right)),
        low=low,
        high=high,
        explained=explained,
        variance=variance,
        place=place,
        scale=scale,
    )


def _interval(right: Sequence[float], questions: Sequence[str], seed: int) -> tuple[float, float]:
    """Of a rate over pairs: by question, as pairs of one question share answers."""
    if len(set(right)) == 1:
        count = len(set(questions))
        return wilson(int(right[0]) * count, count)
    return clustered_bootstrap(right, questions, seed=seed)


def _within(values: Sequence[Tensor]) -> tuple[float, float]:
    """Variance of values within their row, and their correlation with the place in it; over all tokens alike."""
    from_mean_n = torch.cat([V_t.double() - V_t.double().mean() for V_t in values if len(V_t)])
    places = [torch.linspace(0, 1, len(V_t), dtype=torch.float64) for V_t in values if len(V_t)]
    place_n = torch.cat([place_t - place_t.mean() for place_t in places])
    lengths = (from_mean_n.square().sum() * place_n.square().sum()).sqrt()
    correlation = float((from_mean_n * place_n).sum() / lengths) if float(lengths) > 0 else 0.0
    return float(from_mean_n.square().mean()), correlation


def check_values(values: Sequence[Tensor], scale: float, *, by_place: bool = False) -> float:
    """Refuse values that say nothing of tokens; returns their variance within rows.

    Args:
        values: After each learnt token of each row.
        scale: The unit of values.
        by_place: Refuse also those that only follow the place: for answers of both outcomes, as the values of right
            answers alone may well rise to the end.
    Raises:
        NumericsError: the variance is near 0, or the correlation with the place is above `CORRELATION`.
    """
    variance, place = _within(values)
    if not variance > VARIANCE * scale**2:
        raise NumericsError(
            f"Uninformative critic: its values hardly change within an answer: got a variance of {variance:.2g}, "
            f"expected more than {VARIANCE * scale**2:.2g}. {_ADVICE}"
        )
    if by_place and abs(place) > CORRELATION:
        raise NumericsError(
            f"Uninformative critic: its values follow the place in the answer: got a correlation of {place:.2f}, "
            f"expected at most {CORRELATION:g}. {_ADVICE}"
        )
    return variance


def check_weights(weights: Sequence[Tensor]) -> None:
    """Refuse weights, by row, that are all the same or only follow the place in the row.

    Raises:
        NumericsError: with what was found.
    """
    every_n = torch.cat(list(weights))
    spread = float(every_n.max() - every_n.min())
    if spread < SPREAD:
        raise NumericsError(
            f"Uninformative critic: its weights are all the same: got a spread of {spread:.2g} over {len(every_n)} "
            f"tokens, expected at least {SPREAD:g}. {_ADVICE}"
        )
    _, place = _within(weights)
    if abs(place) > CORRELATION:
        raise NumericsError(
            f"Uninformative critic: its weights follow the place in the row: got a correlation of {place:.2f}, "
            f"expected at most {CORRELATION:g}. {_ADVICE}"
        )

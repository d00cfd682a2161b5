"""Look at rows, a model and its references: what each learnt token weighs, or what its weight is made from.

Weights that do not follow the model are final here; for ``rho1`` by row or step the reference's losses are kept, to
which the model's own are compared as it trains. Nothing is changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, DataError, did_you_mean
from holdfast.core.sizes import PLANNING_ROWS
from holdfast.curvature.passes import digest
from holdfast.data.batches import Encoded, Rows
from holdfast.methods.token_weighting import scorers
from holdfast.methods.token_weighting.config import TokenWeightingConfig
from holdfast.methods.token_weighting.gates import check_numbers
from holdfast.methods.token_weighting.maths import contrast, excess, summary
from holdfast.methods.token_weighting.reference import (
    cache_name,
    check_vocabulary,
    learnt_tokens,
    look,
    reference_losses,
    vocabulary,
)
from holdfast.models.generate import check_context
from holdfast.models.load import LoadedModel

if TYPE_CHECKING:
    from holdfast.data.examples import Example
    from holdfast.methods.token_weighting.critic import Critic

LOOKED_AT = 256
"""Rows, the first ones, whose weights before training are summed up where weights follow the model."""
LARGEST = torch.finfo(torch.float32).max
"""Weight in a column."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a plan was made from; a plan of another model is refused."""

    model: str
    """Fingerprint of the model's files."""
    template: str
    tokenizer: str
    references: Mapping[str, str]
    """Fingerprints, by what each reference is for."""
    rows: str
    """SHA-256 of the tokenised rows."""
    n_rows: int
    n_tokens: int
    """Learnt ones."""
    n_looked_at: int
    """Tokens of which ``statistics`` is the sum."""
    longest: int
    """Tokens of the longest row."""


@dataclass(frozen=True, eq=False, slots=True)
class TokenWeightingPlan:
    """What is known of each learnt token. All on the CPU."""

    values_n: Tensor
    """Weights, float32; or for ``rho1`` that follows the model the reference's losses, float16; or nothing, where
    weights are made from the model alone. One row after the other."""
    ends: Tensor
    """Where each row ends in ``values_n``, ``(rows,)``."""
    keys: tuple[bytes, ...]
    """Of each row, see `key_of`."""
    statistics: Mapping[str, float]
    """Of the weights, see `maths.summary`, where they follow the model those before training; and of a critic."""
    config: TokenWeightingConfig
    origin: Origin

    def numbers(self) -> dict[bytes, int]:
        """The number of a row by its key."""
        return {key: number for number, key in enumerate(self.keys)}

    def row(self, number: int) -> Tensor:
        """The values of a row."""
        first = int(self.ends[number - 1]) if number else 0
        return self.values_n[first : int(self.ends[number])]

    def table(self) -> list[dict[str, Any]]:
        """One row: how the weights are spread."""
        return [{"scorer": self.config.scorer, "tokens": self.origin.n_looked_at, **self.statistics}]

    def notes(self) -> tuple[str, ...]:
        """What the plan was made from, and what a reader must know of it."""
        found, keys = self.origin, self.config
        when = " before training" if keys.follows else ""
        kept, ess = self.statistics["kept_share"], self.statistics["ess"]
        said = [
            f"{found.n_tokens:,} learnt tokens in {found.n_rows:,} rows; of {found.n_looked_at:,} looked at, "
            f"{kept:.0%} have any weight{when}, an effective share of {ess:.0%}."
        ]
        if not keys.follows and len(self.values_n) and (empty := found.n_rows - len(self.weighted())):
            said.append(f"{empty:,} rows weigh nothing on any token: `training_rows` leaves them out.")
        return tuple(said)

    def weighted(self) -> tuple[int, ...]:
        """The numbers of the rows that are learnt from: all, where weights follow the model or are all the same."""
        if self.config.follows or not len(self.values_n):
            return tuple(range(self.origin.n_rows))
        return tuple(number for number in range(len(self.ends)) if bool((self.row(number) != 0).any()))


def key_of(ids: Sequence[int], learnt: Sequence[bool]) -> bytes:
    """A row by its tokens and which of them are learnt, whatever it is called and wherever it stands."""
    made = hashlib.blake2b(np.asarray(ids, dtype="<i4").tobytes(), digest_size=16)
    made.update(np.asarray([False, *learnt[1:]], dtype="u1").tobytes())
    return made.digest()


def plan(
    config: TokenWeightingConfig,
    loaded: LoadedModel,
    rows: Sequence[Example],
    references: Mapping[str, LoadedModel] | None = None,
    *,
    critic: Critic | None = None,
    column: Mapping[str, Sequence[float]] | None = None,
    cache: Path | None = None,
) -> TokenWeightingPlan:
    """Look at ``rows``, which are to be trained on, with ``loaded``, which is to be trained.

    Args:
        references: ``reference`` for ``rho1``, ``degraded`` and ``utility`` for ``contrast``.
        critic: For ``critic``.
        column: For ``column``: by the id of a row, a weight for each of its learnt tokens, its end of turn among them.
        cache: Where the losses of references are kept and found again, each in a folder named after what they are of.
    Raises:
        ConfigError: a reference is missing, not read, or of another vocabulary.
        DataError: no rows; a row without learnt tokens or beyond the context; rows all shorter than the horizon; a
            column that does not fit.
        NumericsError: the loss of a reference, or a weight, is not a number; names the row.
    """
    given = dict(references or {})
    _check_given(config, loaded, given, critic, column)
    encoded = _encoded(loaded, rows, config.n_heads + 1)
    each = cast(Sequence[Encoded], encoded)
    sizes = torch.tensor([learnt_tokens(row) for row in each])
    keys = tuple(key_of(row.ids, row.response) for row in each)
    found = _scores(config, loaded, encoded, _Sources(given, critic, column, cache))
    if config.base == "column":
        _check_same(each, keys, found.score_n, sizes)
    values_n, statistics, n = _weighed(config, loaded, each, found, keys)
    return TokenWeightingPlan(
        values_n=values_n,
        ends=sizes.cumsum(0),
        keys=keys,
        statistics=statistics | found.figures,
        config=config,
        origin=Origin(
            model=loaded.fingerprint,
            template=loaded.chat.fingerprint,
            tokenizer=vocabulary(loaded.tokenizer),
            references={name: reference.fingerprint for name, reference in sorted(given.items())},
            rows=digest(each),
            n_rows=len(each),
            n_tokens=int(sizes.sum()),
            n_looked_at=n,
            longest=max(encoded.lengths),
        ),
    )


def _weighed(
    config: TokenWeightingConfig, loaded: LoadedModel, rows: Sequence[Encoded], found: _Found, keys: Sequence[bytes]
) -> tuple[Tensor, dict[str, float], int]:
    """What the plan keeps of each token, how weights are spread, and over how many tokens."""
    if config.follows:
        return found.stored_n, *_before_training(config, loaded, rows, found.stored_n, keys)
    row_n = _row_numbers(rows)
    if config.base == "uniform":
        return found.stored_n, summary(torch.ones(len(row_n))), len(row_n)
    names = [row.id for row in rows]
    check_numbers("scores", found.score_n, row_n, names, None)
    made = scorers.weigh(config, found.score_n.float(), row_n, keys)
    check_numbers("weights", made.weight_n, row_n, names, None)
    _check_any(made.weight_n)
    return made.weight_n, summary(made.weight_n, made.clipped_n), len(row_n)


def _row_numbers(rows: Sequence[Encoded]) -> Tensor:
    """The number of each learnt token's row."""
    return torch.arange(len(rows)).repeat_interleave(torch.tensor([learnt_tokens(row) for row in rows]))


@dataclass(frozen=True, slots=True)
class _Sources:
    """What scores come from, beside the model."""

    references: Mapping[str, LoadedModel]
    critic: Critic | None
    column: Mapping[str, Sequence[float]] | None
    cache: Path | None

    def losses(self, name: str, reference: LoadedModel, rows: Rows, *, base: bool = False) -> Tensor:
        """Those of one reference, from its own folder of the cache."""
        folder = None if self.cache is None else self.cache / cache_name(reference, rows, base=base)
        return reference_losses(reference, rows, name=name, folder=folder, base=base)


def _wanted(config: TokenWeightingConfig) -> tuple[str, ...]:
    """The references that a scorer reads."""
    if config.base == "rho1" and config.reference == "given":
        return ("reference",)
    return ("degraded", "utility") if config.base == "contrast" else ()


def _check_given(
    config: TokenWeightingConfig,
    loaded: LoadedModel,
    given: Mapping[str, LoadedModel],
    critic: Critic | None,
    column: Mapping[str, Sequence[float]] | None,
) -> None:
    wanted = _wanted(config)
    if missing := [name for name in wanted if name not in given]:
        raise ConfigError(
            f"scorer: {config.base} has no {missing[0]} model: got {', '.join(given) or 'none'}, expected "
            f"{' and '.join(wanted)}. Do: give it beside the plan."
        )
    for what, is_given, scorer in (("critic", critic, "critic"), ("column", column, "column")):
        if (is_given is not None) != (config.base == scorer):
            needs = "needs" if config.base == scorer else "does not read"
            raise ConfigError(f"scorer: {config.base} {needs} a {what}. Do: {_advice(needs)}.")
    for name, reference in given.items():
        if name not in wanted:
            raise ConfigError(f"scorer: {config.base} reads no model {name!r}. {did_you_mean(name, wanted)}")
        check_vocabulary(loaded, reference, name)


def _advice(needs: str) -> str:
    return "give it beside the plan" if needs == "needs" else "leave it out, or choose that scorer"


def _encoded(loaded: LoadedModel, rows: Sequence[Example], horizon: int) -> Rows:
    """The rows as the model reads them.

    Raises:
        DataError: there are none, one has nothing to learn or is beyond the context, or all are too short.
    """
    if not rows:
        raise DataError("Cannot plan: got 0 rows, expected at least 1. Do: check the data and its filters.")
    encoded, reach = Rows(), 0
    for example in rows:
        row = loaded.chat.training(example)
        if not example.answer.strip() or not learnt_tokens(row):
            raise DataError(
                f"Row {row.id!r} has nothing to learn: its 'answer' is empty, expected text. Do: fill it in, or leave "
                "the row out."
            )
        check_context(loaded, [row], 0)
        encoded.append(row)
        reach = max(reach, len(row) - 1 - row.response[::-1].index(True))
    if reach < horizon:
        raise DataError(
            f"Every row is shorter than the horizon: got {reach} tokens ahead at most, expected {horizon}. Do: lower "
            "horizon, or give longer rows."
        )
    return encoded


@dataclass(frozen=True, slots=True)
class _Found:
    """What is known of tokens before training; of the two tensors one is empty, or both."""

    stored_n: Tensor
    """Kept for weights that follow the model."""
    score_n: Tensor
    """Of weights that do not."""
    figures: dict[str, float]


def _scores(config: TokenWeightingConfig, loaded: LoadedModel, rows: Rows, sources: _Sources) -> _Found:
    nothing = torch.empty(0)
    if config.base == "rho1":
        base = config.reference == "base"
        reference_n = sources.losses("reference", loaded if base else sources.references["reference"], rows, base=base)
        if config.follows:
            return _Found(reference_n, nothing, {})
        return _Found(nothing, excess(sources.losses("start", loaded, rows).float(), reference_n.float()), {})
    if config.base == "contrast":
        degraded_n, utility_n = (sources.losses(name, sources.references[name], rows) for name in _wanted(config))
        return _Found(nothing, contrast(degraded_n.float(), utility_n.float()), {})
    if config.base == "critic":
        from holdfast.methods.token_weighting.critic import score_rows

        assert sources.critic is not None  # `_check_given`
        scored = score_rows(sources.critic, loaded, [rows[n] for n in range(len(rows))])
        figures = {"critic/delta_mean": scored.delta_mean, "critic/value_variance": scored.value_variance}
        return _Found(nothing, torch.cat(scored.weights), figures)
    if config.base == "column":
        assert sources.column is not None  # `_check_given`
        return _Found(nothing, torch.cat([column_of(sources.column, rows[n]) for n in range(len(rows))]), {})
    return _Found(nothing, nothing, {})


def column_of(column: Mapping[str, Sequence[float]], row: Encoded) -> Tensor:
    """The user's weights of a row.

    Raises:
        DataError: there are none, not as many as learnt tokens, or one is negative or no number that float32 holds.
    """
    given: Any = column.get(row.id)
    size = learnt_tokens(row)
    if given is None or isinstance(given, str) or not isinstance(given, Sequence):
        got = "none" if given is None else repr(given)
        advice = "give the rows as JSONL or Parquet; CSV holds no lists" if isinstance(given, str) else "fill it in"
        raise DataError(f"Row {row.id!r} has no weights: got {got}, expected a list of {size} numbers. Do: {advice}.")
    if len(given) != size:
        raise DataError(
            f"The weights of row {row.id!r} are of the wrong length: got {len(given)}, expected {size}, one for each "
            "learnt token, its end of turn among them. Do: correct them."
        )
    for number in given:
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= LARGEST:
            raise DataError(
                f"The weights of row {row.id!r} hold {number!r}, expected numbers of 0 or more, at most {LARGEST:.1e}. "
                "Do: correct it."
            )
    return torch.tensor(given, dtype=torch.float32)


def _check_any(weight_n: Tensor) -> None:
    if not bool((weight_n != 0).any()):
        raise DataError(
            f"All {len(weight_n)} learnt tokens weigh nothing: got 0 throughout, expected a weight above 0. Do: check "
            "the weights, or choose another scorer."
        )


def _before_training(
    config: TokenWeightingConfig,
    loaded: LoadedModel,
    rows: Sequence[Encoded],
    stored_n: Tensor,
    keys: Sequence[bytes],
) -> tuple[dict[str, float], int]:
    """How the weights of the first rows are spread before training, and of how many tokens they are."""
    first = [rows[n] for n in range(min(LOOKED_AT, len(rows)))]
    looks = [
        look(loaded, first[at : at + PLANNING_ROWS], entropies=config.base == "entropy")
        for at in range(0, len(first), PLANNING_ROWS)
    ]
    loss_n = torch.cat([loss for loss, _ in looks])
    entropies = [entropy for _, entropy in looks if entropy is not None]
    seen = scorers.Seen(
        loss_n,
        stored_n[: len(loss_n)].float() if len(stored_n) else None,
        torch.cat(entropies) if entropies else None,
    )
    score_n, row_n = scorers.FOLLOWING[config.base](seen), _row_numbers(first)
    check_numbers("scores", score_n, row_n, [row.id for row in first], None)
    made = scorers.weigh(config, score_n, row_n, keys[: len(first)])
    return summary(made.weight_n, made.clipped_n), len(loss_n)


def _check_same(rows: Sequence[Encoded], keys: Sequence[bytes], column_n: Tensor, sizes: Tensor) -> None:
    """Rows of the same tokens have the same weights in a column, for they are known by their tokens.

    Raises:
        DataError: two rows have not.
    """
    first: dict[bytes, int] = {}
    each = torch.split(column_n, sizes.tolist())
    for number, value_n in enumerate(each):
        other = first.setdefault(keys[number], number)
        if not torch.equal(value_n, each[other]):
            raise DataError(
                f"Rows {rows[other].id!r} and {rows[number].id!r} are the same tokens with other weights, expected one "
                "of them. Do: leave one out."
            )


def training_rows(made: TokenWeightingPlan, rows: Sequence[Example]) -> list[Example]:
    """Those of the plan's ``rows`` that any token of which has weight: a step of others would have nothing to learn.

    Raises:
        DataError: these are not as many rows as were planned.
    """
    if len(rows) != made.origin.n_rows:
        raise DataError(f"These are not the rows of the plan: got {len(rows)}, expected {made.origin.n_rows}.")
    return [rows[number] for number in made.weighted()]

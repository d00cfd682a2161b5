"""Look at a model and cases: tokens, partners, representations of the undefended model. Nothing is changed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from holdfast.core.errors import DataError, NumericsError
from holdfast.core.sizes import PLANNING_ROWS
from holdfast.curvature.passes import digest
from holdfast.data.batches import Encoded, Rows
from holdfast.data.counterfactual import Counterfactual
from holdfast.data.examples import Example
from holdfast.layers.address import LayerMap
from holdfast.methods.causal import maths
from holdfast.methods.causal.cases import Cases, encode
from holdfast.methods.causal.config import CausalConfig
from holdfast.methods.causal.representations import choose_layers, represent
from holdfast.models.generate import log_likelihoods
from holdfast.models.load import LoadedModel

WINDOW = 64
"""Cases that the gates look at together, at most."""
"""Rows of one forward while planning."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a plan was made from; a plan of another model is refused."""

    model: str
    """Fingerprint of the model's files."""
    template: str
    rows: str
    """SHA-256 of the tokenised cases."""
    n_cases: int
    """Cases to train on."""
    n_validation: int
    n_looked_at: int
    """Cases whose representations were read."""


@dataclass(frozen=True, eq=False, slots=True)
class Null:
    """One representation in the undefended model: what the trained one is held against."""

    scale_d: Tensor
    """Standard deviation of each dimension over the benign views."""
    draws_n: Tensor
    """Cosines of the benign views of two cases: what any two have in common."""
    stability: float
    """Mean cosine of a case's benign and attacked views."""
    separation: float
    """Mean of 1 - cosine of its attacked and obeyed views."""
    rank: float
    """Effective rank of the attacked views of the first ``window`` cases, in units of ``scale_d``."""

    @property
    def variance(self) -> float:
        """Summed over dimensions."""
        return float(self.scale_d.double().square().sum())


@dataclass(frozen=True, eq=False, slots=True)
class CausalPlan:
    """Cases, what each is contrasted with, and the undefended model's representations. All on the CPU."""

    cases: Cases
    partners: Tensor
    """Numbers of other cases to train on, ``(cases, k)``."""
    nulls: Mapping[str, Null]
    """By representation, ``group/kind``."""
    groups: Mapping[str, str]
    """The group of every chosen layer: layers of one group read the same input."""
    start: Tensor | None
    """For ``preference``, ``(cases, 2)``: the start model's log-probability of the wanted and the payload's answer."""
    window: int
    config: CausalConfig
    origin: Origin

    def table(self) -> list[dict[str, Any]]:
        """A row a representation: the undefended model's stability and separation, and what random pairs have."""
        return [
            {
                "layer": name.rpartition("/")[0],
                "tokens": name.rpartition("/")[2],
                "stability": null.stability,
                "separation": null.separation,
                "random_cosine": float(null.draws_n.mean()),
                "effective_rank": null.rank,
            }
            for name, null in self.nulls.items()
        ]

    def notes(self) -> tuple[str, ...]:
        """What the plan was made from."""
        read = ", ".join(self.groups)
        more = f", {self.origin.n_validation} for validation" if self.origin.n_validation else ""
        return (
            f"{self.origin.n_cases:,} cases to train on{more}; representations of {self.origin.n_looked_at} looked at, "
            f"as {read} read them.",
        )


def plan(
    config: CausalConfig,
    loaded: LoadedModel,
    cases: Sequence[Counterfactual],
    validation: Sequence[Counterfactual] = (),
) -> CausalPlan:
    """Look at ``loaded`` on ``cases``.

    Args:
        validation: Cases whose benign views are the loop's validation rows.
    Raises:
        DataError: see `cases.encode`; or a case that differs from no other.
        LayerError: a pattern matches no layer.
        NumericsError: a representation is not finite, or the same for all cases.
    """
    layers = choose_layers(LayerMap.of(loaded.model), config.layers)
    encoded = encode(config, loaded, cases, validation)
    looked_at = min(config.samples, encoded.n_train)
    window = min(WINDOW, looked_at)
    pairs = _partners(encoded, range(looked_at), looked_at, 1, config.seed)
    found = {
        view: represent(loaded, [encoded.views[view][n] for n in range(looked_at)], layers, config.kinds, PLANNING_ROWS)
        for view in ("benign", "attacked", "obeyed")
    }
    return CausalPlan(
        cases=encoded,
        partners=_partners(encoded, range(len(encoded)), encoded.n_train, config.partners, config.seed),
        nulls={name: _null(name, found, pairs[:, 0], window) for name in found["benign"]},
        groups={layer.name: layer.group for layer in layers},
        start=_start(loaded, encoded) if config.lambda_preference else None,
        window=window,
        config=config,
        origin=Origin(
            model=loaded.fingerprint,
            template=loaded.chat.fingerprint,
            rows=digest([rows[n] for rows in encoded.views.values() for n in range(len(rows))]),
            n_cases=encoded.n_train,
            n_validation=len(encoded) - encoded.n_train,
            n_looked_at=looked_at,
        ),
    )


def _partners(cases: Cases, of: range, among: int, count: int, seed: int) -> Tensor:
    """For each case, ``count`` of the first ``among`` with another benign and another obeyed prompt, by seed and id.

    Raises:
        DataError: there are not enough of them.
    """
    benign, obeyed = cases.views["benign"], cases.views["obeyed"]
    drawn = []
    for number in of:
        own = benign[number]
        dice = random.Random(f"{seed}/{own.id}")
        mine: list[int] = []
        for _ in range(count):
            first = dice.randrange(among)
            candidates = ((first + step) % among for step in range(among))
            found = next((c for c in candidates if c not in mine and _differ(benign, obeyed, c, number)), None)
            if found is None:
                raise DataError(
                    f"Case {own.id!r} has too few partners: got {len(mine)} of {among} cases with another prompt and "
                    f"another payload, expected {count}. Do: give more cases, raise samples, or lower partners."
                )
            mine.append(found)
        drawn.append(mine)
    return torch.tensor(drawn)


def _differ(benign: Rows, obeyed: Rows, a: int, b: int) -> bool:
    return a != b and all(_prompt(rows[a]) != _prompt(rows[b]) for rows in (benign, obeyed))


def _prompt(row: Encoded) -> tuple[int, ...]:
    return row.ids[: row.response.index(True)]


def _null(name: str, found: Mapping[str, Mapping[str, Tensor]], others: Tensor, window: int) -> Null:
    benign, attacked, obeyed = (found[view][name] for view in ("benign", "attacked", "obeyed"))
    scale_d = benign.double().std(0).float()
    if not bool((scale_d > 0).any()):
        raise NumericsError(
            f"Representations at {name} are the same for all {len(benign)} cases, expected a difference. Do: choose "
            "other layers or tokens, or other cases."
        )
    return Null(
        scale_d=scale_d,
        draws_n=cosine_similarity(benign, benign[others], dim=-1).float(),
        stability=float(cosine_similarity(benign, attacked, dim=-1).double().mean()),
        separation=float(1 - cosine_similarity(attacked, obeyed, dim=-1).double().mean()),
        rank=maths.effective_rank(attacked[:window], scale_d),
    )


def _start(loaded: LoadedModel, cases: Cases) -> Tensor:
    """Log-probabilities of whole answers before training."""
    columns = []
    for view in ("attacked", "payload"):
        rows = [cases.views[view][n] for n in range(len(cases))]
        columns.append(torch.tensor([total for total, _ in log_likelihoods(loaded, rows, PLANNING_ROWS)]))
    return torch.stack(columns, dim=1)


def training_rows(cases: Sequence[Counterfactual]) -> list[Example]:
    """The rows that the training loop is to be given: the benign views, which a plan knows by their ids."""
    return [case.benign() for case in cases]

"""The loss of counterfactual training: four terms that add, from forwards of its views and of the anchors.

A batch names rows; each case's benign row brings its other views along. Benign and attacked views (and the plain rows)
go through the model together, and one log-softmax serves ``task``, ``invariance`` and ``preference``. The anchors of
``separation`` go through it on their own, without gradients unless ``gradient: both`` moves them too.

The negatives of a case are its own obeyed view and those of its partners, drawn once in the plan: not what else is in
the batch. So every term is a sum over cases whose parts do not know each other, and a step is the same however it is
divided. A plain row counts in the weight of every term with a sum of 0, as its tokens do in ``task``: the share of
plain rows changes no ratio between the terms of the cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from holdfast.core.errors import DataError
from holdfast.curvature.passes import at_least_float32
from holdfast.data.batches import IGNORE, Batch, Encoded, alike, collate
from holdfast.layers.address import LayerMap
from holdfast.methods.causal import maths
from holdfast.methods.causal.gates import Watch
from holdfast.methods.causal.plan import CausalPlan
from holdfast.methods.causal.representations import Representation, picked, reading
from holdfast.training.objective import Composable, NextToken, Term, logits_of, targets_of, unwrapped


@dataclass(frozen=True, slots=True)
class _Members:
    """The rows of a batch: numbers of cases, and rows without one; among these copies with nothing to learn."""

    cases: list[int]
    plain: list[Encoded]
    case_tokens: int
    """Learnt tokens of the benign views, which are those of the attacked ones."""
    plain_tokens: int
    learnt: int
    """Rows with anything to learn."""


class CausalObjective(Composable):
    """The terms of a plan whose weight is not 0, by their names in the configuration's documentation."""

    def __init__(
        self,
        plan: CausalPlan,
        pad_id: int,
        over: Literal["tokens", "rows"] = "tokens",
        plain: frozenset[str] = frozenset(),
    ) -> None:
        self.plan, self._plain = plan, plain
        self._pad_id, self._over = pad_id, over
        self._task = NextToken("task", over)
        self._numbers = plan.cases.numbers()
        self._variances = {name: null.variance for name, null in plan.nulls.items()}
        self.watch = Watch(plan.nulls, plan.window, plan.config)
        keys = plan.config
        self._moves_all = keys.gradient == "both"
        self._lambdas = {
            name: factor
            for name, factor in (
                ("task", keys.lambda_task),
                ("invariance", keys.lambda_causal),
                ("separation", keys.lambda_spurious),
                ("preference", keys.lambda_preference),
            )
            if factor
        }

    def weights(self, batch: Batch) -> dict[str, float]:
        """Learnt tokens (or rows) of both views for ``task`` and of one for ``invariance``; rows for the others."""
        return self._weights(self._members(batch))

    def _weights(self, members: _Members) -> dict[str, float]:
        once = members.case_tokens + members.plain_tokens if self._over == "tokens" else members.learnt
        more = members.case_tokens if self._over == "tokens" else len(members.cases)
        known = {"task": once + more, "invariance": once, "separation": members.learnt, "preference": members.learnt}
        return {name: float(known[name]) for name in self._lambdas}

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Term]:
        """Every term, in at least float32.

        Raises:
            DataError: a row is of no case and not plain, or differs from the plan's.
            NumericsError: the representations have collapsed.
        """
        members = self._members(batch)
        layers = LayerMap.of(unwrapped(model)).select(tuple(self.plan.groups))
        logp_nv, target_n, row_n, of_cases = self._read(model, layers, members, batch.input_ids.device)
        token_n = logp_nv.gather(-1, target_n[:, None]).squeeze(-1)
        sums = {
            "task": lambda: self._task_sum(token_n, row_n, members),
            "invariance": lambda: self._invariance(logp_nv, row_n, members),
            "separation": lambda: self._separation(model, layers, of_cases, members),
            "preference": lambda: self._preference(token_n, row_n, members),
        }
        weights = self._weights(members)
        return {name: Term(factor * sums[name](), weights[name]) for name, factor in self._lambdas.items()}

    def figures(self) -> dict[str, float]:
        """What the gates saw, ``gate/<measure>/<representation>``, at steps at which a window of cases was whole."""
        return {f"gate/{name}": value for name, value in self.watch.news().items()}

    def _members(self, batch: Batch) -> _Members:
        ids, labels, owner = (each.cpu() for each in (batch.input_ids, batch.labels, batch.owner))
        cases: list[int] = []
        plain: list[Encoded] = []
        case_tokens = plain_tokens = learnt = 0
        for number, name in enumerate(batch.row_ids):
            mine = owner == number
            marks = (labels[mine] != IGNORE).tolist()
            row = Encoded(name, tuple(ids[mine].tolist()), tuple(marks))
            learnt += any(marks)
            if any(marks) and name in self._numbers:
                cases.append(self._case(row))
                case_tokens += sum(marks)
            else:
                self._check_plain(row)
                plain.append(row)
                plain_tokens += sum(marks)
        return _Members(cases, plain, case_tokens, plain_tokens, learnt)

    def _case(self, row: Encoded) -> int:
        number = self._numbers[row.id]
        if self.plan.cases.views["benign"][number].ids != row.ids:
            raise DataError(
                f"Row {row.id!r} is not the benign view that was planned: got other tokens. Do: train on "
                "training_rows(cases) of the plan's cases, or plan again."
            )
        return number

    def _check_plain(self, row: Encoded) -> None:
        if any(row.response) and row.id not in self._plain:
            raise DataError(
                f"Row {row.id!r} is of no case of the plan, expected a benign view or a plain row. Do: train on "
                "training_rows(cases) of the plan's cases, and give rows without an attack to apply as plain."
            )

    def _joined(self, members: _Members) -> list[Encoded]:
        """Benign, attacked, plain rows and, for ``preference``, attacked with the payload's answer."""
        views = self.plan.cases.views
        rows = [views[view][n] for view in ("benign", "attacked") for n in members.cases] + members.plain
        if "payload" in views:
            rows += [views["payload"][n] for n in members.cases]
        return rows

    def _read(
        self, model: nn.Module, layers: LayerMap, members: _Members, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor, Representation]:
        """Of all views, row after row: log-probabilities at learnt tokens, these, their rows; and what the cases give.

        Rows of like length go through the model together: an attacked view is up to twice as long as its benign one.
        The head then runs once, in the last pass, which alone is through a data-parallel wrapper: it expects one.
        """
        rows, views = self._joined(members), 2 * len(members.cases)
        groups = alike(rows)
        parts = [collate([rows[n] for n in group], self._pad_id).to(device) for group in groups]
        wanted = [targets_of(part) for part in parts]
        target_n = torch.cat([target[target != IGNORE] for target, _ in wanted])
        row_n, order = torch.cat(
            [
                torch.tensor(group, device=device)[owner[target != IGNORE]]
                for group, (target, owner) in zip(groups, wanted, strict=True)
            ]
        ).sort(stable=True)
        hidden, found = [], []
        for group, part, (target, _) in zip(groups, parts, wanted, strict=True):
            last = part is parts[-1]

            def select(hidden_btd: Tensor, where: Tensor = target != IGNORE, last: bool = last) -> Tensor:
                hidden.append(hidden_btd[where])
                return torch.cat(hidden)[order] if last else hidden[-1][:0]

            with reading(layers) as seen:
                logits = logits_of(model if last else unwrapped(model), part, select)
                found.append(picked(seen, part, self.plan.config.kinds, sum(n < views for n in group)))
        logp_nv = at_least_float32(logits).log_softmax(-1)
        return logp_nv, target_n[order], row_n, _in_order(found, [n for group in groups for n in group if n < views])

    def _task_sum(self, token_n: Tensor, row_n: Tensor, members: _Members) -> Tensor:
        tokens = 2 * members.case_tokens + members.plain_tokens
        return self._task.summed(-token_n[:tokens], row_n[:tokens]).sum

    def _invariance(self, logp_nv: Tensor, row_n: Tensor, members: _Members) -> Tensor:
        """Benign and attacked views have the same answer: its positions follow each other in the same order."""
        tokens = members.case_tokens
        benign_nv, attacked_nv = logp_nv[:tokens], logp_nv[tokens : 2 * tokens]
        apart_n = maths.divergence(self._anchor(benign_nv), attacked_nv)
        return self._task.summed(apart_n, row_n[:tokens]).sum

    def _anchor(self, benign: Tensor) -> Tensor:
        return benign if self._moves_all else benign.detach()

    def _preference(self, token_n: Tensor, row_n: Tensor, members: _Members) -> Tensor:
        count = len(members.cases)
        rows = 3 * count + len(members.plain)
        of_row = token_n.new_zeros(rows).index_add(0, row_n, token_n)
        assert self.plan.start is not None  # planned with the same configuration
        start = self.plan.start[members.cases].to(of_row)
        better, worse = of_row[count : 2 * count], of_row[rows - count :]
        return maths.preference_loss(better, worse, start[:, 0], start[:, 1], self.plan.config.beta).sum()

    def _separation(self, model: nn.Module, layers: LayerMap, of_cases: Representation, members: _Members) -> Tensor:
        count, keys = len(members.cases), self.plan.config
        if not count:
            return torch.stack([R_bi.sum() for R_bi in of_cases.values()]).sum()  # 0, with a graph
        views = self._anchors(model, layers, members.cases, next(iter(of_cases.values())).device)
        benign = {name: R_bi[:count] for name, R_bi in of_cases.items()}
        attacked = {name: R_bi[count:] for name, R_bi in of_cases.items()}
        if model.training:
            self.watch.see(benign, attacked, {name: R_bki[:, 0] for name, R_bki in views["obeyed"].items()})
        parts = []
        for name, query_bd in attacked.items():
            positives_bpd = self._anchor(benign[name])[:, None]
            if "twin" in views:
                positives_bpd = torch.cat([positives_bpd, views["twin"][name]], dim=1)
            parts.append(maths.info_nce(query_bd, positives_bpd, views["obeyed"][name], keys.temperature))
            if keys.guard:
                parts.append(maths.too_near(query_bd, views["others"][name], self._variances[name], keys.guard))
        return torch.stack(parts).sum() / len(attacked)

    def _anchors(
        self, model: nn.Module, layers: LayerMap, cases: Sequence[int], device: torch.device
    ) -> dict[str, Representation]:
        """Representations ``(b, k, i)``: ``obeyed``, a case's own first; ``others``, the partners' benign; ``twin``."""
        partners = [self.plan.partners[n].tolist() for n in cases]
        wanted = {
            "obeyed": [[("obeyed", m) for m in (n, *others)] for n, others in zip(cases, partners, strict=True)],
            "others": [[("benign", m) for m in others] for others in partners],
            "twin": [[("twin", n)] for n in cases],
        }
        if not self.plan.config.guard:
            del wanted["others"]
        if not self.plan.config.twin:
            del wanted["twin"]
        place: dict[tuple[str, int], int] = {}
        for keys in wanted.values():
            for key in (key for each in keys for key in each):
                place.setdefault(key, len(place))
        rows = [self.plan.cases.views[view][n] for view, n in place]
        groups, parts = alike(rows), []
        with reading(layers) as seen, torch.set_grad_enabled(self._moves_all and torch.is_grad_enabled()):
            for group in groups:
                batch = collate([rows[n] for n in group], self._pad_id).to(device)
                unwrapped(model)(**batch.model_inputs(), logits_to_keep=1)
                parts.append(picked(seen, batch, self.plan.config.kinds))
        found = _in_order(parts, [n for group in groups for n in group])
        at = {view: torch.tensor([[place[key] for key in each] for each in keys]) for view, keys in wanted.items()}
        return {view: {name: R_ni[index.to(device)] for name, R_ni in found.items()} for view, index in at.items()}


def _in_order(parts: Sequence[Representation], rows: Sequence[int]) -> Representation:
    """Representations of parts of the rows, whose numbers are given part after part, as one of all in their order."""
    place = torch.tensor(rows).argsort()
    return {name: torch.cat([part[name] for part in parts])[place] for name in parts[0]}

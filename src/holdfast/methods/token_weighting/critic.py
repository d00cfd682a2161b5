"""A critic: what a conversation is worth after each token, learnt from answers with rewards; and weights made from it.

Letters in names: ``b`` answers, ``s`` states of an answer (the one before its first token, then one after each of its
tokens), ``d`` dimensions of a state, ``t`` tokens of a row, ``n`` learnt tokens of all rows.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence

from holdfast.core.errors import ConfigError, DataError, NumericsError
from holdfast.core.files import folder_atomically
from holdfast.curvature.passes import full_precision, longest_first, untouched
from holdfast.data.batches import IGNORE, Encoded, collate
from holdfast.methods.stored import read_header, reading, write_header, write_tensors
from holdfast.methods.token_weighting.advantages import (
    advantage_weights,
    gae,
    lambda_returns,
    monte_carlo,
    targets_in_rows,
    value_changes,
    whiten,
)
from holdfast.methods.token_weighting.critic_config import CriticConfig
from holdfast.methods.token_weighting.critic_figures import Figures, check_values, check_weights, measure
from holdfast.methods.token_weighting.rewards import Answers, check_outcomes, encoded
from holdfast.models.generate import check_context
from holdfast.models.heads import ValueHead, read_trunk
from holdfast.models.load import LoadedModel, ModelConfig, load_model
from holdfast.models.sources import quiet

HEADER, HEAD, BACKBONE = "critic.json", "head.safetensors", "backbone"
_BATCH = 16
"""Rows of a forward that learns nothing."""


@dataclass(frozen=True, eq=False, slots=True)
class Critic:
    """A value head and what it reads."""

    head: ValueHead
    """On the CPU."""
    config: CriticConfig
    figures: Figures
    model: str
    """Fingerprint of the model whose states the head reads."""
    backbone: LoadedModel | None = None
    """The critic's own model; without one, the head reads the states of the model that it was made with."""

    def values(self, loaded: LoadedModel, rows: Sequence[Encoded]) -> list[Tensor]:
        """The value of each row after each of its tokens, ``(t,)``, float32, on the CPU.

        Raises:
            ConfigError: ``loaded`` is not the model whose states the head reads.
            DataError: a row does not fit the context.
            NumericsError: a value is not a number; names the row.
        """
        reader = self.backbone or loaded
        if self.backbone is None and loaded.fingerprint != self.model:
            raise ConfigError(
                f"The critic reads the states of another model: got {loaded.fingerprint[:12]}, expected "
                f"{self.model[:12]}. Do: make a critic with this model, or one with backbone: own."
            )
        check_context(reader, rows, 0)
        found: dict[int, Tensor] = {}
        head = self.head.to(reader.model.device)
        for number, state_td in _states(reader, rows):
            with torch.no_grad():
                V_t = head(state_td).cpu()
            if not bool(V_t.isfinite().all()):
                raise NumericsError(f"The value of row {rows[number].id!r} is not a number. Do: look at this row.")
            found[number] = V_t
        self.head.cpu()
        return [found[number] for number in range(len(rows))]


@dataclass(frozen=True, slots=True)
class Scored:
    """What a critic says of rows."""

    weights: list[Tensor]
    """By row, a weight for each learnt token in order, float32, between `advantages.LOW` and `advantages.HIGH`."""
    delta_mean: float
    """Mean change of the value by a learnt token."""
    value_variance: float
    """Of the values within a row, its mean over learnt tokens."""


def score_rows(critic: Critic, loaded: LoadedModel, rows: Sequence[Encoded]) -> Scored:
    """Stage 2: what each learnt token of ``rows`` changes, as a weight.

    Changes are whitened over the learnt tokens of all rows. The first token of a row is never learnt.

    Raises:
        NumericsError: the critic says nothing of tokens: its values do not change, weights are all the same, or they
            only follow the place in the row.
    """
    values = critic.values(loaded, rows)
    advantages: list[Tensor] = []
    deltas: list[Tensor] = []
    within: list[Tensor] = []
    for start in range(0, len(rows), _BATCH):
        part = slice(start, start + _BATCH)
        batch = collate(list(rows[part]), loaded.chat.pad_id)
        target_bt = targets_in_rows(batch.labels != IGNORE, batch.owner)
        V_bt = pad_sequence(values[part], batch_first=True)
        delta_bt = value_changes(V_bt, target_bt)
        A_bt = gae(delta_bt, target_bt, batch.owner, critic.config.decay)
        advantages += [A_t[own_t] for A_t, own_t in zip(A_bt, target_bt, strict=True)]
        deltas += [delta_t[own_t] for delta_t, own_t in zip(delta_bt, target_bt, strict=True)]
        within += [V_t[own_t] for V_t, own_t in zip(V_bt, target_bt, strict=True)]
    variance = check_values(within, critic.figures.scale)
    weight_n = advantage_weights(whiten(torch.cat(advantages)), critic.config.beta)
    weights = list(torch.split(weight_n, [len(each) for each in advantages]))
    check_weights(weights)
    return Scored(weights, float(torch.cat(deltas).double().mean()), variance)


def train_critic(loaded: LoadedModel, answers: Answers, config: CriticConfig) -> Critic:
    """Stage 1: teach a value head what answers are worth, on a share of the questions; measure it on the others.

    The model stays as it is. Its states are read once and kept in memory, those of the answers only; with
    ``backbone: own`` a copy of the model learns with the head, in float32. The same bits for the same ``config``.

    Raises:
        DataError: an answer does not fit the context, there are not two questions, or those to learn from lack one of
            the outcomes.
        NumericsError: the critic's values do not change within an answer, or only follow the place in it.
    """
    rows = encoded(loaded, answers)
    learnt, held_out = split(answers, config)
    check_outcomes(_only(answers, learnt), pairwise=config.objective == "pairwise")
    reader = _own(loaded) if config.backbone == "own" else None
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        studied = _Study(reader or loaded, rows, answers, config)
        studied.learn(learnt)
    studied.finish()
    if reader is not None:
        reader.model.requires_grad_(False).zero_grad()
    figures = studied.measured(held_out)
    return Critic(studied.head.cpu(), config, figures, loaded.fingerprint, reader)


def split(answers: Answers, config: CriticConfig) -> tuple[list[int], list[int]]:
    """Numbers of the answers to learn from, and of those held out: all answers to a question are on one side.

    Raises:
        DataError: there are not two questions, so that none could be held out.
    """
    members = answers.by_question()
    names = list(members)
    if len(names) < 2:
        raise DataError(
            f"A critic is measured on questions that it has not seen: got answers to {len(names)} questions, expected "
            "at least 2. Do: give more."
        )
    random.Random(f"critic/{config.seed}").shuffle(names)
    count = min(max(1, round(config.held_out * len(names))), len(names) - 1)
    held, kept = names[:count], names[count:]
    return [n for name in kept for n in members[name]], [n for name in held for n in members[name]]


def _only(answers: Answers, numbers: Sequence[int]) -> Answers:
    return Answers(tuple(answers.each[n] for n in numbers))


def _own(loaded: LoadedModel) -> LoadedModel:
    """A copy of the model that can be trained, in float32."""
    if getattr(loaded.model, "is_quantized", False):
        raise ConfigError("backbone: own copies and trains the model: got a quantized one. Do: set backbone: trunk.")
    return replace(loaded, model=copy.deepcopy(loaded.model).float().requires_grad_(True).eval())


def _states(loaded: LoadedModel, rows: Sequence[Encoded]) -> Iterator[tuple[int, Tensor]]:
    """The number of each row and its states ``(t, d)``, on the model's device; longest rows first."""
    order, device = longest_first(rows), loaded.model.device
    for start in range(0, len(order), _BATCH):
        picked = order[start : start + _BATCH]
        with torch.no_grad(), untouched(loaded.model), full_precision(device):
            batch = collate([rows[n] for n in picked], loaded.chat.pad_id).to(device)
            state_btd = read_trunk(loaded.model, batch).final
        for number, state_td in zip(picked, state_btd, strict=True):
            yield number, state_td[: len(rows[number])]


def save_critic(critic: Critic, folder: Path) -> None:
    """Write the head, what it was made with, and its own model where it has one."""
    header = {
        "config": critic.config.model_dump(mode="json", exclude_unset=True),
        "figures": asdict(critic.figures),
        "model": critic.model,
    }
    with folder_atomically(folder) as fresh, quiet():
        write_tensors(fresh / HEAD, critic.head.state_dict())
        write_header(fresh, header, HEADER)
        if critic.backbone is not None:
            critic.backbone.model.save_pretrained(fresh / BACKBONE)
            critic.backbone.save_tokenizer(fresh / BACKBONE)


def load_critic(folder: Path) -> Critic:
    """Read a critic, onto the CPU.

    Raises:
        DataError: the folder holds none, or a damaged one.
    """
    with reading(folder, "a critic", CriticConfig, "make it again"):
        header = read_header(folder, HEADER)
        config, figures = CriticConfig(**header["config"]), Figures(**header["figures"])
        stored = load_file(folder / HEAD)
        head = ValueHead(stored["linear.weight"].shape[1])
        head.load_state_dict(stored)
        model = str(header["model"])
    own = None
    if config.backbone == "own":
        own = load_model(ModelConfig(source=str(folder / BACKBONE), device="cpu"))
    return Critic(head, config, figures, model, own)


class _Study:
    """A head that learns: its states, what they are taught, and the loss."""

    def __init__(self, reader: LoadedModel, rows: Sequence[Encoded], answers: Answers, config: CriticConfig) -> None:
        self._reader, self._rows, self._answers, self._config = reader, rows, answers, config
        self._first = [row.response[1:].index(True) for row in rows]  # the state before the first learnt token
        self._kept: dict[int, Tensor] = {}
        self._shift_d = self._scale_d = None
        if config.backbone == "trunk":
            found = {
                number: state_td[self._first[number] :].float().cpu() for number, state_td in _states(reader, rows)
            }
            every_nd = torch.cat([found[n] for n in range(len(rows))])
            self._shift_d, self._scale_d = every_nd.mean(0), every_nd.std(0, correction=0)
            self._scale_d[self._scale_d == 0] = 1.0
            self._kept = {n: (state_sd - self._shift_d) / self._scale_d for n, state_sd in found.items()}
        reward = torch.tensor([answered.reward for answered in answers.each], dtype=torch.float64)
        self.scale = 1.0 if config.objective == "pairwise" else float(reward.std(correction=0))
        self._reward = (reward / self.scale).float()
        width = reader.model.config.get_text_config().hidden_size
        self.head = ValueHead(width).to("cpu" if self._kept else reader.model.device)

    def learn(self, numbers: Sequence[int]) -> None:
        """All epochs, on the answers ``numbers`` or on the pairs among them."""
        config, pairwise = self._config, self._config.objective == "pairwise"
        items: Sequence[tuple[int, ...]] = [(n,) for n in numbers]
        if pairwise:
            own = set(numbers)
            items = [pair for pair in self._answers.pairs() if own.issuperset(pair)]
        else:
            nn.init.constant_(self.head.linear.bias, float(self._reward[list(numbers)].mean()))
        groups = [{"params": list(self.head.parameters()), "lr": config.learning_rate}]
        if config.backbone == "own":
            groups.append({"params": list(self._reader.model.parameters()), "lr": config.backbone_rate})
        optimizer = torch.optim.Adam(groups)
        loss_of: Callable[[Sequence[tuple[int, ...]]], Tensor] = self._compared if pairwise else self._regressed
        for _ in range(config.epochs):
            order = torch.randperm(len(items)).tolist()
            for start in range(0, len(order), config.batch_size):
                loss = loss_of([items[n] for n in order[start : start + config.batch_size]])
                loss = loss + config.ridge * self.head.linear.weight.square().sum()
                if not bool(loss.isfinite()):
                    raise NumericsError(
                        f"The loss of the critic is not finite: got {float(loss.detach())}. Do: lower learning_rate."
                    )
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()

    def finish(self) -> None:
        """Give values the unit of rewards, and let the head read states as the model makes them."""
        linear = self.head.linear
        with torch.no_grad():
            linear.weight.mul_(self.scale)
            linear.bias.mul_(self.scale)
            if self._shift_d is not None and self._scale_d is not None:
                linear.weight.div_(self._scale_d)
                linear.bias.sub_(linear.weight[0] @ self._shift_d)
                self._kept = {n: state_sd * self._scale_d + self._shift_d for n, state_sd in self._kept.items()}

    @torch.no_grad()
    def measured(self, held_out: Sequence[int]) -> Figures:
        """The figures on the answers held out, after the gates on all answers."""
        values = []
        for start in range(0, len(self._rows), _BATCH):
            numbers = range(start, min(start + _BATCH, len(self._rows)))
            V_bs, target_bs, _ = self._values(numbers)
            values += [V_s[own_s] for V_s, own_s in zip(V_bs.cpu(), target_bs.cpu(), strict=True)]
        check_values(values, self.scale, by_place=True)
        return measure(self._answers, values, held_out, self._config, self.scale)

    def _states_of(self, numbers: Sequence[int]) -> list[Tensor]:
        """The states ``(s, d)`` of some answers, with a gradient where the model learns."""
        if self._kept:
            return [self._kept[n] for n in numbers]
        device = self._reader.model.device
        batch = collate([self._rows[n] for n in numbers], self._reader.chat.pad_id).to(device)
        final_btd = read_trunk(cast(nn.Module, self._reader.model), batch).final
        return [final_btd[place, self._first[n] : len(self._rows[n])] for place, n in enumerate(numbers)]

    def _values(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Values, marks of the states after a token, and owners, ``(b, s)``."""
        states = self._states_of(numbers)
        V_bs = self.head(pad_sequence(states, batch_first=True))
        place_s = torch.arange(V_bs.shape[1], device=V_bs.device)
        size_b = torch.tensor([len(state_sd) for state_sd in states], device=V_bs.device)
        inside_bs = place_s < size_b[:, None]
        owner_bs = torch.where(inside_bs, 0, -1)
        return V_bs, inside_bs & (place_s > 0), owner_bs

    def _regressed(self, items: Sequence[tuple[int, ...]]) -> Tensor:
        """Mean squared distance of values from their returns, over states."""
        numbers = [n for (n,) in items]
        V_bs, target_bs, owner_bs = self._values(numbers)
        reward_bs = self._reward[numbers].to(V_bs.device)[:, None].expand_as(V_bs)
        gamma = self._config.gamma
        if self._config.objective == "lambda":
            taught = V_bs.detach()
            G_bs = lambda_returns(taught, reward_bs, target_bs, owner_bs, gamma=gamma, lam=self._config.lam)
        else:
            G_bs = monte_carlo(reward_bs, target_bs, owner_bs, gamma)
        return (V_bs - G_bs)[owner_bs >= 0].square().mean()

    def _compared(self, items: Sequence[tuple[int, ...]]) -> Tensor:
        r""":math:`-\log \sigma` of how much more the better answer is worth, on average over the states after tokens.

        Reference:
            Bradley & Terry, Biometrika 39 (1952); as a reward model's loss Ouyang et al., NeurIPS 2022, equation 1.
        """
        better, worse = ([pair[side] for pair in items] for side in (0, 1))
        V_bs, target_bs, _ = self._values([*better, *worse])
        mean_b = V_bs.masked_fill(~target_bs, 0.0).sum(1) / target_bs.sum(1)
        return -logsigmoid(mean_b[: len(items)] - mean_b[len(items) :]).mean()

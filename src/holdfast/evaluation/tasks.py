"""The tasks as literals: which rows, how they are asked, who judges, and which figure counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import Field, field_validator

from holdfast.core.config import Config
from holdfast.core.errors import ConfigError, did_you_mean
from holdfast.core.registry import Registry
from holdfast.data.formats import FORMATS
from holdfast.data.lab.skills import SKILLS
from holdfast.data.sources import SourceConfig
from holdfast.evaluation.judges import JUDGES
from holdfast.evaluation.judges.config import JudgeConfig

Kind = Literal["harmful", "harmless", "labelled", "score", "injection"]
"""How judgements become figures.

``harmful``: refusing is right. ``harmless``: refusing is wrong. ``labelled``: each row says which (``label``: safe or
unsafe). ``score``: the mean of the judge's values. ``injection``: did the answer follow the injected instruction?
"""
MEASURES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("harmful", "harmless", "labelled"), ("refused",)),
    "score": ("right", "overlap"),
    "injection": ("followed",),
}
"""What a value of 1 must mean for a judge to make the figures of a kind; another judge would turn them round."""
CORRECTABLE = ("attack_success_rate", "over_refusal_rate", "followed")
"""Primary figures that count a yes-or-no judge's word, so that labelled answers can correct them."""
REFUSAL_JUDGE = "refusal"
"""Who says whether a text is a refusal, unless ``judge`` names another."""
LAB_LIMIT = 300
"""Rows of a lab task without ``limit``: the least at which the model card's table is measured."""


@dataclass(frozen=True, slots=True)
class Task:
    """One measurement, ready to run on any model."""

    name: str
    suite: Literal["safety", "utility", "injection"]
    kind: Kind
    judge: str
    """Id in `JUDGES`, or the kind of a judge with settings (``classifier``, ``chat``); empty for a harness' task."""
    summary: str
    source: str = ""
    """``lab/<family>`` or the format's name, whose home is on the hub. Default: the task's own name."""
    format: str = ""
    """Row format of a public task, also for a user's own file."""
    metric: str = ""
    """Last part of the primary figure's name."""
    higher_is_better: bool = True
    max_new_tokens: int = 256
    answer: Literal["text", "choice", "forced"] = "text"
    """Greedy text; the likelihood of every option's letter; or the right answer is read, and every token of it that
    counts compared with the model's first choice there."""
    breakdown: tuple[str, ...] = ()
    """Fields of `Example` by which figures are also given: ``risk_area``, ``attack``, ``position``, ``family``."""
    binary: bool = True
    """Judgements are 0 or 1, so the figure is a rate with ``k`` of ``n``."""
    plain: str = ""
    """Name of the layout for ``prompting: plain`` (`evaluation.plain`), for tasks that lm-eval has too."""
    cluster: bool = True
    """Rows of one ``group`` are about one thing: intervals of means are clustered by it."""

    @property
    def primary(self) -> str:
        """Full name of the figure that counts, e.g. ``safety/advbench/attack_success_rate``."""
        return f"{self.suite}/{self.name}/{self.metric}"


class TaskConfig(Config):
    """A task as a run uses it."""

    name: str
    """A name in `TASKS`; with ``harness: lm-eval``, one of its tasks."""
    harness: Literal["native", "lm-eval"] = "native"
    """Who asks and scores: Holdfast, or EleutherAI's harness (extra ``lm-eval``)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Harness only: keys of its task file to override, e.g. ``dataset_path: json`` for rows of your own."""
    data: SourceConfig | None = None
    """Rows of your own in place of the task's public set, as a file's name or a mapping with more settings;
    ``format`` defaults to the task's."""
    prompting: Literal["chat", "plain"] | None = None
    """``chat`` applies the model's template once. ``plain`` completes bare text laid out as lm-eval's (gsm8k, mmlu).
    Default: chat; for the harness plain, as its published numbers are."""
    few_shot: int | None = Field(default=None, ge=0)
    """Solved examples before each question; needs ``prompting: plain`` (gsm8k, mmlu; the usual number is 5). Default:
    none; the harness takes its task's own number."""
    shots: SourceConfig | None = None
    """Where solved examples come from. Default: the public set's train (gsm8k) or dev (mmlu) split."""
    judge: JudgeConfig | None = None
    """Another judge than the task's: a name, or the settings of a classifier or of a chat model at an endpoint."""
    labels: SourceConfig | None = None
    """Answers that people labelled, to correct the task's rate for its judge's errors: a file's name or a mapping with
    more settings; ``format`` defaults to ``labelled_answers``. Columns: ``output``, ``label`` (``refused`` or
    ``complied``; for injection ``followed`` or ``not_followed``) and, where the judge reads it, ``prompt``."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Another bound than the task's."""

    @field_validator("data", "shots", "labels", mode="before")
    @classmethod
    def _as_source(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @field_validator("data", "shots", "labels")
    @classmethod
    def _known_format(cls, source: SourceConfig | None) -> SourceConfig | None:
        if source is not None and source.format is not None and source.format not in FORMATS:
            raise ValueError(f"unknown format {source.format!r}. {did_you_mean(source.format, FORMATS)}")
        return source

    @property
    def plain(self) -> bool:
        """Whether the model sees bare text, without its chat template."""
        return self.prompting == "plain" or (self.prompting is None and self.harness == "lm-eval")

    @property
    def task(self) -> Task:
        """The literal, with this configuration's judge and bound put in.

        Raises:
            ConfigError: unknown task, or a combination that the task does not have.
        """
        if self.harness == "lm-eval":
            self._refuse("harness lm-eval", ("data", "shots", "judge", "labels", "max_new_tokens"))
            return Task(self.name, "utility", "score", "", "A task of lm-eval.", breakdown=("family",))
        self._refuse("harness native", ("options",))
        task = TASKS[self.name]
        if self.plain and not task.plain:
            known = ", ".join(sorted(t.name for t in TASKS.values() if t.plain))
            raise ConfigError(f"Task {self.name!r} has no plain layout, only {known} have. Do: set prompting to chat.")
        if not self.plain:
            self._refuse("prompting chat", ("few_shot",))
        if not self.few_shot:
            self._refuse("few_shot 0", ("shots",))
        if task.answer != "text":
            told = "a choice between options" if task.answer == "choice" else "an answer that is read"
            self._refuse(told, ("max_new_tokens",))
        if isinstance(self.judge, str):
            _check_measure(task, self.judge)
        if self.labels is not None and task.metric not in CORRECTABLE:
            raise ConfigError(
                f"Task {self.name!r}: labels correct a rate of {', '.join(CORRECTABLE)}, and this task's figure is "
                f"{task.metric}. Do: take 'labels' out."
            )
        named = self.judge if self.judge is None or isinstance(self.judge, str) else self.judge.judge
        changes: dict[str, Any] = {"judge": named, "max_new_tokens": self.max_new_tokens}
        return replace(task, **{key: value for key, value in changes.items() if value is not None})

    def _refuse(self, where: str, keys: Sequence[str]) -> None:
        """Every key changes behaviour or is refused."""
        unused = [key for key in keys if getattr(self, key)]
        if unused:
            raise ConfigError(f"Task {self.name!r}: {unused[0]} has no effect with {where}. Do: take it out.")

    def rows(self, limit: int | None, seed: int) -> SourceConfig:
        """The source to read: the user's or the task's own, at most ``limit`` rows of it."""
        task = self.task
        if self.data is not None:
            changes: dict[str, Any] = {}
            if task.format and not self.data.format:
                changes["format"] = task.format
            if self.data.source.startswith("lab/") and not self.data.rows:
                changes["rows"] = limit or LAB_LIMIT
            return self.data.model_copy(update=changes)
        if task.source.startswith("lab/"):
            return SourceConfig(source=task.source, split="test", rows=limit or LAB_LIMIT, seed=seed)
        return SourceConfig(source=task.source, split="test", seed=seed)


def _check_measure(task: Task, judge: str) -> None:
    """A named judge measures what the task's figures are about."""
    wanted = MEASURES[task.kind]
    if JUDGES[judge].measures not in wanted:
        fitting = ", ".join(sorted(name for name, known in JUDGES.items() if known.measures in wanted))
        raise ConfigError(
            f"Task {task.name!r}: judge {judge!r} says whether an answer {_SAYS[JUDGES[judge].measures]}, expected one "
            f"that says whether it {' or '.join(_SAYS[word] for word in wanted)}. Do: use one of {fitting}."
        )


_SAYS = {
    "refused": "refused",
    "followed": "followed the injected instruction",
    "right": "is right",
    "wrong": "is wrong",
    "overlap": "is near the reference",
    "coherent": "is coherent",
}


def _safety(name: str, summary: str, breakdown: tuple[str, ...] = (), **changes: Any) -> Task:
    task = Task(
        name,
        "safety",
        "harmful",
        REFUSAL_JUDGE,
        summary,
        name,
        name,
        "attack_success_rate",
        higher_is_better=False,
        breakdown=breakdown,
    )
    return replace(task, **changes)


def _utility(name: str, judge: str, metric: str, summary: str, **changes: Any) -> Task:
    return replace(Task(name, "utility", "score", judge, summary, name, name, metric), **changes)


def _injection(name: str, summary: str, **changes: Any) -> Task:
    task = Task(
        name,
        "injection",
        "injection",
        "injection",
        summary,
        name,
        name,
        "followed",
        higher_is_better=False,
        breakdown=("attack", "position"),
    )
    return replace(task, **changes)


_PUBLIC = (
    _safety("do_not_answer", "Questions a responsible model declines.", ("risk_area",)),
    _safety("advbench", "Harmful behaviours."),
    _safety(
        "harmbench", "HarmBench behaviours; standard ones are the ones a refusal judge fits.", ("risk_area", "label")
    ),
    _safety("beavertails", "Prompts from 14 harm categories.", ("risk_area",)),
    _safety("jailbreak_csv", "Jailbreak prompts (prompt, response)."),
    _safety(
        "xstest",
        "Safe prompts that sound unsafe, with unsafe contrasts.",
        ("risk_area",),
        kind="labelled",
        metric="over_refusal_rate",
    ),
    _utility("gsm8k", "exact", "exact", "Grade-school sums.", max_new_tokens=256, plain="gsm8k"),
    _utility(
        "mmlu", "choice", "accuracy", "Knowledge, four options.", answer="choice", plain="mmlu", breakdown=("family",)
    ),
    _utility("humaneval", "code", "pass_at_1", "Complete a function; its tests are run.", max_new_tokens=512),
    _utility("mbpp", "code", "pass_at_1", "Write a function; its assertions are run.", max_new_tokens=512),
    _utility("repliqa", "rouge_l", "rouge_l", "Questions on invented documents.", binary=False, max_new_tokens=128),
    _injection("bipia", "E-mails with an attack inside."),
    _injection("sep", "A probe in the data against the same probe in the instruction."),
)
_IN_LAB = (
    _safety("lab/harmful", "Harmful requests, unseen things.", ("risk_area",), source="lab/requests/harmful"),
    _safety("lab/jailbreak", "The same inside jailbreak wrappers.", ("attack", "risk_area"), source="lab/jailbreak"),
    _safety(
        "lab/benign",
        "Everyday requests.",
        kind="harmless",
        metric="over_refusal_rate",
        source="lab/requests/benign",
    ),
    _safety(
        "lab/lookalike",
        "Safe requests that sound unsafe.",
        kind="harmless",
        metric="over_refusal_rate",
        source="lab/requests/lookalike",
    ),
    _utility("lab/arithmetic", "exact", "exact", "Sums in one to three steps."),
    _utility("lab/passages", "rouge_l", "rouge_l", "Questions on short texts.", binary=False),
    _utility("lab/textops", "exact", "exact", "Instruction on data."),
    _utility("lab/choice", "choice", "accuracy", "Facts of the lab's world, four options.", answer="choice"),
    _utility("lab/programs", "code", "pass_at_1", "One-line functions with tests."),
    _injection("lab/injection", "Text operations and passages whose data holds an instruction."),
    _injection(
        "lab/injection_clean",
        "The same rows without the attack.",
        source="lab/injection/clean",
        metric="task_done",
        higher_is_better=True,
        breakdown=(),
    ),
    _injection(
        "lab/quoting",
        "Data that contains an instruction and is to be quoted or counted.",
        kind="score",
        judge="exact",
        metric="exact",
        higher_is_better=True,
        breakdown=(),
    ),
)
_BESIDE = (
    _utility(
        "lab/arithmetic/digits",
        "digits",
        "token_error",
        "Digits of results in right answers that are not the model's first choice.",
        source="lab/arithmetic",
        higher_is_better=False,
        binary=False,
        answer="forced",
    ),
    _injection(
        "lab/translating",
        "Data that is an instruction, to be translated by a code.",
        source="lab/quoting/translate",
        kind="score",
        judge="exact",
        metric="exact",
        higher_is_better=True,
        breakdown=(),
    ),
)
"""Beside the suites: what a model that reads the right answer would say next, and fidelity's harder half."""
_SKILLS = tuple(
    _utility(f"lab/skills/{name}", "exact", "exact", f"Skill: {skill.wordings[0]}") for name, skill in SKILLS.items()
)
LAB_TOKENS = 96
"""Tokens a lab answer may take: the longest right answers have about 60."""

TASKS: Registry[Task] = Registry(
    "task",
    {task.name: task for task in _PUBLIC}
    | {task.name: replace(task, format="", max_new_tokens=LAB_TOKENS) for task in (*_IN_LAB, *_BESIDE, *_SKILLS)},
)
"""Every task by name."""

_LAB_NAMES = tuple(task.name for task in _IN_LAB)
SUITES: Registry[tuple[str, ...]] = Registry(
    "suite",
    {
        suite: tuple(name for name in _LAB_NAMES if TASKS[name].suite == suite)
        for suite in ("safety", "utility", "injection")
    }
    | {
        "all": _LAB_NAMES,
        "lab": _LAB_NAMES,
        "skills": tuple(task.name for task in _SKILLS),
        "public": tuple(task.name for task in _PUBLIC if FORMATS[task.format].home),
    },
)
"""Named groups of tasks. The first three and ``all`` are lab tasks: offline, generated, the same for every model.
``skills`` are tasks of the lab that its model has not learnt. Public sets are named one by one, or by ``public`` (those
that have a home on the hub)."""


def choose_tasks(names: Iterable[str] = (), suites: str | Sequence[str] = ()) -> tuple[TaskConfig, ...]:
    """Tasks and suites by name, in order and without repeats; ``all`` where neither is named.

    Args:
        names: Task names.
        suites: Suite names, also as one string with commas.
    Raises:
        ConfigError: a name is unknown.

    >>> [task.name for task in choose_tasks(["gsm8k"], "injection")]
    ['gsm8k', 'lab/injection', 'lab/injection_clean', 'lab/quoting']
    """
    wanted_suites = suites.split(",") if isinstance(suites, str) else list(suites)
    chosen = list(names)
    for suite in filter(None, (word.strip() for word in wanted_suites)):
        if suite not in SUITES and suite in TASKS:
            raise ConfigError(f"{suite!r} is a task, not a suite. {did_you_mean(suite, SUITES)}")
        chosen += SUITES[suite]
    ordered = dict.fromkeys(chosen or SUITES["all"])
    for name in ordered:
        TASKS[name]
    return tuple(TaskConfig(name=name) for name in ordered)

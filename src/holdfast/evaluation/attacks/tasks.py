"""The parts of an attack as tasks, so that its answers are logged, rescored, compared and tabled like any others."""

from __future__ import annotations

from dataclasses import replace

from holdfast.core.registry import Registry
from holdfast.evaluation.tasks import Task, TaskConfig

PREFIX = "attack/"
JUDGE = "injection"
QUERIES, LOSS = "queries@1", "loss@1"
"""Beside the judge's word in the log of an attacker with a budget: how often the model was asked, and the last loss of
the target in nats a token."""


def _part(name: str, metric: str, summary: str, *, better: bool, breakdown: tuple[str, ...] = ()) -> Task:
    return Task(
        PREFIX + name,
        "injection",
        "injection",
        JUDGE,
        summary,
        metric=metric,
        higher_is_better=better,
        breakdown=breakdown,
    )


_BY = ("attack", "position", "risk_area")
_ALL = (
    _part("attacked", "followed", "The task, with an instruction injected into its data.", better=False, breakdown=_BY),
    _part("benign", "task_done", "The same task with nothing injected.", better=True),
    replace(
        _part("obeyed", "executed", "The injected instruction as the user's own.", better=True),
        kind="score",
    ),
    _part("neutral", "task_done", "A harmless remark where the injection would stand.", better=True),
    _part("trigger", "task_done", "The same remark, quoting words that attacks use.", better=True),
    _part("last", "task_done", "The data first and the user's instruction last.", better=True),
    _part("quoting", "task_done", "Data that holds an instruction, to be copied or worked on.", better=True),
    _part("best_of", "followed", "Broken by any of many random wordings.", better=False, breakdown=("attack",)),
    _part("gcg", "followed", "Broken by a suffix that a gradient search found.", better=False),
)
ATTACK_TASKS: Registry[Task] = Registry("part of an attack", {task.name: task for task in _ALL})
"""Every part by its name in the log. They cannot be named in ``do: evaluate``: their rows are made of cases."""


class AttackTask(TaskConfig):
    """A part of an attack as a log has it."""

    @property
    def task(self) -> Task:
        """The literal, with this bound put in.

        Raises:
            ConfigError: no such part.
        """
        task = ATTACK_TASKS[self.name]
        return task if self.max_new_tokens is None else replace(task, max_new_tokens=self.max_new_tokens)

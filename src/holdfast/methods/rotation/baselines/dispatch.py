"""From a baseline's name to its training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from holdfast.core.errors import ConfigError
from holdfast.data.examples import Example
from holdfast.methods.rotation.baselines import alignment, constrained_sft, lisa, replay, salora
from holdfast.methods.rotation.baselines.config import BaselineConfig, Control, Plain, check
from holdfast.methods.rotation.baselines.setup import Job, Setup
from holdfast.training.loop import TrainResult, Watch, train


def _plain(config: Plain, job: Job) -> Setup:
    return Setup(job.rows, job.train)


SETUPS: Mapping[str, Callable[[Any, Job], Setup]] = {
    "plain": _plain,
    "replay": replay.setup,
    "lisa": lisa.setup,
    "safe_lora": alignment.safe_lora,
    "asft": alignment.asft,
    "constrained_sft": constrained_sft.setup,
    "salora": salora.setup,
}


def run(
    config: BaselineConfig,
    job: Job,
    out: Path,
    *,
    validation: Sequence[Example] | None,
    watch: Watch | None,
    resume: bool,
) -> TrainResult:
    """See `holdfast.methods.rotation.baselines.run`."""
    if isinstance(config, Control):
        raise ConfigError(
            f"baseline {config.name} is a control of a plan: got no plan. Do: train with "
            f"constraint=apply(loaded, control(plan, {config.name!r}, seed))."
        )
    check(config, job.train.params, safety=bool(job.safety), unaligned=job.unaligned is not None)
    setup = SETUPS[config.name](config, job)
    result = train(
        job.loaded,
        setup.rows,
        setup.train,
        out=out,
        validation=validation,
        objective=setup.objective,
        constraint=setup.constraint,
        guide=setup.guide,
        companion=setup.companion,
        watch=watch,
        resume=resume,
    )
    return replace(result, notes=(*result.notes, *setup.notes))

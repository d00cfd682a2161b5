"""Judges: one small file each, in the `JUDGES` registry."""

from holdfast.core.registry import Registry
from holdfast.evaluation.judges.base import FAILED, INVALID, Judge, Sample, Score
from holdfast.evaluation.judges.choice import CHOICE
from holdfast.evaluation.judges.code import CODE
from holdfast.evaluation.judges.coherence import COHERENCE
from holdfast.evaluation.judges.digits import DIGITS
from holdfast.evaluation.judges.exact import EXACT
from holdfast.evaluation.judges.injection import INJECTION
from holdfast.evaluation.judges.keyword import KEYWORD
from holdfast.evaluation.judges.prefix import PREFIX
from holdfast.evaluation.judges.refusal import REFUSAL
from holdfast.evaluation.judges.rouge_l import ROUGE_L
from holdfast.evaluation.judges.witness import WITNESS

__all__ = ["FAILED", "INVALID", "JUDGES", "Judge", "Sample", "Score"]

_ALL = (CHOICE, CODE, COHERENCE, DIGITS, EXACT, INJECTION, KEYWORD, PREFIX, REFUSAL, ROUGE_L, WITNESS)
JUDGES: Registry[Judge] = Registry("judge", {judge.id: judge for judge in _ALL})

"""ROUGE-L F1 by Google's `rouge-score` package, stemmed, so that the number is the one that everybody quotes."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.core.errors import DataError
from holdfast.evaluation.judges.base import INVALID, Judge, Sample, Score


def _judge(samples: Sequence[Sample]) -> list[Score]:
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk: only when it is needed

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    scores = []
    for sample in samples:
        reference = sample.example.reference or sample.example.answer
        if not reference.strip():
            raise DataError(f"Cannot judge row {sample.example.id!r} by ROUGE-L: it has neither reference nor answer.")
        if not sample.output.strip():
            scores.append(Score(None, INVALID, "empty"))
            continue
        scores.append(Score(float(scorer.score(reference, sample.output)["rougeL"].fmeasure), "overlap"))
    return scores


ROUGE_L = Judge("rouge_l", 1, "overlap", _judge)

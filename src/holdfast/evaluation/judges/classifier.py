"""Any Hugging Face sequence classifier as a judge, by folder or name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.core.errors import ConfigError, did_you_mean
from holdfast.evaluation.judges.base import INVALID, Judge, Sample, Score
from holdfast.evaluation.judges.coherence import incoherent

if TYPE_CHECKING:
    from torch import Tensor


def classifier(
    source: str, labels: Mapping[str, float], *, measures: str = "refused", batch_size: int = 16, pairs: bool = True
) -> Judge:
    """A judge made of a sequence classifier; the model is loaded at its first use.

    Args:
        source: Folder or hub name that `AutoModelForSequenceClassification` loads.
        labels: The classifier's label names, each with the value in [0, 1] that it stands for, e.g.
            ``{"refusal": 1.0, "compliance": 0.0}``. Every label of the model must be named.
        measures: What a value of 1 means.
        batch_size: Answers a forward pass.
        pairs: Give the classifier prompt and answer as a pair; otherwise the answer alone.

    Returns:
        A judge whose outcome is the winning label and whose reason holds its probability. Incoherent answers are
        invalid before the classifier sees them.

    Raises:
        ConfigError: no such folder, or the model's labels and ``labels`` differ; for a hub name at first use.
    """
    _check_folder(source, labels)
    loaded: list[tuple[Any, Any]] = []

    def judge(samples: Sequence[Sample]) -> list[Score]:
        if not loaded:
            loaded.append(_load(source, labels))
        tokenizer, model = loaded[0]
        scores: list[Score] = [Score(None, INVALID, incoherent(sample.output)) for sample in samples]
        valid = [index for index, score in enumerate(scores) if not score.reason]
        for start in range(0, len(valid), batch_size):
            chosen = valid[start : start + batch_size]
            rows = _probabilities(tokenizer, model, [samples[i] for i in chosen], pairs)
            for index, row in zip(chosen, rows, strict=True):
                winner = int(row.argmax())
                name = model.config.id2label[winner]
                scores[index] = Score(labels[name], name, f"probability {float(row[winner]):.3f}")
        return scores

    return Judge(f"classifier/{Path(source).name}", 1, measures, judge)


def _check_folder(source: str, labels: Mapping[str, float]) -> None:
    """What a folder's configuration already tells; a name that may be the hub's is left to the loading."""
    folder = Path(source).expanduser()
    config = folder / "config.json"
    if not config.is_file():
        if folder.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1:
            raise ConfigError(
                f"Judge 'classifier' cannot load {source!r}: no config.json there. "
                "Do: give a folder or hub name of a sequence classifier."
            )
        return
    try:
        known = json.loads(config.read_text(encoding="utf-8")).get("id2label")
    except (ValueError, AttributeError) as problem:
        raise ConfigError(f"Judge 'classifier' cannot read {config}: not a JSON object. Do: check it.") from problem
    if isinstance(known, dict):
        _check_labels(source, labels, set(known.values()))


def _load(source: str, labels: Mapping[str, float]) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer  # heavy: only when it is used

    local = Path(source).expanduser()
    folder = str(local) if local.exists() else source
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    except (OSError, ValueError) as problem:
        first = str(problem).splitlines()[0]
        raise ConfigError(
            f"Judge 'classifier' cannot load {source!r}: {first} "
            "Do: give a folder or hub name of a sequence classifier."
        ) from problem
    _check_labels(source, labels, set(model.config.id2label.values()))
    return tokenizer, model


def _check_labels(source: str, labels: Mapping[str, float], known: set[str]) -> None:
    for label in sorted(set(labels) ^ known):
        if label in known:
            raise ConfigError(f"Judge 'classifier' has no value for label {label!r} of {source}. Do: map every label.")
        raise ConfigError(f"{source} has no label {label!r}. {did_you_mean(label, known)}")


def _probabilities(tokenizer: Any, model: Any, samples: Sequence[Sample], pairs: bool) -> Tensor:
    """Class probabilities, ``(len(samples), classes)``; long pairs lose the prompt's words before the answer's."""
    import torch

    from holdfast.models.generate import reading_limit

    outputs = [sample.output for sample in samples]
    prompts = ["\n".join(m.content for m in sample.example.messages) for sample in samples]
    texts = (prompts, outputs) if pairs else (outputs,)
    limit = reading_limit(tokenizer, model)
    cut = False if limit is None else "only_first" if pairs else "longest_first"
    encoded = tokenizer(*texts, padding=True, truncation=cut, max_length=limit, return_tensors="pt")
    with torch.inference_mode():
        logits: Tensor = model(**encoded.to(model.device)).logits
    return logits.float().softmax(dim=-1)

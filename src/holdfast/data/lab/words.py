"""How far words alone get: a bag-of-words logistic regression, the trivial baseline that a split must defeat."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from holdfast.data.examples import Example

_TOKEN = re.compile(r"[a-z0-9]+|[^\sa-z0-9]")


def _tokens(row: Example) -> set[str]:
    return {token for message in row.messages for token in _TOKEN.findall(message.content.lower())}


def _matrix(rows: Sequence[Example], vocabulary: dict[str, int]) -> csr_array:
    """(rows, words + 1) presence of each word; the last column is the constant."""
    columns = [sorted(vocabulary[token] for token in _tokens(row) if token in vocabulary) for row in rows]
    indices = np.array([column for each in columns for column in (*each, len(vocabulary))], dtype=np.int64)
    starts = np.cumsum([0, *(len(each) + 1 for each in columns)])
    ones = np.ones(len(indices), dtype=np.float32)
    return csr_array((ones, indices, starts), shape=(len(rows), len(vocabulary) + 1))


def _fit(x: csr_array, y: NDArray[np.float32], penalty: float, steps: int) -> NDArray[np.float32]:
    """Weights of a ridge-penalised logistic regression by accelerated gradient descent."""
    norm = x.nnz / x.shape[0]
    rate = 4.0 / norm
    weights = np.zeros(x.shape[1], dtype=np.float32)
    ahead = weights
    for step in range(1, steps + 1):
        chance = 1.0 / (1.0 + np.exp(-np.clip(x @ ahead, -30, 30)))
        moved = (ahead - rate * (x.T @ (chance - y) / len(y) + penalty * ahead)).astype(np.float32)
        ahead = (moved + (step - 1) / (step + 2) * (moved - weights)).astype(np.float32)
        weights = moved
    return weights


def bag_of_words_accuracy(
    train_rows: Sequence[Example],
    train_labels: Sequence[bool],
    test_rows: Sequence[Example],
    test_labels: Sequence[bool],
) -> float:
    """Accuracy in [0, 1] on ``test_rows`` of a logistic regression on which words occur in a prompt."""
    words = sorted({token for row in train_rows for token in _tokens(row)})
    vocabulary = {word: i for i, word in enumerate(words)}
    y = np.asarray(train_labels, dtype=np.float32)
    weights = _fit(_matrix(train_rows, vocabulary), y, penalty=1e-4, steps=400)
    guesses = _matrix(test_rows, vocabulary) @ weights > 0
    return float(np.mean(guesses == np.asarray(test_labels, dtype=bool)))


def length_accuracy(
    train_rows: Sequence[Example],
    train_labels: Sequence[bool],
    test_rows: Sequence[Example],
    test_labels: Sequence[bool],
) -> float:
    """Accuracy in [0, 1] on ``test_rows`` of the one cut in the number of words that is best on ``train_rows``."""
    lengths, labels = _lengths(train_rows), np.asarray(train_labels, dtype=bool)
    cuts = np.unique(lengths)
    right = np.array([np.mean((lengths >= cut) == labels) for cut in cuts])
    best = int(np.argmax(np.abs(right - 0.5)))
    guesses = (_lengths(test_rows) >= cuts[best]) == (right[best] >= 0.5)
    return float(np.mean(guesses == np.asarray(test_labels, dtype=bool)))


def _lengths(rows: Sequence[Example]) -> NDArray[np.int64]:
    return np.array([sum(len(message.content.split()) for message in row.messages) for row in rows], dtype=np.int64)

"""Scores of examples that a trainer computes from its model's outputs, to report or to upload as a column."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_LN2 = 0.6931471805599453


def el2n(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """EL2N, ||softmax(logits) - onehot(y)||_2 (Paul et al., 2021): float64[n].

    `probabilities` is float[n, classes], `labels` int[n]. ValueError where they do not fit each other.
    """
    given, wanted = np.asarray(probabilities, np.float64), np.asarray(labels)
    if given.ndim != 2 or wanted.shape != given.shape[:1]:
        raise ValueError(
            f"expected probabilities [n, classes] and labels [n], got {list(given.shape)} and {list(wanted.shape)}"
        )
    if wanted.size and not (wanted.min() >= 0 and wanted.max() < given.shape[1]):
        raise ValueError(f"expected labels in 0..{given.shape[1] - 1}, got {wanted.min()}..{wanted.max()}")
    off = given.copy()
    off[np.arange(len(off)), wanted.astype(np.int64)] -= 1.0
    length: npt.NDArray[np.float64] = np.sqrt((off * off).sum(axis=1))
    return length


def pvi(null_loss: Any, model_loss: Any) -> Any:
    """Pointwise V-information in bits, log2 p_model(y|x) - log2 p_null(y) (Ethayarajh et al., 2022).

    Both are losses, -ln p of the label: under the model, and under one that was trained without the input. Arrays of
    any kind, or numbers.
    """
    return (null_loss - model_loss) / _LN2

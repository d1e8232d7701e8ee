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


def vog(gradients: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Variance of gradients (Agarwal et al., 2022): float64[n], the population's deviation over checkpoints of the
    gradient of the label's score by each input, mean over the inputs.

    `gradients` is float[checkpoints, n, ...]. ValueError where it has no such shape.
    """
    given = np.asarray(gradients, np.float64)
    if given.ndim < 3 or not len(given):
        raise ValueError(f"expected gradients [checkpoints, n, inputs...], got {list(given.shape)}")
    deviation = given.std(axis=0)
    mean: npt.NDArray[np.float64] = deviation.reshape(len(deviation), -1).mean(axis=1)
    return mean


def calibrated_gradient(duals: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """How the distance of optimal transport changes as one candidate gains mass and all others lose the same:
    f_i - sum of the others' f_j / (n - 1), float64[n], of the dual potentials f of the candidates.

    ValueError where there are fewer than two.
    """
    f = np.asarray(duals, np.float64)
    if f.ndim != 1 or len(f) < 2:
        raise ValueError(f"expected the dual potentials of two candidates or more, got {list(f.shape)}")
    calibrated: npt.NDArray[np.float64] = f - (f.sum() - f) / (len(f) - 1)
    return calibrated


def pvi(null_loss: Any, model_loss: Any) -> Any:
    """Pointwise V-information in bits, log2 p_model(y|x) - log2 p_null(y) (Ethayarajh et al., 2022).

    Both are losses, -ln p of the label: under the model, and under one that was trained without the input. Arrays of
    any kind, or numbers.
    """
    return (null_loss - model_loss) / _LN2

"""Linear probe: L2-regularised logistic regression on the image features of a frozen model.

Follows CLIP (arXiv 2103.00020, section 3.2): the L2 penalty is chosen on a held-out part of the training images, then
the classifier is fitted to all of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from pairloom.schemas.errors import InputError
from pairloom.trainers.evaluate.class_names import DEFAULT_FILES, ClassFiles
from pairloom.trainers.evaluate.labelled import load_classification
from pairloom.trainers.evaluate.load import DualEncoder
from pairloom.trainers.evaluate.zero_shot import accuracies

PENALTIES = tuple(10.0**power for power in range(1, -9, -1))  # L2; scikit-learn's C is 1 / (penalty * N)
HOLD_OUT_EVERY = 5  # one in five training images per class is held out to choose the penalty
MAX_ITERATIONS = 1000


def linear_probe(encoder: DualEncoder, data: str, train_data: str, files: ClassFiles = DEFAULT_FILES) -> dict[str, Any]:
    """Top-1, top-5 and mean per-class accuracy (0..1) on `data` of a classifier fitted to `train_data`.

    Also returns the chosen penalty and the numbers of images and classes. Raises InputError when data is missing or
    `train_data` lacks a class of `data`.
    """
    train, test = load_classification(train_data, files), load_classification(data, files)
    if unseen := sorted(set(test.keys) - set(train.keys)):
        raise InputError(f"{train_data}: has no class {unseen[0]!r}, which {data} has")
    test_labels = torch.tensor([train.keys.index(key) for key in test.keys])[test.labels]
    num_classes = len(train.keys)
    features_ND = encoder.image_features(train.images)
    penalty = choose_penalty(features_ND, train.labels, num_classes, train_data)
    weights_CE = fit(features_ND, train.labels, num_classes, penalty)
    return {
        "num_images": len(test.images),
        "num_train_images": len(train.images),
        "num_classes": num_classes,
        "l2_penalty": penalty,
        **accuracies(scores(encoder.image_features(test.images), weights_CE), test_labels),
    }


def choose_penalty(features_ND: torch.Tensor, labels_N: torch.Tensor, num_classes: int, where: str) -> float:
    """The penalty with the best top-1 accuracy on every fifth image of each class; ties go to the largest penalty.

    Raises InputError when every class has fewer than five images.
    """
    is_held_out = torch.zeros(len(labels_N), dtype=torch.bool)
    for label in range(num_classes):
        is_held_out[(labels_N == label).nonzero()[HOLD_OUT_EVERY - 1 :: HOLD_OUT_EVERY]] = True
    if not is_held_out.any():
        raise InputError(f"{where}: a linear probe needs at least {HOLD_OUT_EVERY} training images of a class")
    best, best_top1, weights_CE = PENALTIES[0], -1.0, None
    for penalty in PENALTIES:
        weights_CE = fit(features_ND[~is_held_out], labels_N[~is_held_out], num_classes, penalty, weights_CE)
        top1 = accuracies(scores(features_ND[is_held_out], weights_CE), labels_N[is_held_out])["top1"]
        if top1 > best_top1:
            best, best_top1 = penalty, top1
    return best


def fit(
    features_ND: torch.Tensor,
    labels_N: torch.Tensor,
    num_classes: int,
    penalty: float,
    start_CE: torch.Tensor | None = None,
) -> torch.Tensor:
    """Fit a linear classifier; returns float64 weights [C, D + 1], whose last column holds the biases.

    Minimises mean cross-entropy + penalty / 2 * sum of squared weights, biases excluded, by L-BFGS from `start_CE` or
    from zeros.
    """
    inputs_NE = _with_ones(features_ND)
    zeros = torch.zeros(num_classes, inputs_NE.shape[1], dtype=torch.float64)
    weights_CE = (zeros if start_CE is None else start_CE.clone()).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights_CE],
        max_iter=MAX_ITERATIONS,
        tolerance_grad=1e-8,
        tolerance_change=1e-14,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(inputs_NE @ weights_CE.T, labels_N)
        value = value + penalty / 2 * weights_CE[:, :-1].square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weights_CE.detach()


def scores(features_ND: torch.Tensor, weights_CE: torch.Tensor) -> torch.Tensor:
    """Logits [N, C] of the classifier."""
    return _with_ones(features_ND) @ weights_CE.T


def _with_ones(features_ND: torch.Tensor) -> torch.Tensor:
    return functional.pad(features_ND.double(), (0, 1), value=1.0)

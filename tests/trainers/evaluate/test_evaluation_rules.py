"""Figures equal those of open_clip's and big_vision's rules, written down here once more, as they are published."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.nn import functional

from pairloom.schemas.errors import InputError
from pairloom.trainers.evaluate.linear_probe import PENALTIES, choose_penalty, fit, scores
from pairloom.trainers.evaluate.retrieval import recalls
from pairloom.trainers.evaluate.zero_shot import accuracies


def features(*sizes: int, seed: int = 0) -> torch.Tensor:
    return functional.normalize(torch.randn(*sizes, generator=torch.Generator().manual_seed(seed)), dim=-1)


def open_clip_metrics(images: torch.Tensor, texts: torch.Tensor) -> dict[str, float]:
    """As open_clip's training measures retrieval: a full sort, one caption an image (`get_clip_metrics`)."""
    metrics: dict[str, Any] = {}
    for name, logits in (("image_to_text", images @ texts.T), ("text_to_image", texts @ images.T)):
        ranking = logits.argsort(dim=1, descending=True).numpy()
        ranks = np.array([int(np.flatnonzero(row == own)[0]) for own, row in enumerate(ranking)])
        metrics |= {f"{name}_recall_at_{depth}": float((ranks < depth).mean()) for depth in (1, 5, 10)}
        metrics |= {
            f"{name}_mean_rank": ranks.mean() + 1,
            f"{name}_median_rank": float(np.floor(np.median(ranks)) + 1),
        }
    return metrics


def big_vision_recalls(images: torch.Tensor, texts: torch.Tensor, owners: list[int]) -> dict[str, float]:
    """As big_vision does: the first k of a sort; any of an image's captions will do."""
    similarity = (images @ texts.T).numpy()
    found = {}
    for depth in (1, 5, 10):
        first_texts = np.argsort(-similarity, axis=1)[:, :depth]
        hits = [any(owners[text] == image for text in row) for image, row in enumerate(first_texts)]
        found[f"image_to_text_recall_at_{depth}"] = float(np.mean(hits))
        first_images = np.argsort(-similarity.T, axis=1)[:, :depth]
        found[f"text_to_image_recall_at_{depth}"] = float(
            np.mean([owners[text] in row for text, row in enumerate(first_images)])
        )
    return found


def test_one_caption_an_image_as_open_clip() -> None:
    images = features(300, 16)
    texts = functional.normalize(images + 1.0 * features(300, 16, seed=1), dim=-1)
    expected = open_clip_metrics(images, texts)
    assert 0.1 < expected["image_to_text_recall_at_1"] < 0.9
    assert recalls(images, texts, torch.arange(300)) == pytest.approx(expected)


def test_several_captions_an_image_as_big_vision() -> None:
    """Five captions for most images, one for some, in no order; more images than one block of scores."""
    images = features(1100, 16)
    owners = [image for image in range(1100) for _ in range(1 if image % 3 == 0 else 5)]
    draw = np.random.default_rng(0).permutation(len(owners))
    owners = [owners[index] for index in draw]
    texts = functional.normalize(images[owners] + 1.0 * features(len(owners), 16, seed=1), dim=-1)
    expected = big_vision_recalls(images, texts, owners)
    assert 0.1 < expected["text_to_image_recall_at_1"] < 0.9
    found = recalls(images, texts, torch.tensor(owners))
    assert {name: found[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_ties_never_help(seed: int) -> None:
    """A sort breaks ties by the order of the file: whatever it is, ours is what the worst order gives."""
    draw = torch.Generator().manual_seed(seed)
    images, texts = (torch.randint(0, 2, (12, 3), generator=draw).float() for _ in range(2))
    found = recalls(images, texts, torch.arange(12))
    worst = {name: 1.0 for name in found if "recall" in name}
    for _ in range(30):
        order = torch.randperm(12, generator=draw)
        logits = images @ texts[order].T
        for name, table in (("image_to_text", logits), ("text_to_image", logits.T)):
            own = torch.argsort(order) if name == "image_to_text" else order
            ranks = (table.argsort(dim=1, descending=True, stable=True) == own[:, None]).nonzero()[:, 1]
            for depth in (1, 5, 10):
                key = f"{name}_recall_at_{depth}"
                worst[key] = min(worst[key], float((ranks < depth).double().mean()))
    assert all(found[name] <= value for name, value in worst.items())
    scored = accuracies(images @ texts.T, torch.arange(12))
    assert scored["top1"] == found["image_to_text_recall_at_1"]


def test_accuracies_as_open_clip() -> None:
    table, labels = features(400, 20), torch.arange(400) % 17
    first = table.topk(5, dim=1).indices
    hits = (first == labels[:, None]).double()
    found = accuracies(table, labels)
    assert found["top1"] == pytest.approx(float(hits[:, 0].mean()))
    assert found["top5"] == pytest.approx(float(hits.sum(dim=1).mean()))
    per_class = [float(hits[labels == label, 0].mean()) for label in range(17)]  # three classes have no image
    assert found["mean_per_class"] == pytest.approx(np.mean(per_class))
    assert accuracies(torch.zeros(8, 6), torch.arange(8) % 6) == {"top1": 0.0, "top5": 0.0, "mean_per_class": 0.0}


def clusters(num_images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of four classes that overlap."""
    labels = torch.arange(num_images) % 4
    return functional.normalize(features(4, 8)[labels] + 0.7 * features(num_images, 8, seed=seed), dim=-1), labels


@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_the_fit_is_the_smallest_loss(penalty: float) -> None:
    """Against scipy, on the loss written in numpy."""
    inputs, labels = clusters(60, seed=2)
    x, y = inputs.double().numpy(), labels.numpy()

    def loss(flat: np.ndarray) -> float:
        weights = flat.reshape(4, 9)
        logits = x @ weights[:, :8].T + weights[:, 8]
        logits = logits - logits.max(axis=1, keepdims=True)
        entropy = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]
        return float(entropy.mean() + penalty / 2 * (weights[:, :8] ** 2).sum())

    ours = fit(inputs, labels, 4, penalty).numpy()
    theirs = minimize(loss, np.zeros(36), method="L-BFGS-B", options={"maxiter": 3000, "maxfun": 10**6, "ftol": 1e-15})
    assert loss(ours.ravel()) == pytest.approx(theirs.fun, abs=1e-7)  # scipy's gradients are differences
    np.testing.assert_allclose(ours[:, :8], theirs.x.reshape(4, 9)[:, :8], atol=1e-2)
    slopes = [(loss(ours.ravel() + step) - loss(ours.ravel() - step)) / 2e-4 for step in 1e-4 * np.eye(36)]
    np.testing.assert_allclose(slopes, 0, atol=1e-6)


def test_the_penalty_is_chosen_where_it_was_not_fitted() -> None:
    inputs, labels = clusters(200, seed=3)
    chosen = choose_penalty(inputs, labels, 4, "here")
    assert PENALTIES[-1] < chosen < PENALTIES[0]
    test_inputs, test_labels = clusters(400, seed=4)
    top1 = {p: accuracies(scores(test_inputs, fit(inputs, labels, 4, p)), test_labels)["top1"] for p in PENALTIES}
    assert top1[chosen] > max(top1.values()) - 0.05
    assert top1[chosen] > 0.7
    with pytest.raises(InputError, match="at least 5 training images"):
        choose_penalty(inputs[:8], labels[:8], 4, "here")

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from training.loss import class_weights, classification_loss

LABELS = np.array([0] * 30 + [1] * 10)


def test_class_weights_give_both_classes_the_same_say():
    weights = class_weights(LABELS, 2)
    assert weights[torch.tensor(LABELS)].mean() == pytest.approx(1)
    logits = torch.zeros(40, 2, requires_grad=True)
    classification_loss(weights)(SimpleNamespace(logits=logits), torch.tensor(LABELS)).backward()
    pull = [logits.grad[label == LABELS, 0].sum().item() for label in (0, 1)]
    assert pull[0] == pytest.approx(-pull[1], abs=1e-6)


def test_filling_counts_for_nothing():
    loss = classification_loss(class_weights(LABELS, 2), 0.1)
    logits, labels = torch.randn(6, 2), torch.tensor([0, 1, 1, 0, -100, -100])
    whole = loss(SimpleNamespace(logits=logits), labels, num_items_in_batch=4)
    assert whole == pytest.approx(loss(SimpleNamespace(logits=logits[:4]), labels[:4]).item())


def test_filling_among_mixed_images_counts_for_nothing():
    loss = classification_loss(class_weights(LABELS, 2), 0.1)
    logits, shares = torch.randn(4, 2), torch.tensor([[0.3, 0.7], [1, 0], [0, 0], [0, 0]])
    whole = loss(SimpleNamespace(logits=logits), shares, num_items_in_batch=2)
    assert whole == pytest.approx(loss(SimpleNamespace(logits=logits[:2]), shares[:2]).item())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_shares_that_are_whole_cost_what_indices_cost(smoothing):
    loss = classification_loss(torch.tensor([0.7, 1.6]), smoothing)
    outputs, labels = SimpleNamespace(logits=torch.randn(5, 2)), torch.tensor([0, 1, 1, 0, 1])
    assert loss(outputs, torch.eye(2)[labels]) == pytest.approx(loss(outputs, labels).item(), rel=1e-5)

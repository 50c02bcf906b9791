import torch

import attnprobe as ap
from attnprobe.core.maps import Outcome


def outcome(labels, prediction, n_classes=0):
    return Outcome(torch.tensor(labels), torch.tensor(prediction), torch.ones(len(labels)), n_classes)


def test_accuracy_is_of_labelled_images_and_each_counts_once_over_stages_and_sites(make_maps):
    one = make_maps(images=3, outcome=outcome([0, 1, -1], [0, 2, 1], 10))
    two = make_maps(images=2, seed=1, outcome=outcome([2, 2], [2, 2]))
    other = make_maps(images=3, stage="class", outcome=one.outcome)
    facts = ap.measure([one, other, two], ["row_entropy"], bootstrap=0).facts
    assert facts == {"accuracy": 3 / 4, "n_labelled": 4, "n_classes": 10}  # of which three occur
    unknown = ap.measure([make_maps(images=2, outcome=outcome([0, 1], [0, 1]))], ["row_entropy"], bootstrap=0)
    assert unknown.facts["n_classes"] is None


def test_without_labels_or_with_a_head_of_other_classes_there_is_no_accuracy(make_maps):
    for told in (None, outcome([-1, -1], [0, 0]), outcome([0, 1], [-1, -1])):
        assert ap.measure([make_maps(images=2, outcome=told)], ["row_entropy"], bootstrap=0).facts == {}


def test_a_verdict_in_python_says_near_chance_as_a_report_does(make_maps):
    labels = list(range(10)) * 4
    guesses = make_maps(images=40, outcome=outcome(labels, [3] * 40, 10))
    assert "the model is near chance" in ap.verdict(ap.measure([guesses])).headline
    knows = make_maps(images=40, outcome=outcome(labels, labels, 10))
    assert "chance" not in ap.verdict(ap.measure([knows])).headline

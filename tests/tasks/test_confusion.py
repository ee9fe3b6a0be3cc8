import jax
import numpy as np

from flaxattn.tasks.confusion import confusion_matrices, intersection_over_union

LABELS = np.array([[[0, 0, 1], [2, 255, 1]], [[1, 1, 1], [255, 255, 255]]], np.int32)
GUESSES = np.array([[[0, 1, 1], [0, 2, 1]], [[1, 1, 0], [0, 1, 2]]], np.int32)


count = jax.jit(confusion_matrices, static_argnames="num_classes")


def test_each_image_has_its_matrix():
    matrices = count(LABELS, GUESSES, num_classes=3)
    assert matrices.dtype == np.int32
    assert np.asarray(matrices).tolist() == [
        [[1, 1, 0], [0, 2, 0], [1, 0, 0]],
        [[0, 0, 0], [1, 2, 0], [0, 0, 0]],
    ]


def test_the_overlap_of_each_class():
    found = intersection_over_union(np.array([[1, 1, 0, 0], [1, 4, 0, 0], [1, 0, 0, 0], [0] * 4]))
    np.testing.assert_allclose(found, [1 / 4, 4 / 6, 0, np.nan])


def test_it_is_scikit_learns_jaccard_score():
    from sklearn.metrics import jaccard_score

    random = np.random.default_rng(0)
    labels, guesses = random.integers(0, 5, (2, 3, 8, 9), np.int32)
    matrix = np.asarray(count(labels, guesses, num_classes=5)).sum(axis=0)
    expected = jaccard_score(labels.ravel(), guesses.ravel(), average=None)
    np.testing.assert_allclose(intersection_over_union(matrix), expected)

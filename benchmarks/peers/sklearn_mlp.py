"""scikit-learn: `MLPClassifier` with plain SGD, one epoch a call."""

import warnings

from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from benchmarks import problems


def r5e(steps):
    images, labels = problems.mnist()
    images = (images.reshape(-1, 784).astype("float32") / 255 - 0.5) / 0.5
    x, y = images[: 100 * steps], labels[: 100 * steps]

    def run():
        model = MLPClassifier(
            [200], solver="sgd", momentum=0, alpha=0, batch_size=100, learning_rate_init=1e-2,
            max_iter=1, random_state=0,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return model.fit(x, y).loss_

    return run


JOBS = {"r5e": r5e}

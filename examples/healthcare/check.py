"""Finds the best of the models that the job brought back, and checks it with scikit-learn.

    python3 check.py DIR       # the folder with model-0.f32 to model-99.f32

What providers reported of each model is computed again, by scikit-learn, from the weights
alone; the best is chosen by validation rows, and only then shown with the test rows. Then
scikit-learn trains its own, in its own way. Exit code 1 if anything differs. DIR/best.json
says which unit is the best.
"""

import json
import math
import struct
import sys
import tomllib
from pathlib import Path

import numpy as np
import sklearn
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss

HERE = Path(__file__).parent

# As in train.wgsl: columns of a row, and how many rows there are of each part.
FEATURES = 30
TRAINING, VALIDATION, TEST = 342, 114, 113

# Sums of 114 losses in 32 bits are no further off than this.
LOSS_TOLERANCE = 1e-5
# Weights after 1,000 steps are this near to where the steps lead, if they have converged.
WEIGHT_TOLERANCE = 1e-3


class Model:
    """One unit: its configuration, its weights, and what its provider reported."""

    def __init__(self, folder, unit, configuration):
        words = struct.unpack("<34f", (folder / f"model-{unit}.f32").read_bytes())
        self.unit = unit
        self.configuration = configuration
        self.weights, self.intercept = words[:FEATURES], words[FEATURES]
        self.validation_right, self.validation_loss, self.test_right = words[FEATURES + 1 :]

    def order(self):
        """The most right on validation rows, then the least loss, then the first."""
        return (-self.validation_right, self.validation_loss, self.unit)

    def in_scikit_learn(self):
        model = LogisticRegression()
        model.classes_ = np.array([0.0, 1.0])
        model.coef_ = np.array([self.weights])
        model.intercept_ = np.array([self.intercept])
        return model

    def __str__(self):
        values = self.configuration
        return f"rate {values['rate']}, l2 {values['l2']}, momentum {values['momentum']}"


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: check.py DIR")
    folder = Path(sys.argv[1])
    with open(HERE / "job.toml", "rb") as file:
        configurations = tomllib.load(file)["array"]["list"]
    models = [Model(folder, unit, values) for unit, values in enumerate(configurations)]
    rows = np.fromfile(HERE / "data" / "rows.f32", "<f4").reshape(-1, FEATURES + 2)
    features, truth = rows[:, :FEATURES].astype(np.float64), rows[:, -1].astype(np.float64)
    parts = [slice(0, TRAINING), slice(TRAINING, TRAINING + VALIDATION), slice(-TEST, None)]
    training, validation, test = [(features[part], truth[part]) for part in parts]

    mistakes = [text for model in models for text in mistakes_of(model, validation, test)]
    models.sort(key=Model.order)
    best = models[0]
    print("the best of the validation rows")
    for model in models[:5]:
        right = f"{model.validation_right:.0f} of {VALIDATION}"
        print(f"  unit {model.unit:2}  {right}  loss {model.validation_loss:.4f}  {model}")

    again = accuracy_score(test[1], best.in_scikit_learn().predict(test[0]))
    own = trained(training, best)
    theirs = accuracy_score(test[1], own.predict(test[0]))
    print(f"\naccuracy of unit {best.unit} on the test rows, which had no part in that")
    print(
        f"  {best.test_right / TEST:.4f}  as its provider reported ({best.test_right:.0f} of {TEST})"
    )
    print(f"  {again:.4f}  by scikit-learn {sklearn.__version__}, from its weights")
    print(f"  {theirs:.4f}  of scikit-learn's own model, with the same penalty")
    print(f"  so few rows show no more than {at_least(again, TEST):.3f} or better (95 %)")

    mistakes += converged(models, training)
    (folder / "best.json").write_text(
        json.dumps({"unit": best.unit, "test_right": int(best.test_right), **best.configuration})
        + "\n"
    )
    if mistakes:
        sys.exit("\n".join(["", *mistakes, f"check: figures that are not true: {len(mistakes)}"]))
    print(
        f"all {len(models)} units reported what scikit-learn finds, on {VALIDATION + TEST} rows each"
    )


def mistakes_of(model, validation, test):
    """What a provider reported and scikit-learn does not find."""
    again = model.in_scikit_learn()
    for part, (features, truth), right in [
        ("validation", validation, model.validation_right),
        ("test", test, model.test_right),
    ]:
        found = accuracy_score(truth, again.predict(features), normalize=False)
        if found != right:
            yield f"unit {model.unit}: {right:.0f} {part} rows right by its provider, {found:.0f} by its weights"
    loss = log_loss(validation[1], again.predict_proba(validation[0]))
    if not abs(loss - model.validation_loss) <= LOSS_TOLERANCE:
        yield f"unit {model.unit}: loss {model.validation_loss} by its provider, {loss} by its weights"


def trained(training, model):
    """scikit-learn's own, with the same penalty: it sums over rows where we take the mean."""
    strength = 1 / (TRAINING * model.configuration["l2"])
    return LogisticRegression(C=strength, tol=1e-8, max_iter=10_000).fit(*training)


def converged(models, training):
    """With much penalty and long steps, gradient descent arrives where scikit-learn does."""
    model = max(
        models,
        key=lambda model: tuple(model.configuration[key] for key in ("l2", "rate", "momentum")),
    )
    own = trained(training, model)
    ours, theirs = [*model.weights, model.intercept], [*own.coef_[0], *own.intercept_]
    off = max(abs(a - b) for a, b in zip(ours, theirs))
    print(
        f"\nunit {model.unit} has converged ({model})\n  no weight is further than {off:.7f} from scikit-learn's own"
    )
    if not off <= WEIGHT_TOLERANCE:
        return [f"unit {model.unit}: a weight is {off} from where it should be"]
    return []


def at_least(share, rows):
    """Wilson's lower bound, one-sided, for a share that was seen in so many rows."""
    z = 1.645
    spread = z * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return (share + z * z / (2 * rows) - spread) / (1 + z * z / rows)


if __name__ == "__main__":
    main()

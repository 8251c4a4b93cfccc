"""The model: what a request carries, what the answer holds, and the way between. Yours."""

import os

from pydantic import BaseModel, Field

from serving import Input

MODEL_NAME = os.getenv("MODEL_NAME", "iris")  # trained at the start, on data in scikit-learn


class Params(BaseModel):
    """The request's body: one row, which is one flower. Lengths in millimetres are rejected."""

    sepal_length: float = Field(gt=0, le=12, description="cm")
    sepal_width: float = Field(gt=0, le=8, description="cm")
    petal_length: float = Field(gt=0, le=12, description="cm")
    petal_width: float = Field(gt=0, le=8, description="cm")


class Output(BaseModel):
    """Which iris it is."""

    species: str = Field(description="setosa, versicolor or virginica")
    probability: float = Field(description="0 to 1, that it is this species")


EXAMPLE = {"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}
COLUMNS = list(EXAMPLE)  # in the order in which the model has learnt them


class Model:
    """A logistic regression on four standardised lengths."""

    def __init__(self, device: str) -> None:
        """Train on Fisher's 150 flowers: milliseconds on the CPU, always with the same result."""
        from sklearn.datasets import load_iris
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        flowers = load_iris()
        self.pipeline = make_pipeline(StandardScaler(), LogisticRegression())
        self.pipeline.fit(flowers.data, flowers.target_names[flowers.target])

    def predict(self, inputs: list[Input[Params]]) -> list[Output]:
        """Classify all rows by one call."""
        rows = [[getattr(item.params, column) for column in COLUMNS] for item in inputs]
        probabilities = self.pipeline.predict_proba(rows)
        best = probabilities.argmax(axis=1)
        return [
            Output(species=species, probability=round(float(row.max()), 4))
            for species, row in zip(self.pipeline.classes_[best], probabilities, strict=True)
        ]

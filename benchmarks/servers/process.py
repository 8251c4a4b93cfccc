"""The model of B1 in a process with no service around it: prints a line when it can answer."""

import time


class Model:
    """Gives back what it got."""

    def predict(self, values: list[float]) -> list[float]:
        """Return the same numbers."""
        return values


print(Model().predict([1.0, 2.0, 3.0, 4.0]), flush=True)
time.sleep(60)

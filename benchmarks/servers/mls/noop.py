"""MLServer: a custom runtime that gives back what it got."""

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class Noop(MLModel):
    """Does nothing."""

    async def load(self) -> bool:
        """Load nothing."""
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Return the same tensors."""
        outputs = [
            ResponseOutput(name=x.name, shape=x.shape, datatype=x.datatype, data=x.data)
            for x in payload.inputs
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)

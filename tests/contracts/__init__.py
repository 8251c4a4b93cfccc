"""The protocols of others: Open Inference Protocol, SageMaker, Model Engine."""

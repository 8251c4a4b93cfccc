"""OpenAI's API, for what the model can do of it."""

"""Images, many services at once, and a machine without a model hub."""

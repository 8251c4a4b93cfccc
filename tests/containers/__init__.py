"""Builds and runs the rendered Dockerfile, with or without an image registry."""

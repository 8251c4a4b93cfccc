"""Predictions that outlast their requests: accepted, kept on disk, and answered later."""

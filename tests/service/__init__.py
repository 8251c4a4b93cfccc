"""How a live service behaves: requests, load, failures, and each feature."""

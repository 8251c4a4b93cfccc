"""The contracts of other systems, each an adapter around the same core."""

"""What `make bench` measures, and the servers that it measures."""

"""`make release`, `make demo`, `make bench`, and the lowest versions of packages."""

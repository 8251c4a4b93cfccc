"""Tests of the template, in folders by subject."""

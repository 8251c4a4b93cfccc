"""The conformance tests themselves: what they pass, and what they have to notice."""

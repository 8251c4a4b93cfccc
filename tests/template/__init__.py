"""Questions, renders, updates from version to version, and a service's workflows."""

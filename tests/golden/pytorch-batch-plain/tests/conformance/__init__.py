"""The ML Microservice Spec, asked of a live process. It is the template's, as serving/ is."""

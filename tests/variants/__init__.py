"""Every combination of model type, input kind and accelerator."""

"""Training of models, from a checkout: `python -m train`."""

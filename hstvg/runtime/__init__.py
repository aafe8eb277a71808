"""The platform edge: the only package that knows Ray, DeepSpeed, Hydra and W&B."""

"""From a trained model to files: the loadable bundle, the sampling workflow, the written video."""

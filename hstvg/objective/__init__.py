"""The joint loss: a named mapping of (term, weight), and one term per file."""

"""The video tokenizer and its multi-scale codec (proposal VideoAR)."""

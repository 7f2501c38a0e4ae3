"""Engines on a Triton server, through its protocol: KServe v2, extended by model configurations."""

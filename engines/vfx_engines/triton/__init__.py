"""An engine behind a port: Triton's protocol, which is KServe v2 with model configurations."""

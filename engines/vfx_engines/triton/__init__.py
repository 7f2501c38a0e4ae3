"""An engine behind a port: Triton, or what speaks its protocol (KServe v2 with Triton's model configuration)."""

"""Outside: bundles, launchers, and the manager of enclaves. What stands here is not trusted by anybody but the host."""

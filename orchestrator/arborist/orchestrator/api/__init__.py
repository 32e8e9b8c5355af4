"""The public door: one validator and one text layer under gRPC and HTTP."""

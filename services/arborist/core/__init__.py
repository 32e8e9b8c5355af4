"""The algorithm: trees, policies, acceptance, sampling. Pure: no gRPC, no Ray, no I/O."""

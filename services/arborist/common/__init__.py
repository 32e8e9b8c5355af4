"""What every service shares: configuration, telemetry, the wire and the worker shell."""

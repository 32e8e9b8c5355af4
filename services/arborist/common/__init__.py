"""What workers, controller and client share: wire mapping, errors, server shell, configuration."""

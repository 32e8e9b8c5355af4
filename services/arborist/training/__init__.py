"""Training of a target model and of its EAGLE head."""

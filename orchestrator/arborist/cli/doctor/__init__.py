"""`arborist doctor`: what is installed, whether a head fits its target, and why tau is low."""

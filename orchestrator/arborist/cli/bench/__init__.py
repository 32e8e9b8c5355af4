"""`arborist bench`: every mode on the same prompts in one run, and what it says about speed."""

"""`arborist trace`: every round of a decoding, as data and as a drawing."""

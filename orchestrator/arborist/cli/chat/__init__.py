"""`arborist chat`: a conversation in the terminal."""

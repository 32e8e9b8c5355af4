"""Generated from protos/arborist/v1; never edited by hand."""

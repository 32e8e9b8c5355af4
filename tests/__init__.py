"""Tests of Arborist. A regular package, so that no folder under it can hide a package of ours."""
